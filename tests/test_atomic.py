"""Files and folders are complete or not there, at whichever step the process dies."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from search_r3_mteb import atomic
from search_r3_mteb.atomic import (
    clean,
    left_behind,
    put_back,
    recover,
    removed_folder,
    replaced_folder,
    temporary_folder,
    write_array,
    write_jsonl,
    write_text,
    written_file,
)
from tests.dying import killed_before
from tests.programs import started


def folder_with(path, text):
    path.mkdir(parents=True)
    (path / "file").write_text(text)


@pytest.fixture(params=["exchanged", "renamed"])
def way(request, monkeypatch):
    if request.param == "renamed":  # a system that cannot exchange two folders
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges folders")
    return request.param


def test_a_folder_is_replaced_as_a_whole_at_whichever_operation_the_process_dies(tmp_path, way):
    found = []
    while True:
        place = tmp_path / str(len(found)) / "model"
        folder_with(place, "old")
        with killed_before(len(found)) as died, replaced_folder(place) as folder:
            (folder / "file").write_text("new")
        there = place.exists()
        recover(place)
        found.append((there, (place / "file").read_text()))
        assert [path.name for path in place.parent.iterdir()] == ["model"], "nothing is left behind"
        if not died:
            break
    assert {text for _, text in found} == {"old", "new"}
    between = (False, "old") in found
    assert between == (way == "renamed"), "between two renames only `recover` finds the old folder; one has no between"


def test_after_an_error_the_old_folder_is_there_and_nothing_beside_it(tmp_path):
    folder_with(tmp_path / "model", "old")

    def fail():
        with replaced_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("new")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        fail()
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_next_replacement_puts_back_what_a_kill_left_aside(tmp_path):
    folder_with(tmp_path / ".model.123abc.replaced", "old")
    folder_with(tmp_path / ".model.123abc.unfinished", "half")
    (tmp_path / ".model.123abc.lock").touch()
    assert left_behind(tmp_path, "mod*") == {tmp_path / "model"}
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "file").read_text() == "old"


def test_a_removed_folder_is_never_half_there(tmp_path):
    folder_with(tmp_path / "model", "old")
    with killed_before(1):  # the rename happened, the first removal did not
        removed_folder(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    recover(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path):
    file = tmp_path / "deep" / "array.npy"
    write_array(file, np.arange(3))

    def fail():
        with written_file(file) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    np.testing.assert_array_equal(np.load(file), np.arange(3))
    assert [path.name for path in file.parent.iterdir()] == ["array.npy"]


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a", "line\r\nüber\n")
    assert (tmp_path / "a").read_bytes() == "line\r\nüber\n".encode()
    write_jsonl(tmp_path / "b", [{"text": "\ud800"}])
    assert (tmp_path / "b").read_bytes() == b'{"text": "\\ud800"}\n'
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "c.npy", np.array([{}], dtype=object))
    assert not (tmp_path / "c.npy").exists()


HALF = """
import os, pathlib, sys
from search_r3_mteb.atomic import replaced_folder, temporary_folder, written_file
place = pathlib.Path(sys.argv[1])
with written_file(place / "a[1].json") as stream, replaced_folder(place / "model") as folder:
    with temporary_folder(place / "work") as work:
        stream.write(b"half")
        stream.flush()
        (folder / "file").write_text("half")
        (work / "file").write_text("half")
        print("half", flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="asks the system for the owner of a lock")
