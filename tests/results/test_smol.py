"""What smol is trained on and judged by: targets, splits, the gate's scores and intervals, by hand."""

import json

import numpy as np
import pytest

from results.smol.gates import JudgedSplit, interval, run, shown, unit
from results.smol.own_text import drawn, likelihood
from results.smol.smol_data import Sentences, code, cut, digest, judged, prose
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.train.loops import byte_folder


def test_the_nearest_sentence_shares_the_rarest_words():
    texts = [
        "The river is long. The bridge is old and made of stone.",
        "The river is wide.",
        "The river sings at night.",
    ]
    sentences = Sentences(texts)
    assert sentences.best("which old bridge crosses the river", texts[0]) == "The bridge is old and made of stone."
    assert sentences.best("the long river", texts[0]) == "The river is long."
    assert sentences.best("anything", "no sentence here") == "no sentence here"
    assert cut("a b c d", 2) == "a b"


def test_rows_of_pairs():
    pairs = [("old bridge", "The river is long. The bridge is old and made of stone."), ("hill", "A hill.")]
    row = next(prose(pairs))
    assert row["reasoning"] == "The bridge is old and made of stone."
    assert next(code([("add", "def add(a, b):\n    return a + b\n")]))["reasoning"] == "def add(a, b):"


@pytest.fixture
def folder(tmp_path):
    corpus = [
        ("a", "", "statins and the heart pubmed ncbi abstract a study of statins"),
        ("b", "Bridges", "Stone bridges are old. They last for long."),
        ("c", "", "nothing of note is said here"),
    ]
    qrels = {"dev": [("q", "a", 2), ("q", "b", 1), ("p", "c", 1), ("n", "c", 0)]}
    queries = [("q", "old stone"), ("p", "note"), ("n", "nothing")]
    return write_beir(tmp_path / "set", corpus=corpus, queries=queries, qrels=qrels) or tmp_path / "set"


def test_a_row_per_relevant_document_with_its_title_and_sentence(folder):
    rows = list(judged(folder, "dev"))
    assert [(row["query_id"], row["positive_id"]) for row in rows] == [("p", "c"), ("q", "a"), ("q", "b")]
    assert rows[1]["reasoning"] == "statins and the heart. a study of statins"
    assert rows[2]["reasoning"] == "Bridges. Stone bridges are old."
    assert rows[2]["positive"] == "Bridges Stone bridges are old. They last for long."
    assert [row["positive_id"] for row in judged(folder, "dev", 1)] == ["c", "a"], "the most relevant first"


def test_the_gate_scores_as_pytrec_eval(folder):
    import pytrec_eval

    data = JudgedSplit(folder, "dev", None)
    assert data.ids == ["p", "q"], "a query without a relevant document has no score"
    data.vectors = unit(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    queries = unit(np.array([[1, 0.1], [0, 1]], np.float32))
    names = list(data.documents)
    run = {
        id_: {names[d]: float(s) for d, s in enumerate(row)}
        for id_, row in zip(data.ids, queries @ data.vectors.T, strict=True)
    }
    qrels = {"p": {"c": 1}, "q": {"a": 2, "b": 1}}
    wanted = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    np.testing.assert_allclose(data.ndcg(queries), [wanted[id_]["ndcg_cut_10"] for id_ in data.ids], atol=1e-6)


def test_titles_of_the_hits_stand_below_the_query(folder):
    data = JudgedSplit(folder, "dev", None)
    data.vectors = unit(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    hits = data.top_titles(unit(np.array([[0.1, 1], [1, 0]], np.float32)), 2)
    assert hits == [["nothing of note is said here", "Bridges"], [cut(data.documents["a"], 12), "Bridges"]]
    assert shown(data, hits)[0] == "note\nnothing of note is said here\nBridges"


def test_the_gate_of_a_tiny_model_has_every_way(folder, tmp_path):
    """The three ways with the hits' titles are measured beside Rocchio on the same hits, each by its own vectors."""
    table = run(str(byte_folder(tmp_path / "model")), "float32", folder, "dev", None, 0, 0.7)["table"]
    ways = {"title of the first hit", "titles of the first 3 hits", "own, the 3 titles in its prompt", "Rocchio, top 3"}
    assert ways < table.keys()
    assert all(set(table[way]) == {"alone", "0.3", "0.5", "1", "2"} for way in ways)


def test_a_likelihood_and_an_interval_by_hand():
    documents = np.eye(2, dtype=np.float32)
    found = likelihood(np.array([[1, 0]], np.float32), documents, [[0, 1]])
    sharp = np.log(1 / (1 + np.exp(-20.0)))
    assert found[0] == pytest.approx((sharp + sharp - 20) / 2)
    assert interval(np.full(50, 0.25)) == [0.25, 0.25, 0.25]
    low, high = interval(np.array([1.0, -1.0] * 50))[1:]
    assert low < 0 < high


def test_queries_are_drawn_once_each_under_a_seed(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"query": f"q{n % 7}", "positive": f"d{n}"} for n in range(21)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = drawn(file, 4)
    assert len(first) == 4
    assert first == drawn(file, 4)
    assert all(len(own) == 3 for own in first.values())
    assert digest("a") != digest("b")
