"""The store: rows are found again under their own settings only, and a kill costs one chunk at most."""

import os
import signal
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.store import Store, StoredThought, fingerprint_of
from tests.encoder.stored_files import files_of
from tests.programs import started

DIM = 4
PRINT = "ab" * 32


def vectors_of(texts):
    """A vector that only depends on the text, so that recomputing gives the same bytes."""
    return np.array([np.frombuffer(text.encode().ljust(DIM)[:DIM], dtype=np.uint8) for text in texts], np.float32)


def fill(store, texts, chunk=3):
    """What the encoder does: what is missing, in a fixed order, one chunk at a time."""
    todo = sorted(store.missing(texts), key=lambda position: texts[position])
    for start in range(0, len(todo), chunk):
        part = [texts[position] for position in todo[start : start + chunk]]
        store.append(part, vectors_of(part), [StoredThought(f"about {t}", [1, 2], True) for t in part], seconds=3.0)


def test_lookup_returns_rows_in_the_order_asked_across_chunks_and_reopening(tmp_path):
    texts = [f"text {n}" for n in range(10)]
    fill(Store(tmp_path, PRINT, "query", DIM), texts)
    store = Store(tmp_path, PRINT, "query", DIM)
    asked = [texts[7], texts[0], texts[7], texts[9]]
    assert store.missing(texts) == []
    np.testing.assert_array_equal(store.lookup(asked), vectors_of(asked))
    assert [thought.text for thought in store.thoughts(asked)] == [f"about {text}" for text in asked]
    assert store.thoughts(asked)[0] == StoredThought("about text 7", [1, 2], True)
    assert len(store) == 10
    assert len(list(store.folder.glob("chunk-*"))) == 4
    # Chunks of 3 rows took 3 seconds each, the last one row 3 seconds; three different texts were asked for.
    assert store.seconds([texts[0], texts[1], texts[1]]) == pytest.approx(2.0)


def test_missing_names_each_text_once_in_order(tmp_path):
    store = Store(tmp_path, PRINT, "query", DIM)
    store.append(["b"], vectors_of(["b"]))
    assert store.missing(["c", "b", "a", "c", "a"]) == [0, 2]
    assert store.missing([]) == []
    assert store.lookup([]).shape == (0, DIM)


@pytest.mark.parametrize(
    "other", [{"fingerprint": "cd" * 32}, {"role": "document"}], ids=["another checkpoint", "another role"]
)
def test_another_fingerprint_or_role_finds_nothing(tmp_path, other):
    fill(Store(tmp_path, PRINT, "query", DIM), ["a", "b"])
    store = Store(tmp_path, **{"fingerprint": PRINT, "role": "query", "dim": DIM, **other})
    assert store.missing(["a", "b"]) == [0, 1]
    with pytest.raises(ValueError, match="2 of 2 texts are not stored"):
        store.lookup(["a", "b"])


def test_instructions_are_part_of_the_key(tmp_path):
    store = Store(tmp_path, PRINT, "query", DIM)
    store.append(["ab"], vectors_of(["ab"]), instructions=["c"])
    assert store.missing(["ab"], ["c"]) == []
    assert store.missing(["ab"]) == [0]
    assert store.missing(["ab"], ["d"]) == [0]
    assert store.missing(["a"], ["bc"]) == [0]  # the same letters, cut elsewhere
    assert store.missing(["ab"], [None]) == store.missing(["ab"], [""]) == [0]


@pytest.mark.parametrize("text", ["", " ", "\0", "a\0", "\ud800", "שלום", "x" * 100_000])
def test_any_text_is_a_key(tmp_path, text):
    store = Store(tmp_path, PRINT, "query", DIM)
    store.append([text, "other"], np.ones((2, DIM), np.float32), [StoredThought(text, [3], False)] * 2)
    again = Store(tmp_path, PRINT, "query", DIM)
    assert again.missing([text]) == []
    assert again.thoughts([text]) == [StoredThought(text, [3], False)]
    assert again.missing([text + "\0"]) == [0]


def test_many_chunks_are_found_again(tmp_path):
    texts = [f"{n}" for n in range(300)]
    store = Store(tmp_path, PRINT, "document", DIM)
    for start in range(0, 300, 7):
        store.append(texts[start : start + 7], vectors_of(texts[start : start + 7]))
        assert store.missing(texts) == list(range(min(start + 7, 300), 300))
    np.testing.assert_array_equal(store.lookup(texts[::-1]), vectors_of(texts[::-1]))


