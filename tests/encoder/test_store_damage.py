"""A damaged store never gives a vector that was not stored: each damage is named, set aside and computed again.

`shaken` is the property: seeded damages of every file of a small store, and each time the same vectors, thoughts and
seconds as before. `python -m tests.encoder.test_store_damage SEED COUNT` does it as often as one likes.
"""

import json
import logging
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder import store as store_module
from search_r3_mteb.encoder.store import Store, StoredThought
from search_r3_mteb.encoder.stored_chunks import CHUNK_FILE, StoredChunk, sealed
from tests.programs import mostly_slow

DIM, PRINT, OTHER = 4, "ab" * 32, "cd" * 32
TEXTS = [f"text {number}" for number in range(6)]
PARTS = (TEXTS[:3], TEXTS[3:])
FILES = ("keys.npy", "vectors.npy", "thoughts.jsonl", CHUNK_FILE)


def vectors_of(texts, scale=1.0):
    return np.array([[scale * (TEXTS.index(text) + 1), 1, 2, 3] for text in texts], np.float32)


def thoughts_of(texts):
    return [StoredThought(f"about {text}", [TEXTS.index(text), 7], True) for text in texts]


def fill(store, scale=1.0):
    """Compute what is missing, as the encoder does; the texts that were."""
    computed = []
    for part in PARTS:
        texts = [part[position] for position in store.missing(part)]
        if texts:
            store.append(texts, vectors_of(texts, scale), thoughts_of(texts), seconds=3.0)
        computed += texts
    return computed


def whole(folder):
    fill(Store(folder, PRINT, "query", DIM))
    return folder


def assert_as_before(folder):
    """What an encoder would get from the store now; the texts that had to be computed."""
    store = Store(folder, PRINT, "query", DIM)
    computed = fill(store)
    np.testing.assert_array_equal(store.lookup(TEXTS), vectors_of(TEXTS))
    assert store.thoughts(TEXTS) == thoughts_of(TEXTS)
    assert store.seconds(TEXTS) == pytest.approx(6.0)
    return computed


def damage(folder, rng):
    """One random damage of one random file: a flip, a byte, a cut, zeros, an end, or its removal; its description."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    content, kind = bytearray(path.read_bytes()), rng.choice(["flip"] * 6 + ["byte", "cut", "zeros", "more", "gone"])
    place = rng.randrange(len(content))
    before = bytes(content)
    if kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[place] = rng.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place:] = bytes(len(content) - place)
    elif kind == "more":
        content += bytes([rng.randrange(256)])
    path.unlink() if kind == "gone" else path.write_bytes(content)
    return path, f"{kind} at {place} of {path.relative_to(folder)}", kind == "gone" or bytes(content) != before


def shaken(folder, seed, count, said):
    """Damage the store `count` times and compare each time; `said()` are the warnings since the last call."""
    rng = random.Random(seed)
    whole(folder / "intact")
    for number in range(count):
        place = folder / f"store-{number}"
        shutil.copytree(folder / "intact", place)
        path, what, changed = damage(place, rng)
        computed = assert_as_before(place)
        warnings = said()
        where = f"seed {seed}, number {number}: {what}"
        if not changed:
            assert not warnings, where
        elif path.name == "store.json":
            assert computed == [], where  # the chunks say themselves whose they are
        else:
            assert len(computed) == 3, where
            assert re.search(rf"{path.parent.name} is damaged .*{path.name}", warnings), where
            [aside] = place.glob("*/damaged-chunk-*")
            assert path.parent.name in aside.name, where
            assert len(list(place.glob("*/chunk-*"))) == 2, where
        shutil.rmtree(place)


@pytest.fixture
def said(caplog):
    """The warnings since the last call, as one text."""

    def since():
        text = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
        caplog.clear()
        return text

    return since


@pytest.mark.parametrize("seed", mostly_slow(range(3), 0))
def test_no_random_damage_is_accepted(tmp_path, said, seed):
    shaken(tmp_path, seed, 150, said)


def test_without_the_checksums_damage_would_pass(tmp_path, said, monkeypatch):
    """The negative control: the property fails where the rows are not compared."""
    monkeypatch.setattr(StoredChunk, "check", lambda self: None)
    with pytest.raises((AssertionError, ValueError)):
        shaken(tmp_path, 0, 150, said)


@pytest.mark.parametrize("name", FILES)
def test_every_bit_of_a_header_and_of_a_short_file(tmp_path, said, name):
    """Headers by every byte: what numpy or JSON make of a damaged one never reaches the caller."""
    whole(tmp_path / "intact")
    size = (next((tmp_path / "intact").glob("*/chunk-*")) / name).stat().st_size
    for place in range(0, min(size, 136), 3):
        folder = tmp_path / f"{place}"
        shutil.copytree(tmp_path / "intact", folder)
        path = sorted(folder.glob("*/chunk-*"))[place % 2] / name
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        assert len(assert_as_before(folder)) == 3
        assert name in said()
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
def test_files_that_two_chunks_exchange_are_noticed(tmp_path, said, name):
    whole(tmp_path)
    first, second = (path / name for path in sorted(tmp_path.glob("*/chunk-*")))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert sorted(assert_as_before(tmp_path)) == TEXTS
    assert said().count("is damaged") == 2


def test_chunks_that_exchange_names_are_noticed(tmp_path, said):
    whole(tmp_path)
    first, second = sorted(tmp_path.glob("*/chunk-*"))
    first.rename(tmp_path / "between")
    second.rename(first)
    (tmp_path / "between").rename(second)
    assert sorted(assert_as_before(tmp_path)) == TEXTS
    assert f"its keys are those of {second.name}" in said()


@pytest.mark.parametrize("other", [{"fingerprint": OTHER}, {"role": "document"}, {"fingerprint": OTHER, "dim": 5}])
def test_a_chunk_of_another_store_is_noticed(tmp_path, said, other):
    """Under its own name: the same texts in another model's folder have the same keys."""
    settings = {"fingerprint": PRINT, "role": "query", "dim": DIM} | other
    foreign = Store(tmp_path / "foreign", **settings)
    vectors = np.zeros((3, settings["dim"]), np.float32)
    foreign.append(TEXTS[:3], vectors, thoughts_of(TEXTS[:3]))
    [chunk] = foreign.folder.glob("chunk-*")
    target = Store(tmp_path / "ours", PRINT, "query", DIM).folder / chunk.name
    shutil.copytree(chunk, target)
    assert assert_as_before(tmp_path / "ours") == TEXTS
    assert "it belongs to another store" in said()


