"""Stage 2 where a query has several relevant documents, as real judgements do: by hand in a plane, then on a model.

What the corpus holds is turned between build and refresh in some of these, so that a ranking from before the refresh
would earn another reward.
"""

from dataclasses import replace
from math import cos, exp, log, log2, radians

import numpy as np
import pytest
import torch

from tests.train.loops import rl_config
from tests.train.stage2.test_step import OneStep
from tests.train.worlds import directions, plane, several_relevant
from train.config.grpo import RewardSettings
from train.config.loss import ContrastiveSettings
from train.stage2.contrastive import PositiveDocuments, RolloutContrast

DEGREES = {"a": 0, "b": 60, "c": 30, "x": 90}
JUDGED = {"p": {"a": 2, "b": 1}, "q": {"c": 1, "a": 1}}


def cosine(degrees):
    return cos(radians(degrees))


def test_the_reward_is_that_of_the_ranking_after_the_refresh(tmp_path):
    """The documents have turned since they were encoded: a, once last, is first; x, once first, is last."""
    environment, groups = plane(tmp_path, {"a": 90, "b": 60, "c": 30, "x": 0}, {"p": JUDGED["p"]}, [("p", 0)])
    before = environment.cache.search(groups.vectors, 4).rows[0]
    environment.encoder.degrees = DEGREES
    judged = environment.judge(groups, 1)
    assert [environment.corpus.id_of(row) for row in before] == ["x", "c", "b", "a"], "the control"
    assert [document["id"] for document in judged.top(0, 4)] == ["a", "c", "b", "x"]
    # a has grade 2 at rank 1 with cosine 1, b grade 1 at rank 3 with cosine 1/2.
    assert judged.rewards.total.tolist() == pytest.approx([(2 + 0.5 / log2(4)) / (2 + 1 / log2(3))], abs=1e-6)


@pytest.mark.parametrize(("angle", "positive"), [(60, 1.0), (0, 1.0), (45, cosine(15))])
def test_the_margin_is_that_of_the_nearest_relevant_document(tmp_path, angle, positive):
    """At 60 and at 45 degrees that is b, which is not the first judged; the best that is not relevant is c."""
    reward = RewardSettings(dcg_scaled=0.0, margin=1.0, k=4)
    environment, groups = plane(tmp_path, DEGREES, {"p": JUDGED["p"]}, [("p", angle)], reward=reward)
    judged = environment.judge(groups, 1)
    expected = (positive - cosine(angle - 30) + 2) / 4
    assert judged.rewards.total.tolist() == pytest.approx([expected], abs=1e-6)


def test_the_weights_of_margin_and_of_length_count(tmp_path):
    """Two rollouts of equal vectors, of 3 and of 8 tokens."""
    rewards = []
    for name, settings in (("plain", {}), ("margin", {"margin": 0.5}), ("cost", {"token_cost": 0.01})):
        environment, groups = plane(
            tmp_path / name, DEGREES, {"p": JUDGED["p"]}, [("p", 0), ("p", 0)],
            reward=RewardSettings(k=4, **settings), lengths=[3, 8],
        )  # fmt: skip
        rewards.append(environment.judge(groups, 1).rewards.total)
    plain, margin, cost = rewards
    assert plain[0] == plain[1]
    np.testing.assert_allclose(margin - plain, 0.5 * (1 - cosine(30) + 2) / 4, atol=1e-6)
    np.testing.assert_allclose(plain - cost, [0.03, 0.08], atol=1e-9)


ROLLOUTS = [("p", 0), ("q", 40)]


