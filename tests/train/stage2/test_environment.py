"""The environment: the documents that rollouts retrieve from the refreshed cache, their rewards, and their log."""

import json

import numpy as np
import pytest
import torch

from tests.train.loops import rl_config
from train.config.run import RlOutputSettings
from train.rl import open_environment, sample
from train.run.run import Run
from train.stage2.corpus import SearchedCorpus
from train.stage2.rollout_log import RolloutLog


@pytest.fixture
def begun(tmp_path, trained):
    """A run, its environment, and one step's rollouts."""

    def begin(*overrides):
        run = Run.begin(rl_config(tmp_path / "run", trained / "last", *overrides), unit="query")
        environment = open_environment(run)
        return run, environment, sample(run, environment.encoder.engine, run.data.next_batch(), 1)

    return begin


def test_rankings_and_rewards_are_those_of_the_cache(begun):
    _, environment, groups = begun("reward.margin=0.5")
    judged = environment.judge(groups, 1)
    vectors = environment.cache.values(np.arange(500))
    for rollout, vector in enumerate(groups.vectors):
        similarities = vectors @ vector
        np.testing.assert_allclose(judged.similarities[rollout], np.sort(similarities)[::-1][:20], atol=1e-5)
        positive = int(environment.cache.rows_of(list(judged.relevance[groups.prompt[rollout]]))[0])
        rank = int((similarities > similarities[positive] + 1e-6).sum())
        dcg = max(similarities[positive], 0) / np.log2(rank + 2) if rank < 20 else 0.0
        best = max(s for row, s in enumerate(similarities) if row != positive)
        margin = (similarities[positive] - best + 2) / 4
        forced = 0.0 if groups.rollouts.finished[rollout] else 0.1
        assert judged.rewards.total[rollout] == pytest.approx(dcg + 0.5 * margin - forced, abs=1e-4)


def test_known_vectors_are_forgotten_after_the_refresh(begun):
    _, environment, groups = begun()
    texts = [groups.rows[0].positive]
    other = torch.nn.functional.normalize(torch.ones(1, 32), dim=-1)
    environment.encoder.know(texts, other * 3)
    environment.judge(groups, 1)
    row = environment.cache.rows_of([environment.corpus.positive_id(groups.rows[0])])
    np.testing.assert_allclose(environment.cache.values(row), other.numpy(), atol=1e-6)
    assert np.abs(environment.encoder(texts) - other.numpy()).max() > 1e-3
    environment.encoder.know(texts, None)  # no contrastive term: nothing is known


def test_negatives_are_the_highest_ranked_that_are_not_relevant(begun):
    _, environment, groups = begun()
    judged = environment.judge(groups, 1)
    relevant = {int(r) for one in judged.relevance for r in environment.cache.rows_of(list(one))}
    found = environment.negatives(groups, judged, 2)
    first = {int(judged.rows[r][0]) for r in range(len(groups.prompt))} - relevant
    assert len(found) == len(set(found.tolist())) <= 2 * len(groups.rows)
    assert first & set(found.tolist()), "what ranked first is a hard negative"
    own = {int(r) for r in environment.cache.rows_of(list(judged.relevance[0]))}
    from dataclasses import replace

    one_prompt = replace(judged, relevance=judged.relevance[:1])
    assert not set(environment.negatives(groups, one_prompt, 50).tolist()) & own
    assert len(environment.negatives(groups, judged, 0)) == 0


def test_a_row_that_the_index_did_not_find_is_no_document(begun, monkeypatch):
    """Regression: row -1 was read as the corpus's last document, and could be rewarded."""
    _, environment, groups = begun("corpus_cache.index=ivf")
    original = environment.cache.search
    calls = []

    def search(vectors, k, exact):
        assert exact is False
        calls.append(k)
        found = original(vectors, k, exact=True)
        if len(calls) == 2:
            found.rows[0, -1], found.scores[0, -1] = -1, -np.inf
        return found

    monkeypatch.setattr(environment.cache, "search", search)
    with pytest.raises(ValueError, match="fewer than k documents"):
        environment.judge(groups, 1)


def test_a_corpus_smaller_than_k(begun):
    _, environment, groups = begun("reward.k=5000")
    assert environment.judge(groups, 1).rows.shape[1] == len(environment.cache) == 500


def test_stop_tokens_are_those_of_inference(begun):
    run, environment, _ = begun()
    assert environment.encoder.engine.stop_token_ids == run.checkpoint.stop_token_ids


def test_the_cost_of_a_document_is_its_rendered_length(begun):
    run, environment, _ = begun()
    rendered = run.renderer.render_batch(list(environment.corpus.texts.texts[:5]), "direct")
    assert environment.corpus.texts.count()[:5].tolist() == [len(one.token_ids) for one in rendered]
    assert isinstance(environment.corpus, SearchedCorpus)


def test_old_rollouts_are_cut_when_a_run_begins(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text(json.dumps({"step": 4, "query": "of a run that was killed"}) + "\n")
    RolloutLog(tmp_path, None, RlOutputSettings(), step=0, active=False)
    assert (tmp_path / "rollouts.jsonl").read_text()
    RolloutLog(tmp_path, None, RlOutputSettings(), step=0, active=True)
    assert (tmp_path / "rollouts.jsonl").read_text() == ""
