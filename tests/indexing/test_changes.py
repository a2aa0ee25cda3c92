"""Adding and removing gives what building again would, at once or not at all, while others read."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb import SearchIndex
from search_r3_mteb.indexing import parts, snapshot, writing
from search_r3_mteb.locks import OccupiedError
from tests.dying import killed_before
from tests.indexing.conftest import expected, made, pairs, same
from tests.programs import started

QUERIES = ["the king and the sea", "moon 4", "rain"]


def test_an_index_that_was_changed_answers_as_one_that_is_built(built, encoder, documents):
    left = [each for each in documents if each["id"] not in ("d3", "d29", "d0")]
    added = made(25, first=100)
    assert built.remove(["d3", "d29", "d0"]) == 3
    assert built.add(added[:1]) == 1
    assert built.add(added[1:]) == 24
    assert built.remove("d101") == 1
    now = [*left, added[0], *added[2:]]
    assert len(built) == len(now)
    for mode in ("direct", "reason"):
        same(pairs(built.search(QUERIES, mode, 12)), expected(encoder, now, QUERIES, mode, 12))
    before = pairs(built.search(QUERIES, "direct", 12))
    built.compact()
    assert pairs(built.search(QUERIES, "direct", 12)) == before
    assert [part["removed"] for part in built.parts()] == [0]


def test_an_id_that_is_there_is_refused_or_replaced(built, encoder, documents):
    new = {"id": "d5", "title": "", "text": "something else"}
    with pytest.raises(ValueError, match="has a document 'd5' already"):
        built.add([{"id": "fresh", "text": "x"}, new])
    same(pairs(built.search(QUERIES, "direct", 30)), expected(encoder, documents, QUERIES, "direct", 30))
    assert not (built.folder / "building").exists()
    assert built.add([new], replace=True) == 1
    now = [each for each in documents if each["id"] != "d5"] + [new]
    same(pairs(built.search(QUERIES, "direct", 30)), expected(encoder, now, QUERIES, "direct", 30))
    built.remove("d5")
    built.add([new])  # what was removed may come again
    assert len(built) == len(documents)


def test_ids_that_are_not_there_are_named_and_nothing_is_removed(built):
    with pytest.raises(ValueError, match=r"2 of 3 ids are not in the index, the first is 'no'"):
        built.remove(["d1", "no", "nor this"])
    assert len(built) == 30
    assert built.remove(["d1", "no"], missing_ok=True) == 1
    with pytest.raises(ValueError, match="'d1'"):
        built.remove(["d1"])


def test_all_documents_can_be_removed_and_others_added(built, encoder, documents):
    built.remove(each["id"] for each in documents)
    assert len(built) == 0
    assert built.search("x", "direct")[0].hits == []
    assert list(built.folder.glob("part-*")) == []
    built.add(documents[:3])
    same(pairs(built.search(QUERIES, "direct")), expected(encoder, documents[:3], QUERIES, "direct", 10))


def test_many_small_additions_lie_in_few_parts(built, encoder, documents):
    more = made(20, first=200)
    for each in more:
        built.add([each])
    assert len(built.parts()) <= 6
    assert len(built) == 50
    same(pairs(built.search(QUERIES, "direct", 20)), expected(encoder, [*documents, *more], QUERIES, "direct", 20))
    assert {path.name for path in built.folder.glob("part-*")} == {part["name"] for part in built.parts()}


def test_a_part_of_which_little_is_left_is_rewritten(built, documents):
    built.remove([each["id"] for each in documents[:14]])
    assert [(part["rows"], part["removed"]) for part in built.parts()] == [(30, 14)]
    built.remove([each["id"] for each in documents[14:16]])
    assert [(part["rows"], part["removed"]) for part in built.parts()] == [(14, 0)]


# ---- readers -------------------------------------------------------------------------------------------------------


def test_readers_go_on_and_the_next_search_sees_the_change(built, encoder):
    reader = SearchIndex.open(built.folder, encoder)
    opened = reader._snapshot  # what a search that has begun reads
    built.remove([f"d{n}" for n in range(20)])  # the part is rewritten, its files are gone
    assert not (built.folder / "part-000001").exists()
    vector = encoder.encode_document("moon")
    assert len(opened.nearest(vector[None], 30)[0]) == 30
    assert opened.read([snapshot.Place(0, 3)])[snapshot.Place(0, 3)][0] == "d3"
    assert len(reader) == 10
    assert {hit.id for hit in reader.search("x", "direct", 50)[0].hits} == {f"d{n}" for n in range(20, 30)}


def test_a_change_while_an_index_is_opened_is_followed(built, encoder, monkeypatch):
    real, moments = snapshot.check_part, []

    def changing(*arguments, **keywords):
        if not moments:
            moments.append(True)
            built.remove([f"d{n}" for n in range(20)])
        return real(*arguments, **keywords)

    monkeypatch.setattr(snapshot, "check_part", changing)
    assert len(SearchIndex.open(built.folder, encoder)) == 10


@pytest.mark.parametrize(("kind", "opened"), [("flat", "DocumentTable"), ("hnsw", "Proposer"), ("ivf", "Proposer")])
def test_a_part_that_is_removed_between_its_check_and_its_opening_is_followed(
    documents, encoder, tmp_path, monkeypatch, kind, opened
):
    """Regression: SQLite's own error, and FAISS', reached who searched while another process changed the index."""
    built = SearchIndex.build(documents, encoder, tmp_path / "index", kind=kind)
    real, moments = getattr(parts, opened), []

    def removed(*arguments):
        if not moments:
            moments.append(True)
            built.remove([f"d{n}" for n in range(20)])
            built.compact()
        return real(*arguments)

    monkeypatch.setattr(parts, opened, removed)
    assert len(SearchIndex.open(built.folder, encoder)) == 10
    assert moments


def test_another_process_that_writes_is_named_and_readers_are_not_kept_out(built, encoder):
    code = (
        "import sys; from pathlib import Path; from search_r3_mteb.locks import occupy; "
        "occupy(Path(sys.argv[1]), 'indexing'); print('there', flush=True); sys.stdin.read()"
    )
    other = started("-c", code, built.folder, stdin=subprocess.PIPE)
    try:
        assert other.stdout.readline() == "there\n"
        for change in (lambda: built.remove("d1"), lambda: built.add(made(1, 500)), built.compact):
            with pytest.raises(OccupiedError, match=f"another indexing works in this folder, process {other.pid}"):
                change()
        assert len(SearchIndex.open(built.folder, encoder).search("x", "direct")[0].hits) == 10
    finally:
        other.kill()
        other.communicate()
    assert built.remove("d1") == 1  # the lock died with its process


def test_threads_of_one_process_write_one_after_the_other(built):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(built.remove, [f"d{n}" for n in range(12)])) == [1] * 12
    assert len(built) == 18


def test_searches_in_other_threads_see_one_state_or_the_other(built, encoder):
    from concurrent.futures import ThreadPoolExecutor

    text = "a text of its own"
    vector = encoder.encode_document(text)[None]
    without = pairs(built.find([text], vector, 40))
    index, done, seen = SearchIndex.open(built.folder, encoder), [], set()

    def search():
        while not done:
            found = pairs(index.find([text], vector, 40))
            seen.add(len(found[0]))
            assert found == without or (found[0][0][0] == "x" and found[0][1:] == without[0])

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(search) for _ in range(3)]
        try:
            for _ in range(8):
                built.add([{"id": "x", "text": text}])
                built.remove("x")
        finally:
            done.append(True)
        for each in running:
            each.result()
    assert seen == {30, 31}


# ---- kills ---------------------------------------------------------------------------------------------------------

CHANGES = {
    "add": lambda index: index.add([*made(2, 300), {"id": "d2", "text": "new"}], replace=True),
    "merge": lambda index: index.add(made(20, 300)),
    "remove": lambda index: index.remove(["d1", "d7"]),
    "rewrite": lambda index: index.remove([f"d{n}" for n in range(20)]),
    "compact": lambda index: index.compact(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_killed_change_is_not_there_or_complete(built, encoder, name, tmp_path):
    built.remove("d29")
    before = pairs(built.search(QUERIES, "direct", 40))
    target = shutil.copytree(built.folder, tmp_path / "whole")
    CHANGES[name](SearchIndex.open(target, encoder))
    after = pairs(SearchIndex.open(target, encoder).search(QUERIES, "direct", 40))
    outcomes, moment = set(), 0
    while True:
        folder = tmp_path / f"at-{moment}"
        shutil.copytree(built.folder, folder)
        with killed_before(moment) as died:
            CHANGES[name](SearchIndex.open(folder, encoder))
        found = pairs(SearchIndex.open(folder, encoder).search(QUERIES, "direct", 40))
        assert found in (before, after)
        outcomes.add("after" if found == after else "before")
        if found != after:  # the same again
            CHANGES[name](SearchIndex.open(folder, encoder))
        else:
            SearchIndex.open(folder, encoder).remove("no such id", missing_ok=True)
        assert pairs(SearchIndex.open(folder, encoder).search(QUERIES, "direct", 40)) == after
        named = {part["name"] for part in SearchIndex.open(folder).parts()}
        assert {path.name.partition(".")[0] for path in folder.glob("part-*")} <= named
        assert list(folder.glob(".part.*")) == []
        shutil.rmtree(folder)
        if not died:
            break
        moment += 1 if moment < 3 else 5
    assert moment > 8
    assert "after" in outcomes


def stopping(documents, after):
    yield from documents[:after]
    raise KeyboardInterrupt


def test_a_build_that_was_stopped_goes_on(encoder, documents, built, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "EMBEDDED_AT_ONCE", 8)
    embedded, real = [], type(encoder).encode_document

    def counted(self, texts, **keywords):
        embedded.extend(texts)
        return real(self, texts, **keywords)

    monkeypatch.setattr(type(encoder), "encode_document", counted)
    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        SearchIndex.build(stopping(documents, 20), encoder, folder)
    assert len(embedded) == 16  # two chunks
    with pytest.raises(FileNotFoundError, match=r"whose building was stopped\. Start the same"):
        SearchIndex.open(folder, encoder)
    with pytest.raises(ValueError, match="There are no documents"):
        SearchIndex.build([], encoder, folder)  # an empty pipe, say: what was computed is kept
    resumed = SearchIndex.build(documents, encoder, folder)
    assert len(embedded) == 30
    assert not (folder / "building").exists()
    whole = SearchIndex.build(documents, encoder, tmp_path / "whole")
    [one], [other] = folder.glob("part-*/vectors.npy"), (tmp_path / "whole").glob("part-*/vectors.npy")
    assert one.read_bytes() == other.read_bytes()
    assert pairs(resumed.search(QUERIES)) == pairs(whole.search(QUERIES))


def test_an_addition_that_was_stopped_goes_on(built, encoder, monkeypatch):
    monkeypatch.setattr(writing, "EMBEDDED_AT_ONCE", 4)
    with pytest.raises(KeyboardInterrupt):
        built.add(stopping(made(20, 400), 13))
    assert len(built) == 30
    built.remove("d0")  # in between
    calls, real = [], type(encoder).encode_document
    monkeypatch.setattr(
        type(encoder), "encode_document", lambda self, texts, **kw: calls.extend(texts) or real(self, texts, **kw)
    )
    assert built.add(made(20, 400)) == 20
    assert len(calls) == 8
    assert len(built) == 49


def test_what_a_failed_build_keeps_is_said(encoder, documents, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(writing, "EMBEDDED_AT_ONCE", 8)
    folder, wrong = tmp_path / "index", {"id": "d0", "text": "the same id again"}
    with pytest.raises(ValueError, match="have the id 'd0'"):
        SearchIndex.build([*documents, wrong], encoder, folder)
    assert f"{folder / 'building'} keeps the vectors that were computed" in caplog.text
    assert len(SearchIndex.build(documents, encoder, folder)) == 30
    assert not (folder / "building").exists()
    caplog.clear()

    def broken(self, texts, **keywords):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(type(encoder), "encode_document", broken)
        with pytest.raises(MemoryError):
            SearchIndex.build(documents, encoder, tmp_path / "other")
        with pytest.raises(MemoryError):
            SearchIndex.open(folder, encoder).add([{"id": "new", "text": "x"}])
    assert not (tmp_path / "other" / "building").exists()
    assert not (folder / "building").exists()
    assert "keeps the vectors" not in caplog.text


KILLED = """
import sys
from pathlib import Path
from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.indexing import writing
from tests.indexing.conftest import made
writing.EMBEDDED_AT_ONCE = 16
encoder = SearchR3Encoder("nano", mode="direct")
print("ready", flush=True)
SearchIndex.build(made(3000), encoder, sys.argv[1])
print("built", flush=True)
"""


@pytest.mark.slow
def test_kill_minus_nine_at_any_time_and_the_same_command_again(tmp_path):
    """The build of a real model is killed again and again; what it ends with is what an undisturbed one gives."""
    folder, kills = tmp_path / "killed", 0
    while True:
        process = started("-c", KILLED, folder)
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(timeout=0.5 + 0.7 * kills)
        except subprocess.TimeoutExpired:
            process.kill()
        said = process.communicate()[0]
        if "built" in said:
            break
        kills += 1
    assert kills >= 2
    whole = started("-c", KILLED, tmp_path / "whole")
    assert "built" in whole.communicate()[0]
    one, other = (next(Path(place).glob("part-*/vectors.npy")) for place in (folder, tmp_path / "whole"))
    np.testing.assert_array_equal(np.load(one), np.load(other))
    found = [SearchIndex.open(place, "nano").search(QUERIES, "direct", 20) for place in (folder, tmp_path / "whole")]
    assert pairs(found[0]) == pairs(found[1])
