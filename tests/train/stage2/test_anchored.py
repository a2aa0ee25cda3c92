"""Anchored vectors in stage 2: what is ranked, rewarded, contrasted and evaluated, and the gain over direct."""

import json
from dataclasses import replace
from math import cos, log2, radians

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from tests.train.loops import events, rl_config, same_weights, train_until
from tests.train.stage2.test_step import OneStep
from tests.train.worlds import directions, plane
from train.config.data import JudgedSetSettings
from train.config.grpo import RewardSettings
from train.config.loading import ConfigError
from train.config.run import EvaluateSettings
from train.data import direct_ranks
from train.losses.grpo import Advantages
from train.model import model as models
from train.rl import train
from train.run import evaluation
from train.stage2.rollouts import anchored_groups
from train.stage2.step import PolicyStep

ANCHOR = ["reward.anchor=1.5"]


def test_anchored_vectors_and_their_gain_by_hand(tmp_path):
    """At 0 and 60 degrees, anchored by 1, the vector lies at 30; the direct one has no penalty, for it says nothing."""
    settings = RewardSettings(k=3, forced_penalty=0.25, token_cost=0.01)
    judged = {"p": {"near": 1}, "q": {"far": 1}}
    environment, groups = plane(
        tmp_path,
        {"near": 40, "far": 90, "x": 0},
        judged,
        [("p", 60), ("p", 0), ("q", 0), ("q", 60)],
        reward=settings,
        lengths=[2, 2, 2, 2],
    )
    groups.rollouts.finished[1] = False
    groups = replace(groups, direct=directions([0, 0]))
    assert anchored_groups(groups, 0.0) is groups
    with pytest.raises(ValueError, match="needs the prompts' direct vectors"):
        anchored_groups(replace(groups, direct=None), 1.0)
    moved = anchored_groups(groups, 1.0)
    np.testing.assert_allclose(moved.vectors, directions([30, 0, 0, 30]), atol=1e-6)
    found = environment.judge(moved, 1)
    c = lambda degrees: max(cos(radians(degrees)), 0)  # noqa: E731
    # Ranked near x far; x near far; x near far; near x far.
    earned = np.array([c(10), c(40) / log2(3), 0.0, c(60) / log2(4)])
    np.testing.assert_allclose(found.rewards.total, earned - 0.02 - np.array([0, 0.25, 0, 0]), atol=1e-6)
    np.testing.assert_allclose(found.direct, [c(40) / log2(3), 0.0], atol=1e-6)
    numbers = PolicyStep(None, environment, moved, None).numbers(found, Advantages(torch.zeros(4), 2, 0))
    gain = earned - 0.02 - np.array([0, 0.25, 0, 0]) - np.repeat(found.direct, 2)
    assert numbers["reward_minus_direct"] == pytest.approx(gain.mean(), abs=1e-6)
    assert (numbers["better_than_direct"], numbers["worse_than_direct"]) == (0.5, 0.5)
    plain = environment.judge(groups, 2)
    assert plain.rewards.total[0] == pytest.approx(c(20) - 0.02, abs=1e-6), "the control: without the anchor"


def test_the_anchor_decides_what_is_ranked_and_trained(tmp_path, model):
    """Off by default: then the direct vectors, which are computed for the log, change nothing."""
    config = rl_config(tmp_path / "run", model, *ANCHOR)
    one = OneStep(config)
    reasoned = one.groups.rollouts.vectors.numpy()
    reasoned /= np.linalg.norm(reasoned, axis=1, keepdims=True)
    wanted = one.groups.direct[one.groups.prompt] + 1.5 * reasoned
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(one.groups.vectors, wanted, atol=1e-6)
    assert np.abs(one.groups.vectors - reasoned).max() > 1e-3
    queries = [row.query for row in one.rows]
    alone = models.embed(one.environment.encoder.engine, one.run.renderer, queries)
    np.testing.assert_allclose(one.groups.direct, alone, atol=1e-6)
    values = one.environment.cache.values(np.arange(500))
    found = np.sort(one.groups.vectors @ values.T, axis=1)[:, ::-1][:, :20]
    np.testing.assert_allclose(one.judged.similarities, found, atol=1e-5)


