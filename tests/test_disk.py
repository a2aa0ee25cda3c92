"""A full disk ends in one message with path, reason, bytes free and remedy, and leaves nothing that looks complete.

The disk is a real one of a few kilobytes where this user may mount one, else a limit on the size of files.
"""

import errno
import os
import pickle
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.atomic import replaced_folder, write_array, write_jsonl, write_text
from search_r3_mteb.disk import explained, naming
from search_r3_mteb.encoder.store import Store
from tests.encoder.test_store import PRINT

resource = pytest.importorskip("resource", reason="POSIX")
SIZE = 512 * 1024


@pytest.fixture(params=["a small disk", "a limit on files"])
def full(request, tmp_path):
    """A folder in which at most `SIZE` bytes can be written."""
    place = tmp_path / "small"
    place.mkdir()
    if request.param == "a small disk":
        mount = shutil.which("mount")
        command = [mount, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
        if mount is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a small disk")
        yield place
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, before[1]))  # Python ignores the signal, and writes fail
    yield place
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def text(folder):
    write_text(folder / "text", "x" * (SIZE + 1))


def records(folder):
    write_jsonl(folder / "rows.jsonl", [{"text": "x" * 1000}] * 600)


def array(folder):
    write_array(folder / "vectors.npy", np.ones(SIZE))


def safetensors(folder):
    import torch
    from safetensors.torch import save_file

    with replaced_folder(folder / "model") as new:
        save_file({"weight": torch.ones(SIZE)}, new / "model.safetensors")


def chunk(folder):
    texts = [f"{number:04}" * 64 for number in range(3000)]
    Store(folder, PRINT, "document", 64).append(texts, np.ones((3000, 64), np.float32))


def log(folder):
    from train.run.log import RunLog

    run = RunLog(folder, total=9, resume_step=0, tensorboard=False)
    for step in range(600):
        run.event("step", step, text="x" * 1000)


def tensorboard(folder):
    from train.run.command import _known_to_all
    from train.run.trackers import Trackers

    trackers = Trackers(folder, ["tensorboard"], project="p", config={}, resume_step=0)
    before, threading.excepthook = threading.excepthook, _known_to_all(threading.excepthook)  # as a training has it
    try:
        for step in range(10_000):
            trackers.log({"x" * 200: 1.0}, step)
    finally:
        for thread in threading.enumerate():  # its error is handed on before it has ended
            if type(thread).__module__.startswith("tensorboard."):
                thread.join()
        threading.excepthook = before


@pytest.mark.parametrize(
    "write", [text, records, array, safetensors, chunk, log, tensorboard], ids=lambda one: one.__name__
)
def test_every_writer_ends_in_one_message_that_names_its_place(write, full):
    with pytest.raises(OSError) as raised:
        write(full)
    message = explained(raised.value)
    assert str(full) in message
    assert "could not be written" in message
    assert "bytes free" in message
    assert "Free some space" in message
    assert not list(full.rglob(".*")), "nothing half-written is left"
    assert "~" not in message
    assert ".unfinished" not in message
    left = {path.name for path in full.rglob("*") if path.is_file()}
    assert all(name in ("store.json", "log.jsonl") or name.startswith("events") for name in left)


def test_numpy_alone_loses_the_end_of_an_array_without_an_error(full):
    """Why `write_array` does not hand it the file. Where one page is left, an array of a page and 32 bytes is cut."""
    if not os.path.ismount(full):
        pytest.skip("needs a small disk")
    array = np.arange(500)  # 128 + 4,000 bytes
    (full / "fill").write_bytes(b"x" * (SIZE - 4096))
    with (full / "cut.npy").open("wb") as stream:
        np.save(stream, array)
    assert (full / "cut.npy").stat().st_size == 4096
    (full / "cut.npy").unlink()
    with pytest.raises(OSError, match="No space left") as raised:
        write_array(full / "whole.npy", array)
    assert str(full / "whole.npy") in explained(raised.value)
    (full / "fill").unlink()
    write_array(full / "whole.npy", array)
    np.testing.assert_array_equal(np.load(full / "whole.npy"), array)
    assert {path.name for path in full.iterdir()} == {"whole.npy"}


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_each_reason_is_said_and_travels_between_processes(number, tmp_path):
    with pytest.raises(OSError) as raised, naming(tmp_path / "a"):
        raise OSError(number, os.strerror(number), str(tmp_path / ".a.123abc.unfinished" / "b"))
    message = explained(pickle.loads(pickle.dumps(raised.value)))
    assert message.startswith(f"{tmp_path / 'a' / 'b'} could not be written")
    assert re.search(r"\([^()]*[\d,]+ bytes free", message)
    assert "start the same command again" in message


def test_errors_of_libraries_in_rust_are_known_and_others_are_none(tmp_path):
    with pytest.raises(OSError) as raised, naming(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC
    assert explained(raised.value).startswith(f"{tmp_path / 'a'} could not be written: there is not enough space")
    assert "of temporary files" in explained(RuntimeError("No space left on device (os error 28)")), "no name is known"
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path / "a"):
        Path(tmp_path / "other").read_bytes()
    assert missing.value.filename == str(tmp_path / "other")
    for other in (missing.value, ValueError("five (os error 2)"), OSError("no number")):
        assert explained(other) is None


def test_the_command_line_says_it_and_ends_with_2(full, call, tmp_path):
    (tmp_path / "texts.txt").write_text("a text\n" * 1200)
    output = full / "vectors.npy"
    code, _, errors = call("embed", "--input", tmp_path / "texts.txt", "--output", output, "--role", "document")
    assert code == 2
    *notes, message = errors.splitlines()
    assert message.startswith(f"Error: {output} could not be written")
    assert len(notes) == 1
    assert "known by number" in notes[0]
    assert not list(full.iterdir())


def test_a_training_says_it_and_ends_with_2(full, capsys):
    from tests.train.loops import sft_config
    from train.config.loading import dump
    from train.config.stages import SftConfig
    from train.run.command import start
    from train.sft import train

    config, run = full.parent / "config.toml", full / "run"
    config.write_text(dump(sft_config(full.parent / "unused", "model.scratch.hidden_size=128")))
    with pytest.raises(SystemExit) as ended:
        start("sft.py", SftConfig, train, ["--config", str(config), "--set", f"output.folder={run}"])
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    # Where it is files that are limited, the rows, which are spilled into a temporary one, are too much already.
    place = run / "checkpoints" / "step-000001" if os.path.ismount(full) else tempfile.gettempdir()
    assert f"sft.py: {place}" in errors
    assert "could not be written" in errors
    assert not list((run / "checkpoints").glob("*"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has /proc, which holds no files of others")
@pytest.mark.parametrize("place", ["/proc/none", "/proc/none/deep"])
def test_a_place_that_takes_no_files_is_one_without_permission(place):
    """Regression: such a place says that what is to be made is not there, by its hidden name."""
    for write in (lambda: write_text(Path(place), "a"), lambda: replaced_folder(Path(place)).__enter__()):
        with pytest.raises(PermissionError) as caught:
            write()
        assert f"{place} could not be written or read: permission was denied" in explained(caught.value)


def test_an_input_that_is_not_there_is_no_matter_of_permissions(tmp_path):
    with pytest.raises(FileNotFoundError), naming(tmp_path / "output"):
        (tmp_path / "input").read_text()
