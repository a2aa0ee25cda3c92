"""The dev evaluation: its numbers by hand, and that it leaves no trace in the run."""

import math
import random

import numpy as np
import pytest
import torch

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import JudgedSetSettings
from train.config.run import EvaluateSettings
from train.run import evaluation
from train.run.evaluation import JudgedSet, Score

JUDGED = JudgedSet(
    label="hand/dev",
    documents={"a": "one", "b": "two", "c": "three", "d": "four"},
    queries={"p": "1", "q": "2", "r": "3"},
    qrels={"p": {"a": 1}, "q": {"b": 2, "c": 1}, "r": {"d": 1}},
    hops={"p": 1, "q": 2, "r": 2},
)
CORPUS = np.eye(4, dtype=np.float32)
QUERIES = np.array([[0.9, 0.1, 0, 0], [0.1, 0.2, 0.9, 0], [0.3, 0.2, 0.1, 0]], dtype=np.float32)
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


def test_ndcg_by_hand():
    """Ranks: p: a first. q: c (1), b (2), ... r: d last of four."""
    found = evaluation.per_query_ndcg(JUDGED, QUERIES, CORPUS)
    assert found["p"] == 1.0
    ideal = 2 + 1 / math.log2(3)
    assert found["q"] == pytest.approx((1 + 2 / math.log2(3)) / ideal)
    assert found["r"] == pytest.approx(1 / math.log2(5))


def tied(**changed):
    """Sixty documents with one vector: by trec_eval's order the largest ids come first, wherever their rows are."""
    names = [f"d{number:02}" for number in range(60)]
    given = {"label": "tied", "documents": dict.fromkeys(names, "x"), "queries": {"d59": "x"}, "hops": {}}
    return JudgedSet(**(given | {"qrels": {"d59": {"d58": 1}}} | changed))


def test_ties_and_identical_ids_are_those_of_the_scorer():
    """Regression: of equal scores the first ten rows were kept, and no set could leave a query's own document out."""
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (60, 1))
    assert evaluation.per_query_ndcg(tied(), vectors[:1], vectors)["d59"] == pytest.approx(1 / math.log2(3))
    own = evaluation.per_query_ndcg(tied(ignore_identical_ids=True), vectors[:1], vectors)
    assert own["d59"] == 1.0
    first = evaluation.per_query_ndcg(tied(qrels={"d59": {"d00": 1}}), vectors[:1], vectors)
    assert first["d59"] == 0.0, "the control: the first row is not the first document"


def test_identical_ids_are_left_out_where_the_settings_say_so(tmp_path):
    write_beir(tmp_path / "x", corpus=[("a", "", "one"), ("b", "", "two")], queries=[("a", "one")],
               qrels={"dev": [("a", "b", 1)]})  # fmt: skip
    chosen = {"kind": "beir", "path": str(tmp_path / "x")}
    assert evaluation.load(JudgedSetSettings(**chosen, ignore_identical_ids=True), None, 0).ignore_identical_ids
    assert not evaluation.load(JudgedSetSettings(**chosen), None, 0).ignore_identical_ids
    with pytest.raises(ValueError, match="ignore_identical_ids is for BEIR folders"):
        JudgedSetSettings(kind="hopworld", ignore_identical_ids=True)


def test_only_the_first_ten_count():
    documents = {f"d{number:02}": "x" for number in range(12)}
    judged = tied(documents=documents, queries={"q": "x"}, qrels={"q": {"d10": 1}})
    angles = np.linspace(0, 1, 12)
    corpus = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert evaluation.per_query_ndcg(judged, corpus[:1], corpus)["q"] == 0.0
    assert evaluation.per_query_ndcg(judged, corpus[6:7], corpus)["q"] > 0