def test_no_document_that_is_relevant_to_the_query_is_its_negative(tmp_path):
    """Ranked a c b x by p's rollout, of which a and b are relevant; c b a x by q's, of which c and a are."""
    environment, groups = plane(tmp_path, DEGREES, JUDGED, ROLLOUTS)
    judged = environment.judge(groups, 1)

    def negatives(count, *prompts):
        only = replace(judged, relevance=[judged.relevance[p] for p in prompts])
        rows = environment.negatives(replace(groups, rows=groups.rows), only, count)
        return [environment.corpus.id_of(row) for row in rows]

    assert negatives(4, 0) == ["c", "x"]
    assert negatives(1, 0) == ["c"]
    assert negatives(4, 0, 1) == ["c", "x", "b"]  # c is relevant to q and b to p: each is the other's negative
    nothing_relevant = replace(judged, relevance=[{"x": 1.0}])
    rows = environment.negatives(groups, nothing_relevant, 4)
    assert [environment.corpus.id_of(row) for row in rows] == ["a", "c", "b"], "the control"


def by_hand(positive, negatives, temperature):
    """InfoNCE of one query whose angles to its positive and its negatives are given."""
    terms = [exp(cosine(angle) / temperature) for angle in (positive, *negatives)]
    return log(sum(terms)) - log(terms[0])


def test_a_hard_negative_of_one_query_is_none_of_another_that_it_is_relevant_to(tmp_path):
    """The columns are the positives, a and c, and b and x from the cache: p may not have b as a negative, nor q a."""
    environment, groups = plane(tmp_path, DEGREES, JUDGED, ROLLOUTS)
    judged = environment.judge(groups, 1)

    def encode(texts):
        return torch.from_numpy(environment.encoder(texts)).requires_grad_()

    settings = ContrastiveSettings(hard_negatives=4, temperature=0.5)
    documents = PositiveDocuments.of(groups.rows, encode)
    assert [text.split()[-1] for text in documents.texts] == ["a", "c"]
    contrast = RolloutContrast.of(settings, environment, groups, judged, documents)
    loss = contrast.loss([0, 1], torch.from_numpy(groups.vectors), 2.0)
    of_p = by_hand(0, [30, 90], 0.5)
    of_q = by_hand(10, [20, 50], 0.5)
    assert loss.item() == pytest.approx((of_p + of_q) / 2, abs=1e-6)
    wrong = (by_hand(0, [30, 90, 60], 0.5) + by_hand(10, [20, 50, 40], 0.5)) / 2
    assert abs(loss.item() - wrong) > 0.1, "the control: the judgements matter"


def test_a_step_on_a_world_with_several_relevant_documents(tmp_path, model):
    """The contrastive loss of real rollouts: every document of the corpus is a negative, but none that is judged."""
    sources = several_relevant(tmp_path / "world", documents=500)
    settings = ["contrastive.hard_negatives=1000", "reward.k=1000", "policy.weight=0"]
    one = OneStep(rl_config(tmp_path / "run", model, *settings, sources=sources))
    cache, corpus = one.environment.cache, one.environment.corpus
    assert all(len(relevance) >= 3 for relevance in one.judged.relevance)
    losses, _ = one.gradient()
    values = cache.values(np.arange(len(cache)))
    encoded = dict(zip(one.documents.texts, one.documents.vectors.detach(), strict=True))
    row_of = {text: row for row, text in enumerate(corpus.texts.texts)}
    for text, vector in encoded.items():
        values[row_of[text]] = torch.nn.functional.normalize(vector, dim=0).numpy()
    terms = []
    for rollout, prompt in enumerate(one.groups.prompt):
        scores = values @ one.groups.vectors[rollout] / one.config.contrastive.temperature
        relevant = cache.rows_of(list(one.judged.relevance[prompt]))
        positive = row_of[one.rows[prompt].positive]
        assert positive in relevant
        allowed = np.isin(np.arange(len(values)), relevant, invert=True) | (np.arange(len(values)) == positive)
        terms.append(np.logaddexp.reduce(scores[allowed].astype(np.float64)) - scores[positive])
    assert losses["contrastive"] == pytest.approx(np.mean(terms), rel=1e-4)


def test_directions():
    np.testing.assert_allclose(directions([0, 90]), np.eye(2), atol=1e-7)
