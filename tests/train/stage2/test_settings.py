"""Settings of stage 2 that must reach what they name: each changes a number that is known by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.loops import FORCED, recorded_gradients, rl_config
from tests.train.stage2.test_step import OneStep
from train.data.mixing import load_training_data
from train.losses.grpo import Advantages
from train.rl import train
from train.run.run import Run
from train.stage2.replay import Replay


@pytest.mark.parametrize("standardise", [True, False])
def test_advantages_are_divided_by_the_group_s_deviation_where_that_is_set(tmp_path, model, standardise):
    one = OneStep(rl_config(tmp_path / "run", model, f"policy.standardise={str(standardise).lower()}"))
    one.judged.rewards.total[:] = [0.1, 0.2, 0.3, 0.8, *[0.5] * 8, 0.0, 0.0, 0.0, 1.0]
    values = one.step.advantages(one.judged).values.reshape(4, 4).numpy()
    first, last = np.array([-0.25, -0.15, -0.05, 0.45]), np.array([-0.25, -0.25, -0.25, 0.75])
    if standardise:  # sample deviations: squares add up to 0.29 and to 0.75
        first, last = first / ((0.29 / 3) ** 0.5 + 1e-4), last / ((0.75 / 3) ** 0.5 + 1e-4)
    np.testing.assert_allclose(values, [first, [0] * 4, [0] * 4, last], atol=1e-5)


@pytest.mark.parametrize("parts", [0, 3])
@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_the_policy_s_loss_is_a_mean_over_tokens_or_over_rollouts(tmp_path, model, normalisation, parts):
    """Before an update all ratios are 1. Where one rollout alone has the advantage 1, the loss is minus its weight."""
    settings = [f"policy.normalisation={normalisation}", "contrastive.weight=0", "policy.skip_zero_variance=false"]
    settings += [f"optimization.mini_batch_size={parts}"] if parts else []
    one = OneStep(rl_config(tmp_path / "run", model, *settings))
    rollouts = one.groups.rollouts
    chosen = [len(ids) - (not own) for ids, own in zip(rollouts.token_ids, rollouts.finished, strict=True)]
    rollout = int(np.argmax(chosen))
    assert chosen[rollout] > 1
    alone = torch.zeros(16)
    alone[rollout] = 1.0
    losses, _ = one.gradient(Advantages(alone, groups=4, zero_variance_groups=3))
    weight = chosen[rollout] / sum(chosen) if normalisation == "token" else 1 / 16
    assert losses["policy"] == pytest.approx(-weight, rel=1e-4)
    assert abs(chosen[rollout] / sum(chosen) - 1 / 16) > 1e-3, "the control: the two means differ"


def test_the_reward_s_settings_reach_the_environment(tmp_path, model):
    """Of the same rollouts; what each setting subtracts or adds is known from lengths and rankings."""
    plain = OneStep(rl_config(tmp_path / "plain", model, "reward.forced_penalty=0"))
    cost = OneStep(rl_config(tmp_path / "cost", model, "reward.forced_penalty=0", "reward.token_cost=0.01"))
    forced = OneStep(rl_config(tmp_path / "forced", model, "reward.forced_penalty=0.3"))
    lengths, finished = np.array(plain.groups.reasoning_tokens), np.array(plain.groups.rollouts.finished)
    assert cost.groups.reasoning_tokens == plain.groups.reasoning_tokens
    total = plain.judged.rewards.total
    np.testing.assert_allclose(total - cost.judged.rewards.total, 0.01 * lengths, atol=1e-6)
    np.testing.assert_allclose(total - forced.judged.rewards.total, 0.3 * ~finished, atol=1e-6)
    assert len(set(lengths.tolist())) > 1, "the control: lengths differ"


def test_the_cache_is_built_with_the_run_s_settings(tmp_path, model):
    settings = ["hops=2", "sweep_share=0.25", "error_bound=0.5", "neighbors=5", "map_ridge=0.7"]
    one = OneStep(rl_config(tmp_path / "run", model, *[f"corpus_cache.{setting}" for setting in settings]))
    assert one.environment.cache.settings == one.config.corpus_cache
    assert one.environment.cache.neighbors.shape[1] == 5


@pytest.mark.parametrize(("bound", "factor"), [(1e-9, 2.0), (1e9, 1.0)])
def test_an_audit_above_the_run_s_bound_makes_the_budget_grow(tmp_path, model, bound, factor):
    one = OneStep(rl_config(tmp_path / "run", model, f"corpus_cache.error_bound={bound}"))
    with torch.no_grad():  # the documents have moved since the refresh
        weight = one.run.checkpoint.model.get_input_embeddings().weight
        weight.add_(weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    found = one.environment.audit(2)
    assert found["reward_error"] > 1e-9
    assert found["budget_factor"] == one.environment.cache.budget_factor == factor


def test_an_audit_is_of_its_own_step(tmp_path, model):
    """Its sample is drawn by the step, so that two audits do not look at the same rows."""
    one = OneStep(rl_config(tmp_path / "run", model, "corpus_cache.audit_every=1", "corpus_cache.audit_rows=40"))
    with torch.no_grad():
        one.run.checkpoint.model.get_input_embeddings().weight.mul_(3)
    cache, encoder = one.environment.cache, one.environment.encoder
    drifts = [cache.audit(40, encoder, step=step).cosine_drift for step in (0, 1, 2)]
    assert len(set(drifts)) == 3, "the control: every step has its own sample"
    assert [one.environment.audit(step)["cosine_drift"] for step in (1, 2)] == drifts[1:]
    assert "step" not in one.environment.audit(1)


REPLAYED = [
    "policy.updates_per_step=2",
    "optimization.steps=2",
    "replay.rows_per_step=3",
    'replay.sources=[{kind = "hopworld", documents = 500, hops = [1]}]',
]


@pytest.mark.parametrize("seed", [0, 5])
def test_replayed_rows_are_drawn_by_the_run_s_seed(tmp_path, model, seed):
    config = rl_config(tmp_path / "run", model, *REPLAYED, f"optimization.seed={seed}")
    settings = config.data.replaced(sources=config.replay.sources)
    expected, other = (load_training_data(settings, batch_size=3, seed=one).next_batch() for one in (seed, 9))
    replay = Replay.begin(Run.begin(config, unit="query"))
    assert replay.data.next_batch() == expected
    assert expected != other, "the control"


# A policy whose rewards are all equal has no gradient: what is left is the replay's.
SILENT = [
    "contrastive.weight=0",
    "reward.dcg_scaled=0",
    "reward.mrr=1",
    "reward.k=1",
    "reward.forced_penalty=0",
    *FORCED,
]


def test_every_update_of_a_step_replays_rows(tmp_path, model, monkeypatch):
    from train.stage2.environment import Environment

    judge = Environment.judge

    def equal(self, groups, step):
        judged = judge(self, groups, step)
        return replace(judged, rewards=replace(judged.rewards, total=np.zeros(len(groups.prompt))))

    monkeypatch.setattr(Environment, "judge", equal)
    replayed = recorded_gradients(train, rl_config(tmp_path / "run", model, *SILENT, *REPLAYED), monkeypatch)
    without = recorded_gradients(train, rl_config(tmp_path / "control", model, *SILENT, *REPLAYED[:2]), monkeypatch)
    largest = [max(float(g.abs().max()) for g in update.values()) for update in replayed]
    assert len(largest) == 4
    assert min(largest) > 1e-3, "an update replayed nothing"
    assert all(not g.any() for update in without for g in update.values()), "the control: the policy is silent"
