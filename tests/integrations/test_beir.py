"""BEIR's own search and evaluation, run on the encoder."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.documents import document_texts, join_title
from search_r3_mteb.encoder.encoder import SearchR3Encoder

CORPUS = {
    "d1": {"title": "Cats", "text": "they sleep all day"},
    "d2": {"title": "", "text": "dogs bark"},
    "d3": {"title": "Birds", "text": "some of them sing"},
}
QUERIES = {"q1": "who sleeps", "q2": "who sings"}


@pytest.fixture
def encoder(tiny_checkpoint):
    return SearchR3Encoder(tiny_checkpoint, max_reasoning_tokens=4)


def test_exact_search_and_evaluation_agree_with_our_own_vectors(encoder):
    import pytrec_eval
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    retriever = EvaluateRetrieval(DenseRetrievalExactSearch(encoder, batch_size=2), score_function="cos_sim")
    results = retriever.retrieve(CORPUS, QUERIES)
    ours = encoder.encode_query(list(QUERIES.values())) @ encoder.encode_document(list(CORPUS.values())).T
    for row, query in enumerate(QUERIES):
        assert results[query] == pytest.approx(dict(zip(CORPUS, ours[row], strict=True)), abs=1e-5)
    qrels = {"q1": {"d1": 1}, "q2": {"d3": 2, "d2": 1}}
    ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, results, [1, 3])
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.3", "recall.3"}).evaluate(
        {q: {d: float(s) for d, s in zip(CORPUS, ours[row], strict=True)} for row, q in enumerate(QUERIES)}
    )
    assert ndcg["NDCG@3"] == pytest.approx(np.mean([each["ndcg_cut_3"] for each in expected.values()]), abs=1e-4)
    assert recall["Recall@3"] == 1.0


def test_queries_reason_and_documents_do_not(encoder):
    assert np.abs(encoder.encode_queries(["cats"]) - encoder.encode_corpus([{"text": "cats"}])).max() > 1e-3
    assert encoder.statistics.queries == 1
    assert encoder.statistics.documents == 1


def test_the_title_counts(encoder):
    with_title, without = encoder.encode_corpus([CORPUS["d1"], {"text": "they sleep all day"}])
    assert np.abs(with_title - without).max() > 1e-3
    np.testing.assert_allclose(with_title, encoder.encode_document(["Cats they sleep all day"])[0], atol=1e-5)


def test_tensors_on_request(encoder):
    assert isinstance(encoder.encode_queries(["a"], convert_to_tensor=True, batch_size=8), torch.Tensor)
    assert isinstance(encoder.encode_corpus([{"text": "a"}], convert_to_tensor=True), torch.Tensor)
    array = encoder.encode_corpus([{"text": "a"}], batch_size=8, show_progress_bar=False)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert encoder.encode_corpus([]).shape == encoder.encode_queries([]).shape == (0, encoder.dim)


def test_unknown_keywords_raise(encoder):
    with pytest.raises(TypeError, match="normalise"):
        encoder.encode_queries(["a"], normalise=True)
    with pytest.raises(TypeError, match="normalise"):
        encoder.encode_corpus([{"text": "a"}], normalise=True)


@pytest.mark.parametrize(
    "corpus",
    [
        [{"title": "A", "text": "b"}, {"text": "c"}, {"title": None, "text": "d "}],
        {"title": ["A", "", ""], "text": ["b", "c", "d"]},
        {"1": {"title": "A", "text": "b", "_id": "1"}, "2": {"text": "c"}, "3": {"title": "", "text": " d"}},
        ["A b", "c", "d"],
    ],
    ids=["list", "columns", "beir", "strings"],
)
def test_every_shape_of_a_corpus_gives_the_same_texts(corpus):
    assert document_texts(corpus) == ["A b", "c", "d"]


def test_columns_without_titles_and_the_empty_corpus():
    assert document_texts({"text": ["a", "b"]}) == ["a", "b"]
    assert document_texts([]) == document_texts({}) == []
    assert join_title("Only a title", "") == "Only a title"


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ("one", TypeError, r"one string 'one'\. Write \[document\]"),
        (["a", 3], TypeError, "Document 1 is of type int"),
        ([{"title": "t"}], ValueError, r"Document 0 has no 'text', only \['title'\]"),
        ([{"text": None}], TypeError, "The text of document 0 is of type NoneType"),
        ([{"text": "a", "title": 1}], TypeError, "The title of document 0 is of type int"),
        ({"text": ["a", "b"], "title": ["x"]}, ValueError, "1 titles for 2 texts"),
    ],
)
def test_what_is_not_a_document_is_named(corpus, error, message):
    with pytest.raises(error, match=message):
        document_texts(corpus)