def test_the_contrastive_gradient_goes_through_the_reasoned_vector_alone(tmp_path, model):
    one = OneStep(rl_config(tmp_path / "run", model, *ANCHOR))
    part = [0, 5]
    reasoned = torch.randn(2, 32, requires_grad=True)
    ranked = one.step._ranked(part, reasoned)
    direct = torch.from_numpy(one.groups.direct[[one.groups.prompt[r] for r in part]])
    torch.testing.assert_close(ranked, direct + 1.5 * torch.nn.functional.normalize(reasoned, dim=1))
    ranked[:, 0].sum().backward()
    norm = reasoned.detach().norm(dim=1, keepdim=True)
    unit = reasoned.detach() / norm
    first = torch.eye(32)[0]
    torch.testing.assert_close(reasoned.grad, 1.5 * (first - unit[:, :1] * unit) / norm)
    _, anchored = one.gradient()
    one.documents = one.step.documents()
    one.step.groups = replace(one.groups, direct=-one.groups.direct)
    _, other = one.gradient()
    assert max(float((anchored[n] - other[n]).abs().max()) for n in anchored) > 1e-5, "the term is of anchored vectors"


@pytest.mark.slow
def test_a_resumed_run_and_its_evaluations(tmp_path, model, monkeypatch):
    """Anchored and with chosen queries: a resumed run reads the ranks of the model that it began with."""
    both = [*ANCHOR, "data.direct_rank=[3, 40]"]
    make = lambda name: rl_config(tmp_path / name, model, *both, "evaluate.best_by=anchored", evaluation=True)  # noqa: E731
    train(make("whole"))
    train_until(1, train, make("stopped"), monkeypatch)
    train(make("stopped"))
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped/last", tmp_path / "whole/last")
    ranks = [(tmp_path / name / direct_ranks.FILE).read_text() for name in ("whole", "stopped")]
    assert ranks[0] == ranks[1]
    assert {each["mode"] for each in events(tmp_path / "whole", "evaluate")} == {"direct", "reason", "anchored"}
    assert len(events(tmp_path / "whole", "direct_rank")) == 1
    first = events(tmp_path / "whole", "step")[0]
    assert {"reward_minus_direct", "better_than_direct", "worse_than_direct"} <= first.keys()
    rollout = json.loads((tmp_path / "whole/rollouts.jsonl").read_text().splitlines()[0])
    assert 0 <= rollout["direct_reward"] <= 1
    for name, settings in (("reasoned", both[1:]), ("all", both[:1])):
        train(rl_config(tmp_path / name, model, *settings, "optimization.steps=1"))
        assert events(tmp_path / name, "step")[0]["loss"] != first["loss"], "not wired"


def test_evaluation_reports_three_vectors(tiny_checkpoint):
    judged = evaluation.load(JudgedSetSettings(kind="hopworld", documents=500, hops=(1, 2)), 24, 0)
    settings = EvaluateSettings(max_reasoning_tokens=4)
    scores = evaluation.evaluate(tiny_checkpoint, [judged], settings, 512, anchor=1.5)
    found = {each.mode: each for each in scores if each.hops is None}
    encoders = {
        mode: SearchR3Encoder(tiny_checkpoint, mode=mode, max_reasoning_tokens=4) for mode in ("direct", "reason")
    }
    direct, reason = (encoders[mode].encode_query(list(judged.queries.values())) for mode in ("direct", "reason"))
    corpus = encoders["direct"].encode_document(list(judged.documents.values()))
    sums = direct + 1.5 * reason
    by_hand = evaluation.per_query_ndcg(judged, sums / np.linalg.norm(sums, axis=1, keepdims=True), corpus)
    assert found["anchored"].ndcg_at_10 == pytest.approx(np.mean(list(by_hand.values())), abs=1e-6)
    assert found["anchored"].reasoning_tokens == found["reason"].reasoning_tokens > found["direct"].reasoning_tokens
    assert "anchored" not in {each.mode for each in evaluation.evaluate(tiny_checkpoint, [judged], settings, 512)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["evaluate.best_by=anchored"], r"reward\.anchor = 0 anchors nothing"),
        ([*ANCHOR, "evaluate.modes=['reason']"], r"evaluated from the vectors of both modes"),
        (["reward.anchor=-1.0"], "must be at least 0"),
        (["data.direct_rank=[3, 2]"], "the first rank is above the second"),
    ],
)
def test_settings_that_exclude_each_other(tmp_path, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        rl_config(tmp_path / "run", "MODEL", *changes, evaluation=True)