KILLED = """
    import os, signal, sys
    import search_r3_mteb.encoder.stored_chunks as module
    from search_r3_mteb.encoder.store import Store
    sys.path.insert(0, {here!r})
    from test_store import DIM, PRINT, fill
    writes = 0
    original = module.{victim}
    def dying(*arguments, **keywords):
        global writes
        writes += 1
        if writes == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)
    store = Store({folder!r}, PRINT, "query", DIM)
    module.{victim} = dying
    fill(store, [f"text {{n}}" for n in range(10)])
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize(
    ("victim", "after"),
    [
        ("write_array", 1),
        ("write_array", 2),
        ("write_array", 4),
        ("write_text", 1),
        ("write_text", 2),
        ("write_text", 4),
    ],
)
def test_killed_at_any_write_and_started_again_gives_the_same_files(tmp_path, victim, after):
    texts = [f"text {n}" for n in range(10)]
    fill(Store(tmp_path / "whole", PRINT, "query", DIM), texts)
    code = textwrap.dedent(KILLED).format(
        here=str(Path(__file__).parent), folder=str(tmp_path / "killed"), victim=victim, after=after
    )
    killed = started("-c", code)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert files_of(tmp_path / "whole") != files_of(tmp_path / "killed")  # it did die in the middle
    store = Store(tmp_path / "killed", PRINT, "query", DIM)
    kept = 10 - len(store.missing(texts))
    assert kept % 3 == 0  # complete chunks only
    fill(store, texts)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed")


def test_two_writers_at_once_share_the_work_and_lose_nothing(tmp_path):
    first, second = (Store(tmp_path, PRINT, "query", DIM) for _ in range(2))
    first.append(["a", "b"], vectors_of(["a", "b"]), seconds=1.0)
    second.append(["a", "b"], vectors_of(["a", "b"]), seconds=9.0)  # the same chunk: the first copy stays
    second.append(["b", "c"], vectors_of(["b", "c"]))  # overlaps
    assert first.missing(["a", "b", "c"]) == []
    np.testing.assert_array_equal(first.lookup(["c", "b", "a"]), vectors_of(["c", "b", "a"]))
    assert Store(tmp_path, PRINT, "query", DIM).seconds(["a", "b"]) <= 1.0
    assert not list(first.folder.glob(".chunk*"))


WRITING = """
import sys
import numpy as np
from search_r3_mteb.encoder import store
from tests.encoder.test_store import DIM, PRINT
def write_chunk(folder, *_):
    print("writing", flush=True)
    sys.stdin.read()
store.write_chunk = write_chunk
store.Store(sys.argv[1], PRINT, "query", DIM).append(["a"], np.ones((1, DIM), np.float32))
"""


@pytest.mark.skipif(os.name != "posix", reason="asks the system for the owner of a lock")
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    processes = [started("-c", WRITING, tmp_path, stdin=subprocess.PIPE) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in processes] == ["writing\n"] * 2
        folder = Store(tmp_path, PRINT, "query", DIM).folder
        assert len(list(folder.glob(".chunk.*.unfinished"))) == 2
        processes[0].kill()
        processes[0].wait()
        Store(tmp_path, PRINT, "query", DIM)
        assert len(list(folder.glob(".chunk.*.unfinished"))) == len(list(folder.glob(".chunk.*.lock"))) == 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    Store(tmp_path, PRINT, "query", DIM)
    assert [path.name for path in folder.iterdir()] == ["store.json"]


def test_what_cannot_be_stored_is_refused(tmp_path):
    store = Store(tmp_path, PRINT, "query", DIM)
    with pytest.raises(ValueError, match="not finite"):
        store.append(["a"], np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"shape \(1, 4\), got \(1, 5\)"):
        store.append(["a"], np.ones((1, DIM + 1), np.float32))
    with pytest.raises(ValueError, match="occurs twice"):
        store.append(["a", "a"], np.ones((2, DIM), np.float32))
    with pytest.raises(ValueError, match="2 instructions for 1 texts"):
        store.missing(["a"], ["x", "y"])
    with pytest.raises(ValueError, match="role must be one of query, document, got 'passage'"):
        Store(tmp_path, PRINT, "passage", DIM)
    with pytest.raises(ValueError, match="hex digest"):
        Store(tmp_path, "../escape", "query", DIM)
    assert len(store) == 0
    assert not list(store.folder.glob("*chunk*"))


def test_vectors_without_thoughts_say_so(tmp_path):
    store = Store(tmp_path, PRINT, "document", DIM)
    store.append(["a"], vectors_of(["a"]))
    with pytest.raises(ValueError, match="holds vectors only"):
        store.thoughts(["a"])


def test_a_foreign_folder_is_named(tmp_path):
    store = Store(tmp_path, PRINT, "query", DIM)
    fill(store, ["a", "b"])
    with pytest.raises(ValueError, match="vectors of different settings must not mix"):
        Store(tmp_path, PRINT, "query", DIM + 1)


def test_the_fingerprint_sees_every_part_and_no_order():
    base = {"weights": "1", "max_length": 512, "seed": 0}
    assert fingerprint_of(base) == fingerprint_of(dict(reversed(base.items())))
    for key, value in (("weights", "2"), ("max_length", "512"), ("seed", 1)):
        assert fingerprint_of({**base, key: value}) != fingerprint_of(base)
    with pytest.raises(TypeError):
        fingerprint_of({"dtype": object()})