def test_by_hops_and_what_chooses_the_best():
    groups = evaluation._by_hops(JUDGED, {"p": 1.0, "q": 0.5, "r": 0.0})
    assert groups == [(None, 0.5, 3), (1, 1.0, 1), (2, 0.25, 2)]
    scores = [
        Score(task, mode, hops, value, 1, 0.0, 0.0)
        for task, mode, hops, value in (
            ("x", "reason", None, 0.2),
            ("x", "reason", 1, 0.9),
            ("y", "reason", None, 0.4),
            ("x", "direct", None, 0.8),
        )
    ]
    assert evaluation.mean_of(scores, "reason") == pytest.approx(0.3)
    assert [str(score) for score in scores[:2]] == ["x reason 0.200", "x reason 1-hop 0.900"]


def test_a_sample_of_queries_is_the_same_every_time():
    settings = JudgedSetSettings(kind="hopworld", documents=500, hops=(1, 2))
    whole, some, again, other = (
        evaluation.load(settings, size, seed) for size, seed in ((None, 0), (7, 0), (7, 0), (7, 1))
    )
    assert len(some.queries) == len(some.qrels) == len(some.hops) == 7
    assert some == again
    assert some.queries != other.queries
    assert set(some.queries) <= set(whole.queries)
    assert some.documents == whole.documents


def test_a_beir_folder_with_titles(tmp_path):
    queries = [("p", "water"), ("unjudged", "stone")]
    write_beir(tmp_path, corpus=[("a", "Rivers", "flow")], queries=queries, qrels={"dev": [("p", "a", 1)]})
    found = evaluation.load(JudgedSetSettings(kind="beir", path=str(tmp_path)), None, 0)
    assert found.queries == {"p": "water"}
    assert found.documents["a"].startswith("Rivers")
    assert found.documents["a"].endswith("flow")
    assert found.hops == {}


def test_no_random_number_is_drawn_and_the_mode_stays(tiny_checkpoint):
    model = tiny_checkpoint.model.train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    scores = evaluation.evaluate(tiny_checkpoint, [JUDGED], EvaluateSettings(max_reasoning_tokens=4), max_length=512)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert model.training
    assert {(s.mode, s.hops) for s in scores} == {(m, h) for m in ("direct", "reason") for h in (None, 1, 2)}
    direct, reason = (next(s for s in scores if s.mode == mode) for mode in ("direct", "reason"))
    assert direct.reasoning_tokens == 0
    assert 0 < reason.reasoning_tokens <= 4


def test_what_reasoning_costs_is_that_of_the_queries_of_a_row():
    """Regression: every hop count had the average over all queries, which a model's card then repeated."""
    judged = evaluation.load(JudgedSetSettings(kind="hopworld", hops=(1, 2)), 24, 0)
    encoder = SearchR3Encoder("nano", max_reasoning_tokens=12, show_progress_bar=False)
    settings = EvaluateSettings(max_reasoning_tokens=12)  # two hops take some sixteen tokens
    scores = evaluation.evaluate(encoder.checkpoint, [judged], settings, encoder.max_length)
    costs = {(each.mode, each.hops): (each.reasoning_tokens, each.forced_share) for each in scores}
    thoughts = dict(zip(judged.queries, encoder.think(list(judged.queries.values())), strict=True))
    for hops in (1, 2):
        own = [thoughts[query] for query, count in judged.hops.items() if count == hops]
        forced = [not thought.finished for thought in own]
        assert costs["reason", hops] == pytest.approx((np.mean([len(each.token_ids) for each in own]), np.mean(forced)))
    assert costs["reason", 1][0] < costs["reason", None][0] < costs["reason", 2][0]
    assert costs["reason", 1][1] < costs["reason", None][1] < costs["reason", 2][1]
    assert {costs["direct", hops] for hops in (None, 1, 2)} == {(0.0, 0.0)}


def test_weights_that_changed_are_seen(tiny_checkpoint):
    """The encoder keeps what it embeds by the fingerprint of the weights: it must be the present ones'."""
    settings = EvaluateSettings(modes=("direct",), best_by="direct")
    first = evaluation.evaluate(tiny_checkpoint, [JUDGED], settings, 512)
    with torch.no_grad():
        tiny_checkpoint.model.get_input_embeddings().weight.normal_()
    assert evaluation.evaluate(tiny_checkpoint, [JUDGED], settings, 512) != first
