"""A full disk ends with an error that says what is needed, never with SIGBUS from a memory map."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from search_r3_mteb.disk import explained
from tests.programs import ROOT, python
from train.corpus_cache import files
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.files import create_arrays
from train.disk import maps
from train.disk.maps import new_map, reserve

FLOAT = np.dtype(np.float32)

BUILD = """
import sys, json
from pathlib import Path
import numpy as np
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache

def encode(texts):
    return np.random.default_rng(int(texts[0])).normal(size=(len(texts), 64))

def listed(folder):
    return sorted(file.name for file in folder.iterdir())

place, documents, copy = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
try:
    cache = CorpusCache.build([str(n) for n in range(documents)], encode, folder=place / "cache",
                              settings=CorpusCacheSettings(policy="none", neighbors=2))
    if copy:
        cache.save(Path(copy[0]))
        cache.save(place / "copy")
    print(json.dumps([0, "built", None, listed(place / "cache")]))
except OSError as error:
    print(json.dumps([error.errno, str(error), error.filename, listed(Path(error.filename).parent)]))
"""
SPARSE = """
import sys
import numpy as np
np.lib.format.open_memmap(sys.argv[1] + "/sparse.npy", mode="w+", dtype=np.float32, shape=(8000, 64))[:] = 1
"""
MOUNTED = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'


@pytest.fixture
def small(tmp_path):
    """A program's result on a file system of one megabyte, which is gone with the program however it ends."""
    place = tmp_path / "small"
    place.mkdir()
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, str(place)]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def run(program, *arguments):
        settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [*alone, sys.executable, "-c", program, str(place), *map(str, arguments)]
        return place, subprocess.run(command, capture_output=True, text=True, env=settings)

    return run


def test_a_cache_that_does_not_fit_is_refused_before_it_is_written(small, tmp_path):
    """Regression: a sparse map of two megabytes on one, and the process died of SIGBUS at the first page too many."""
    place, ended = small(BUILD, 8000)
    assert ended.returncode == 0, ended.stderr
    number, said, file, left = json.loads(ended.stdout)
    assert (number, file, left) == (errno.ENOSPC, str(place / "cache" / "1-vectors.npy"), [])
    assert "(2,048,128 bytes needed, 1,0" in said
    assert "bytes free)" in said
    assert "Free some space, or name a folder on another disk" in said
    assert json.loads(python("-c", BUILD, tmp_path / "large", 8000))[1] == "built", "the control"


def test_a_sparse_map_on_a_full_disk_kills_the_process(small):
    """The control: what reserving prevents."""
    _, ended = small(SPARSE)
    assert ended.returncode == -signal.SIGBUS


def test_a_snapshot_that_does_not_fit_leaves_none_of_its_files(small, tmp_path):
    """The cache itself and a copy elsewhere fit."""
    place, ended = small(BUILD, 2200, tmp_path / "elsewhere")
    assert ended.returncode == 0, ended.stderr
    number, said, file, left = json.loads(ended.stdout)
    assert (number, left) == (errno.ENOSPC, [])
    assert file.startswith(str(place / "copy"))
    assert "bytes needed" in said
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def full(descriptor, offset, length):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_error_names_path_need_room_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"4,128 bytes needed, .*[\d,]+ bytes free") as failed:
        new_map(tmp_path / "map.npy", (10, 100), FLOAT)
    assert (failed.value.errno, failed.value.filename) == (errno.ENOSPC, str(tmp_path / "map.npy"))
    said = explained(failed.value) or ""  # what the command line says
    assert said.startswith(
        f"{tmp_path / 'map.npy'} could not be written: there is not enough space (4,128 bytes needed, "
    )
    assert "bytes free). Free some space, or name a folder on another disk (output.folder, corpus_cache.tok" in said
    assert list(tmp_path.iterdir()) == []


def test_the_room_is_what_was_free_when_it_failed(tmp_path, monkeypatch):
    """Regression: it was read anew whenever the error was shown, after the cache had removed its other files."""
    free = iter(range(9))
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(
        os, "statvfs", lambda place: SimpleNamespace(f_files=9, f_favail=9, f_bavail=next(free), f_frsize=1000)
    )
    with pytest.raises(OSError, match="needed") as failed:
        new_map(tmp_path / "map.npy", (10, 100), FLOAT)
    assert "(4,128 bytes needed, 0 bytes free)" in str(failed.value)
    assert explained(failed.value) == str(failed.value) == str(pickle.loads(pickle.dumps(failed.value)))


def test_of_several_arrays_none_is_left(tmp_path, monkeypatch):
    calls, real = [], os.posix_fallocate

    def second_fails(descriptor, offset, length):
        calls.append(length)
        (full if len(calls) == 2 else real)(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", second_fails)
    with pytest.raises(OSError, match=r"1-b\.npy"):
        create_arrays(tmp_path, {"a": ((4,), FLOAT), "b": ((4,), FLOAT), "c": ((4,), FLOAT)})
    assert (len(calls), list(tmp_path.iterdir())) == (2, [])


def test_of_a_copy_that_does_not_fit_nothing_is_left(tmp_path, monkeypatch):
    def encode(texts):
        return np.eye(4)[[len(text) for text in texts]]

    cache = CorpusCache.build(["a", "bb", "ccc"], encode, folder=tmp_path / "cache")
    cache.save(tmp_path / "copy")
    before = {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()}
    calls = []

    def third_fails(source, target):
        calls.append(target)
        if len(calls) == 3:
            full(0, 0, 0)
        maps.copy_file(source, target)

    monkeypatch.setattr(files, "copy_file", third_fails)
    with pytest.raises(OSError, match="No space left"):
        cache.save(tmp_path / "copy")
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()} == before


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
def test_where_nothing_can_be_reserved_zeros_are_written(tmp_path, monkeypatch, error):
    def unsupported(descriptor, offset, length):
        raise OSError(error, "not here")

    if error is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr(maps, "_BLOCK", 1000)
    made = new_map(tmp_path / "map.npy", (30, 50), FLOAT)
    assert not made.any()
    made[:] = 1
    made.flush()
    assert (np.load(tmp_path / "map.npy") == 1).all()
    assert (tmp_path / "map.npy").stat().st_blocks * 512 >= 6000


def test_other_errors_are_not_taken_for_a_missing_function(tmp_path, monkeypatch):
    def broken(descriptor, offset, length):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output error"):
        new_map(tmp_path / "map.npy", (10,), FLOAT)
    assert list(tmp_path.iterdir()) == []


def test_every_byte_is_reserved(tmp_path):
    """The control is a sparse file: as long, with nothing behind it."""
    size = 1 << 20
    for name, reserved in (("sparse", False), ("reserved", True)):
        with (tmp_path / name).open("wb") as stream:
            stream.write(b"head")
            stream.flush()
            if reserved:
                reserve(stream.fileno(), size)
            else:
                stream.truncate(size)
    assert [(tmp_path / name).stat().st_size for name in ("sparse", "reserved")] == [size, size]
    assert (tmp_path / "sparse").stat().st_blocks * 512 < size <= (tmp_path / "reserved").stat().st_blocks * 512
    assert (tmp_path / "reserved").read_bytes() == b"head" + bytes(size - 4)
