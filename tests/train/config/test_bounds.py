"""Values that cannot work are refused with the reason, and what can is not."""

import pytest

from train.config.data import SourceSettings
from train.config.grpo import RolloutSettings
from train.config.loss import ContrastiveSettings, LossSettings, ReplayLossSettings
from train.config.model import ModelSettings
from train.config.run import RlOptimizationSettings, SftOptimizationSettings
from train.config.stages import RlConfig


@pytest.mark.parametrize(
    ("section", "key", "bad", "good"),
    [
        (LossSettings, "temperature", (1e-300, 1e-4, 1e6), (0.01, 1.0)),
        (LossSettings, "margin", (0.0, 2.5), (0.1, 2.0)),
        (LossSettings, "infonce", (1e30, -1.0), (0.0, 10.0)),
        (ContrastiveSettings, "temperature", (1e-300, 1e6), (0.05,)),
        (RolloutSettings, "temperature", (1e-300, 1e6), (0.5, 2.0)),
        (SftOptimizationSettings, "learning_rate", (1e30, 1.5, 1e-300), (1e-6, 1.0)),
        (RlOptimizationSettings, "learning_rate", (1e30, 1e-300), (1e-6,)),
        (SftOptimizationSettings, "epsilon", (1e-300,), (1e-8, 1e-3)),
        (SftOptimizationSettings, "seed", (2**63, 2**70, -1), (0, 2**63 - 1)),
        (SftOptimizationSettings, "weight_decay", (1e30,), (0.0, 0.1)),
    ],
)
def test_a_value_that_cannot_work_is_refused(section, key, bad, good):
    for value in good:
        assert getattr(section(**{key: value}), key) == value
    for value in bad:
        with pytest.raises(ValueError, match=key):
            section(**{key: value})


def test_seeds_up_to_the_bound_work(tmp_path):
    """The largest seed draws weights, dropout and rows."""
    from tests.train.loops import sft_config
    from train.run.run import Run

    run = Run.begin(sft_config(tmp_path / "run", f"optimization.seed={2**63 - 1}"))
    assert run.data.next_batch()


def test_decay_that_turns_weights_round():
    SftOptimizationSettings(learning_rate=0.5, weight_decay=1.5)
    with pytest.raises(ValueError, match=r"learning_rate \* weight_decay = 1.5"):
        SftOptimizationSettings(learning_rate=0.5, weight_decay=3.0)


def test_reading_alone_is_something_to_learn():
    """Regression: it counted as "every weight is 0"."""
    off = {"reply": 0.0, "kl": 0.0, "infonce": 0.0, "triplet": 0.0}
    assert LossSettings(**off, reading=1.0).reading
    assert ReplayLossSettings(**off, reading=1.0).reading
    assert LossSettings(**(off | {"kl": 1.0}), reading=1.0).kl
    with pytest.raises(ValueError, match=r"every weight is 0.*reading"):
        LossSettings(**off)


def test_a_run_of_reading_alone_learns(tmp_path):
    from tests.train.loops import events, sft_config
    from train.sft import train

    off = ["loss.reply=0", "loss.infonce=0", "loss.reading=1.0", "optimization.steps=4"]
    train(sft_config(tmp_path / "run", *off))
    first, *_, last = events(tmp_path / "run", "step")
    assert last["loss"] == last["reading"] < first["reading"]


def rl(**changed):
    source = SourceSettings(kind="hopworld", traces=False)
    return RlConfig(**({"model": {"path": "nano"}, "data": {"sources": (source,)}} | changed))


def test_a_reward_that_no_rollout_can_have():
    assert rl(contrastive={"min_reward": 1.0})
    assert rl(contrastive={"min_reward": 1.2}, reward={"margin": 0.5})
    assert rl(contrastive={"min_reward": 99.0, "weight": 0.0})
    with pytest.raises(ValueError, match=r"min_reward = 99.0 is above 1, the largest reward"):
        rl(contrastive={"min_reward": 99.0})


def test_dropout_of_an_adapter_in_stage_2():
    assert rl(model={"path": "nano", "lora": {}})
    with pytest.raises(ValueError, match=r"lora.dropout = 0.1 in stage 2: the policy's log-probabilities"):
        rl(model={"path": "nano", "lora": {"dropout": 0.1}})


def test_bfloat16_is_for_frozen_weights():
    assert ModelSettings(path="x", dtype="bfloat16", lora={}).dtype == "bfloat16"
    with pytest.raises(ValueError, match=r'dtype = "bfloat16" with every weight trained.*rounded away'):
        ModelSettings(path="x", dtype="bfloat16")
