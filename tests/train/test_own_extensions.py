"""Rewards and refresh policies of other packages in a run: each changes what is learned, or the log warns of it.

What happened once: a new reward was written in 15 minutes, all tests were green, and it had no effect.
"""

import numpy as np
import pytest

from search_r3_mteb.extensions import REFRESH_POLICIES, REWARDS
from tests.train.loops import (
    FORCED,
    cache_arrays,
    events,
    largest_difference,
    recorded_gradients,
    rl_config,
    train_until,
)
from train.config.settings import OwnRewardSettings, Weight
from train.rl import train


class BriefSettings(OwnRewardSettings):
    """Settings of the reward below."""

    half: Weight = 4.0


@pytest.fixture(autouse=True)
def own():
    """A reward that tells rollouts apart, one that does not, and two policies."""

    @REWARDS.register("brief", settings=BriefSettings)
    def brief(graded, rankings, settings):
        return settings.half / (settings.half + np.asarray(rankings.reasoning_tokens))

    @REWARDS.register("constant")
    def constant(graded, rankings, settings):
        return np.full(len(graded.gains), 0.5)

    @REFRESH_POLICIES.register("positives", uses_map=True)
    def positives(corpus, counts, budget, settings):
        return corpus.cut(counts.rows[counts.positive > 0], budget)

    @REFRESH_POLICIES.register("idle")
    def idle(corpus, counts, budget, settings):
        return np.zeros(0, np.int64)

    yield
    for registry, names in ((REWARDS, ("brief", "constant")), (REFRESH_POLICIES, ("positives", "idle"))):
        for name in names:
            del registry._registered[name]


SHORT = ["optimization.steps=2", "corpus_cache.audit_every=0"]


def warnings_of(folder):
    return [event["text"] for event in events(folder, "warning")]


def test_an_own_reward_changes_what_is_learned_and_one_that_does_not_is_warned_of(tmp_path, model, capsys, monkeypatch):
    plain, brief, constant = (tmp_path / name for name in ("plain", "brief", "constant"))
    without = recorded_gradients(train, rl_config(plain, model, *SHORT), monkeypatch)[0]
    capsys.readouterr()
    changed = recorded_gradients(train, rl_config(brief, model, *SHORT, "reward.own.brief.weight=0.5"), monkeypatch)[0]
    assert "reward 'brief' of " in capsys.readouterr().out
    same = recorded_gradients(train, rl_config(constant, model, *SHORT, "reward.own.constant.weight=0.5"), monkeypatch)
    assert largest_difference(changed, without) > 1e-3
    assert largest_difference(same[0], without) < 1e-5, "it moved every reward of a group by the same amount"

    step, before = events(brief, "step")[0], events(plain, "step")[0]
    assert step["reward"] == pytest.approx(before["reward"] + 0.5 * step["reward_brief"])
    assert step["reward_brief_spread"] > 0.01
    assert not any(text for text in warnings_of(brief) if "reward 'brief'" in text)
    ((event),) = events(brief, "extension")
    assert (event["step"], event["what"], event["name"]) == (1, "reward", "brief")
    assert "test_own_extensions" in event["origin"]

    (text,) = [text for text in warnings_of(constant) if "'constant'" in text]
    assert "has given every rollout of a query the same value in all of 2 steps" in text
    assert events(constant, "step")[0]["reward"] == pytest.approx(before["reward"] + 0.25)
    assert "reward_constant" not in before
    assert events(plain, "extension") == []


def test_settings_of_an_own_reward_reach_it(tmp_path, model):
    from tests.train.stage2.test_step import OneStep

    overrides = ["reward.own.brief.weight=1", "reward.forced_penalty=0"]
    one = OneStep(rl_config(tmp_path / "one", model, *overrides))
    other = OneStep(rl_config(tmp_path / "other", model, *overrides, "reward.own.brief.half=1"))
    tokens = np.array(one.groups.reasoning_tokens)
    assert other.groups.reasoning_tokens == one.groups.reasoning_tokens
    np.testing.assert_allclose(one.judged.rewards.parts["brief"], 4 / (4 + tokens))
    np.testing.assert_allclose(other.judged.rewards.parts["brief"], 1 / (1 + tokens))


def test_an_own_policy_refreshes_and_one_that_chooses_nothing_is_warned_of(tmp_path, model):
    own, idle = tmp_path / "own", tmp_path / "idle"
    train(rl_config(own, model, *SHORT, *FORCED, "corpus_cache.policy=positives"))
    train(rl_config(idle, model, *SHORT, *FORCED, "corpus_cache.policy=idle"))
    assert all(1 <= event["documents_encoded"] <= 4 for event in events(own, "step"))
    arrays, _ = cache_arrays(own, 2)
    assert arrays["row_step"].max() == 1
    assert "originals" in arrays, "the map moves the others"
    assert cache_arrays(idle, 2)[0]["row_step"].max() == 0
    (text,) = [text for text in warnings_of(idle) if "'idle'" in text]
    assert "has chosen no document in all of 2 steps" in text
    assert not [text for text in warnings_of(own) if "chosen no document" in text]
    assert [event["name"] for event in events(idle, "extension")] == ["idle"]


def test_a_reward_and_a_policy_of_one_name_are_both_watched():
    from train.stage2.environment import OwnEffects

    REFRESH_POLICIES.register("constant")(lambda corpus, counts, budget, settings: np.zeros(0, np.int64))
    try:
        for spread, documents, said in ((0.0, 3, ["reward"]), (0.5, 0, ["refresh policy"]), (0.5, 3, [])):
            effects = OwnEffects(("constant",), "constant", 1)
            texts = effects.warnings(1, {"reward_constant_spread": spread, "documents_encoded": documents})
            assert [text.partition("the ")[2].partition(" 'constant'")[0] for text in texts] == said
    finally:
        del REFRESH_POLICIES._registered["constant"]


def test_a_run_that_is_ended_early_is_watched_up_to_there(tmp_path, model):
    from train.stage2.environment import OwnEffects

    ended = OwnEffects.of(rl_config(tmp_path / "run", model, "checkpoint.stop_at=2", "reward.own.brief.weight=1"))
    numbers = {"reward_brief_spread": 0.0, "documents_encoded": 1}
    assert [len(ended.warnings(step, numbers)) for step in (1, 2)] == [0, 1]


@pytest.mark.slow
def test_a_resumed_run_says_what_an_uninterrupted_one_says(tmp_path, model, monkeypatch):
    settings = ["optimization.steps=2", "reward.own.brief.weight=1", "corpus_cache.policy=positives", *FORCED]
    train(rl_config(tmp_path / "whole", model, *settings))
    train_until(1, train, rl_config(tmp_path / "stopped", model, *settings), monkeypatch)
    train(rl_config(tmp_path / "stopped", model, *settings))
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")
    assert len(events(tmp_path / "whole", "extension")) == 2
    with pytest.raises(ValueError, match=r"reward\.own\.brief\.half: 4\.0 -> 2\.0"):
        train(rl_config(tmp_path / "stopped", model, *settings, "reward.own.brief.half=2", "optimization.steps=3"))
