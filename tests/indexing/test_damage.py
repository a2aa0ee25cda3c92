"""A damaged index is refused by the name of the file."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb import SearchIndex
from search_r3_mteb.disk import explained
from search_r3_mteb.encoder.stored_chunks import sealed
from search_r3_mteb.indexing.approximate import write_faiss
from search_r3_mteb.indexing.documents import DocumentWriter
from search_r3_mteb.indexing.settings import IndexSettings
from tests.indexing.conftest import made


@pytest.fixture
def index(encoder, documents, tmp_path):
    """With a graph, and a file of removed rows."""
    found = SearchIndex.build(documents, encoder, tmp_path / "index", kind="hnsw")
    found.remove(["d3"])
    return found


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_a_changed_bit_in_any_file_is_found(index, encoder):
    names = [path.relative_to(index.folder).as_posix() for path in files_of(index.folder)]
    assert {Path(name).name.partition(".")[0] for name in names} == {"index", "documents", "vectors", "part-000001"}
    assert len(names) == 5
    for path in files_of(index.folder):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(ValueError, match=rf"{path.name}.* (does not match .*checksum|not JSON)"):
                SearchIndex.open(index.folder, encoder)
        path.write_bytes(content)
    assert len(SearchIndex.open(index.folder, encoder)) == 29


def test_a_state_that_is_not_json_is_named_once(index, encoder):
    with (index.folder / "index.json").open("a") as stream:
        stream.write("}")
    with pytest.raises(ValueError, match=rf"{index.folder.name}: index\.json, line \d+: not JSON \(.*\)\. Copy the"):
        SearchIndex.open(index.folder, encoder)


def test_a_short_file_is_found_without_reading_it_and_a_missing_one(index, encoder):
    for path in files_of(index.folder):
        if path.name == "index.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=rf"{path.name} has {len(content) - 1} bytes instead of {len(content)}"):
            SearchIndex.open(index.folder, encoder, verify=False)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} is missing"):
            SearchIndex.open(index.folder, encoder, verify=False)
        path.write_bytes(content)


def test_a_state_of_another_version_or_of_something_else_is_named(index, encoder):
    path = index.folder / "index.json"
    found = json.loads(path.read_text())
    del found["checksum"]
    for change, message in (
        ({"version": 2}, "has format version 2, not 1. Install a newer"),
        ({"format": "other"}, "not the state of a search-r3 index"),
    ):
        path.write_text(sealed(found | change))
        with pytest.raises(ValueError, match=message):
            SearchIndex.open(index.folder, encoder)


@pytest.mark.parametrize("change", ["add", "remove", "compact"])
def test_a_change_copies_nothing_that_is_damaged(built, encoder, change, tmp_path):
    """A copy has new checksums, by which the damage would pass for what was written."""
    [vectors] = built.folder.glob("part-*/vectors.npy")
    content = bytearray(vectors.read_bytes())
    content[-3] ^= 1
    vectors.write_bytes(bytes(content))
    index = SearchIndex.open(built.folder, encoder, verify=False)  # nothing was compared
    with pytest.raises(ValueError, match=r"vectors\.npy does not match its checksum"):
        {
            "add": lambda: index.add(made(20, 300)),
            "remove": lambda: index.remove([f"d{n}" for n in range(20)]),
            "compact": index.compact,
        }[change]()
    assert vectors.exists()


def test_an_index_that_is_moved_is_the_same(index, encoder, tmp_path):
    moved = shutil.move(index.folder, tmp_path / "else where?#%")
    assert len(SearchIndex.open(moved, encoder).search("x", "direct", 50)[0].hits) == 29


# ---- full disks ----------------------------------------------------------------------------------------------------


def test_sqlite_without_room_is_a_full_disk(tmp_path):
    writer = DocumentWriter(tmp_path / "documents.sqlite")
    writer._connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(OSError, match="No space left") as raised:
        writer.add([(str(n), "", "x" * 500) for n in range(100)])
    writer.abandon()
    assert raised.value.errno == errno.ENOSPC
    assert "documents.sqlite could not be written: there is not enough space" in explained(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_faiss_without_room_is_a_full_disk():
    rows = np.eye(64, 8, dtype=np.float32) + 0.1
    with pytest.raises(OSError, match="No space left") as raised:
        write_faiss(Path("/dev/full"), "hnsw", rows, IndexSettings())
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="No such file"):  # another reason stays what it is
        write_faiss(Path("/nowhere/at all"), "hnsw", rows, IndexSettings())