def test_what_a_killed_process_left_goes_and_what_a_living_one_is_writing_stays(tmp_path):
    folder_with(tmp_path / "model", "old")
    (tmp_path / ".bashrc").touch()
    (tmp_path / ".note.123abc~").mkdir()  # has such a name, and is not a file of ours
    mine = {path.name for path in tmp_path.iterdir()}
    processes = [started("-c", HALF, tmp_path, stdin=subprocess.PIPE) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["half\n"] * 2
    names = {path.name for path in tmp_path.iterdir()} - mine
    assert len(names) == 2 * 5, "each: the file, two folders, and their locks"
    (tmp_path / ".model.123abc.unfinished").mkdir()  # without a lock: nobody's
    clean(tmp_path)
    recover(tmp_path / "work")
    assert {path.name for path in tmp_path.iterdir()} - mine == names, "both live"
    processes[0].kill()
    processes[0].communicate()
    with written_file(tmp_path / "a[1].json") as stream:
        stream.write(b"new")
    clean(tmp_path)
    assert len({path.name for path in tmp_path.iterdir()} - mine - {"a[1].json"}) == 5
    processes[1].communicate("go on")
    assert processes[1].returncode == 0
    assert {path.name for path in tmp_path.iterdir()} - mine == {"a[1].json"}
    assert (tmp_path / "a[1].json").read_bytes() == b"half"
    assert (tmp_path / "model" / "file").read_text() == "half"


def test_who_reads_between_the_renames_of_a_living_process_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    folder_with(tmp_path / "model", "old")
    readers = []

    def rename(path, target, real=Path.rename):
        if target == tmp_path / "model":
            assert not target.exists()
            readers.append(Thread(target=put_back, args=(target,)))
            readers[0].start()
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with replaced_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("new")
    readers[0].join()
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_stop_leaves_the_old_and_nothing_beside_it(tmp_path, way):
    folder_with(tmp_path / "model", "old")

    def stop(write, path):
        with write(path):
            raise KeyboardInterrupt

    for write, path in ((replaced_folder, "model"), (written_file, "model/file"), (temporary_folder, "model")):
        with pytest.raises(KeyboardInterrupt):
            stop(write, tmp_path / path)
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]


FOR_EVER = """
import itertools, pathlib, sys
from search_r3_mteb import atomic
place = pathlib.Path(sys.argv[1])
if sys.argv[2] == "renamed":
    atomic._exchanged = lambda one, other: False
for number in itertools.count():
    with atomic.replaced_folder(place / "model") as folder:
        for name in "ab":
            (folder / name).write_text(str(number))
    atomic.write_text(place / "file", str(number) * 5000)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_hundred_kills_leave_one_whole_folder(tmp_path, way):
    draw = random.Random(7)
    for _ in range(100):
        process = started("-c", FOR_EVER, tmp_path, way)
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        if way == "renamed":
            put_back(tmp_path / "model")
        assert (tmp_path / "model" / "a").read_text() == (tmp_path / "model" / "b").read_text()
        assert len((tmp_path / "file").read_text()) % 5000 == 0
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_the_working_directory_and_a_mount_point_are_not_exchanged_under_their_users(tmp_path, monkeypatch):
    place = tmp_path / "new"
    (place / "below").mkdir(parents=True)
    for here, name in ((place, "."), (place / "below", ".."), (place, place)):
        monkeypatch.chdir(here)
        with pytest.raises(ValueError, match="this command runs in that folder"), replaced_folder(Path(name)):
            pass
    monkeypatch.chdir(tmp_path)
    with replaced_folder(place) as folder:
        write_text(folder / "a", "there")
    assert [path.name for path in place.iterdir()] == ["a"], "the control"
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    with (
        pytest.raises(ValueError, match="is a mount point, which cannot be replaced as a whole"),
        replaced_folder(place),
    ):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: path != place.parent)
    with pytest.raises(PermissionError) as closed, replaced_folder(place):
        pass
    assert closed.value.filename == str(tmp_path), "the parent, in which the new folder is made, is what is closed"


def test_who_may_read_the_folder_may_read_its_weights(tmp_path):
    """safetensors writes files for their owner alone; a colleague could read the configuration only."""
    from safetensors.numpy import save_file

    with replaced_folder(tmp_path / "model") as folder:
        save_file({"a": np.zeros(1, np.float32)}, folder / "a.safetensors")
        (folder / "a.safetensors").chmod(0o600)
        write_text(folder / "open", "")
        (folder / "open").chmod(0o640)
    wanted = (tmp_path / "model").stat().st_mode & 0o666
    assert (tmp_path / "model" / "a.safetensors").stat().st_mode & 0o777 == wanted
    assert (tmp_path / "model" / "open").stat().st_mode & 0o777 == 0o640, "what was chosen stays"