def test_what_a_chunk_says_of_its_arrays_is_compared_with_them(tmp_path, said):
    """With right checksums over wrong arrays, as a faulty program would write them."""
    import hashlib

    whole(tmp_path)
    chunks = sorted(tmp_path.glob("*/chunk-*"))
    for chunk, array in zip(chunks, (np.zeros((3, DIM)), np.zeros((2, DIM), np.float32)), strict=True):
        np.save(chunk / "vectors.npy", array)
        content = (chunk / "vectors.npy").read_bytes()
        manifest = json.loads((chunk / CHUNK_FILE).read_text())
        del manifest["checksum"]
        manifest["files"]["vectors.npy"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (chunk / CHUNK_FILE).write_text(sealed(manifest))
    assert sorted(assert_as_before(tmp_path)) == TEXTS
    warnings = said()
    assert "holds float64 of shape (3, 4) for 3 rows" in warnings
    assert "holds float32 of shape (2, 4) for 3 rows" in warnings


def test_damage_after_opening_is_found_before_the_first_use(tmp_path, said):
    whole(tmp_path)
    store = Store(tmp_path, PRINT, "query", DIM)
    path = sorted(tmp_path.glob("*/chunk-*"))[0] / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="3 of 6 texts are not stored"):
        store.lookup(TEXTS)
    assert "vectors.npy does not match its checksum" in said()
    assert len(fill(store)) == 3
    np.testing.assert_array_equal(store.lookup(TEXTS), vectors_of(TEXTS))


def test_two_processes_that_find_the_same_damage_both_go_on(tmp_path, said):
    whole(tmp_path)
    path = sorted(tmp_path.glob("*/chunk-*"))[0] / "vectors.npy"
    first, second = (Store(tmp_path, PRINT, "query", DIM) for _ in range(2))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(fill(first)) == 3
    assert fill(second) == []  # the intact chunk that the first one wrote
    np.testing.assert_array_equal(second.lookup(TEXTS), vectors_of(TEXTS))
    assert said().count("is damaged") == 1


def test_a_store_without_checksums_is_refused_and_kept(tmp_path):
    folder = tmp_path / f"query-{PRINT}"
    folder.mkdir()
    (folder / "store.json").write_text(
        json.dumps({"format": 1, "fingerprint": PRINT, "role": "query", "dim": DIM}, indent=2) + "\n"
    )
    (folder / "chunk-0").mkdir()
    with pytest.raises(ValueError, match=r"written by an earlier version, without checksums.*Delete that folder"):
        Store(tmp_path, PRINT, "query", DIM)
    assert sorted(path.name for path in folder.iterdir()) == ["chunk-0", "store.json"]


def test_a_file_that_may_not_be_read_is_not_damage(tmp_path, monkeypatch):
    whole(tmp_path)

    def refused(*arguments):
        raise PermissionError(13, "Permission denied", "store")

    monkeypatch.setattr(store_module, "read_chunk", refused)
    with pytest.raises(PermissionError):
        Store(tmp_path, PRINT, "query", DIM)
    assert len(list(tmp_path.glob("*/chunk-*"))) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        texts: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("search_r3_mteb").addHandler(handler)

        def since() -> str:
            found = "\n".join(texts)
            texts.clear()
            return found

        shaken(Path(made), int(sys.argv[1]), int(sys.argv[2]), since)
        print(f"seed {sys.argv[1]}: {sys.argv[2]} damages, none accepted")
