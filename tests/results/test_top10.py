"""results/serving: a way to search is compared with MTEB's ranking, and what differs is counted as that."""

import json

import pytest

from results.serving import same_top10
from results.serving.top10 import asked, compared, counted, evaluated
from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.tasks.beir_folder import read_corpus

WANTED = [(f"d{n}", 1 - n / 100) for n in range(12)]
SETTINGS = {"max_reasoning_tokens": 8, "max_length": 128}


def changed(**scores):
    return [(id_, scores.get(id_, score)) for id_, score in WANTED[:10]]


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (WANTED[:10], "equal"),
        ([*WANTED[:8], WANTED[9], WANTED[8]], "different"),
        ([*WANTED[:9], ("d10", WANTED[9][1])], "different"),  # another document, with the score of the right one
        ([*WANTED[:9], ("d99", WANTED[9][1])], "different"),
        (changed(d3=0.5), "equal"),  # ids in order: scores are compared by themselves
    ],
)
def test_another_document_is_a_difference(found, outcome):
    assert compared(found, WANTED) == outcome


def test_only_documents_of_equal_score_are_ties():
    wanted = [*WANTED[:9], ("d9", 0.5), ("d10", 0.5), ("d11", 0.4)]
    assert compared([*WANTED[:9], ("d10", 0.5)], wanted) == "ties"
    assert compared([*WANTED[:9], ("d11", 0.4)], wanted) == "different"
    assert counted(["ties", "equal", "ties"]) == {"queries": 3, "equal": 1, "ties": 2, "different": 0}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    names = ("Anton", "Hilda", "Laurent", "Bachmann", "Clara", "Otto", "Ida", "Emil", "Nora", "Karl", "Lena", "Max")
    rows = [{"_id": f"d{n}", "title": "", "text": f"{name} founded the harbor."} for n, name in enumerate(names)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": f"Who is {name}?"} for n, name in enumerate(names[:4])]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(3))]  # q3 is judged by none
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_an_index_is_compared_query_by_query(data, tmp_path):
    assert [query.id for query in asked(data)] == ["q0", "q1", "q2"]
    SearchIndex.build(read_corpus(data), SearchR3Encoder("nano", **SETTINGS), tmp_path / "index")
    found = same_top10.measure("direct", data, "nano", SETTINGS, tmp_path)
    assert (found["queries"], found["different"], found["queries_different"]) == (3, 0, [])
    assert found["largest_difference_of_a_score"] < 1e-5
    ranking = evaluated(data, "nano", "direct", SETTINGS, tmp_path)["rankings"]["q0"]
    assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    other = tmp_path / "other"
    rows = [{"id": each.id, "text": each.text[::-1]} for each in read_corpus(data)]
    SearchIndex.build(rows, SearchR3Encoder("nano", **SETTINGS), other / "index")
    assert same_top10.measure("direct", data, "nano", SETTINGS, other)["different"] == 3


@pytest.mark.slow
def test_openais_client_is_compared_query_by_query(data, tmp_path):
    pytest.importorskip("openai")
    from results.serving.openai_top10 import by_client

    found = by_client(data, "nano", SETTINGS)
    for mode in ("direct", "reason"):
        wanted = evaluated(data, "nano", mode, SETTINGS, tmp_path, tmp_path / "kept")["rankings"]
        assert counted(compared(best, wanted[query]) for query, best in found[mode].items())["different"] == 0
    assert list((tmp_path / "kept").glob("*/chunk-*"))  # for the next script
    assert not (tmp_path / "store").exists()
    swapped = {"q0": found["direct"]["q1"]}
    assert [compared(best, wanted[query]) for query, best in swapped.items()] == ["different"]


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why():
    from results.serving.running import serving

    with pytest.raises(RuntimeError, match="There is no model 'no-such'"), serving(["--model", "no-such"]):
        pass
