"""Files and folders are complete or not there, at whichever step the process dies."""

import numpy as np
import pytest

from search_r3_mteb.atomic import (
    left_behind,
    recover,
    removed_folder,
    replaced_folder,
    write_array,
    write_jsonl,
    write_text,
    written_file,
)
from tests.dying import killed_before


def folder_with(path, text):
    path.mkdir(parents=True)
    (path / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole_at_whichever_operation_the_process_dies(tmp_path):
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
    assert (False, "old") in found, "one death falls between the two renames, where only `recover` finds the old folder"


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
    folder_with(tmp_path / ".model.replaced", "old")
    folder_with(tmp_path / ".model.unfinished", "half")
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
