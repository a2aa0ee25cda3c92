"""The work of a step, against what torch counts while the step runs."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import build_model
from tests.programs import mostly_slow
from tests.train.loops import byte_folder, rl_config, sft_config
from train.plan.work import PEAK_TFLOPS, Lengths, Machine, _Cost, longest, peak_of, work_of
from train.run.run import Run
from train.stage1.step import SupervisedStep

# Wide enough that matrices, not attention, are the work: torch has no formula for the CPU's attention.
WIDE = {"hidden_size": 128, "intermediate_size": 512, "num_key_value_heads": 4}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mini_batch", [None, 2])
@pytest.mark.parametrize("checkpointing", mostly_slow([False, True], True))
def test_passes_are_what_torch_counts(tmp_path, lora, mini_batch, checkpointing):
    more = ["optimization.batch_size=4", f"model.gradient_checkpointing={str(checkpointing).lower()}", "loss.kl=0"]
    more += [f"optimization.mini_batch_size={mini_batch}"] if mini_batch else []
    more += ["model.lora.rank=2", "model.lora.alpha=4.0"] if lora else []
    config = sft_config(tmp_path / "run", *more, model=byte_folder(tmp_path / "base", **WIDE))
    run = Run.begin(config)
    rows = run.data.next_batch()
    step = SupervisedStep(run, config.loss, config.optimization.mini_batch_size)
    step.backward(rows)  # what only the first step does
    columns, _ = step.prepare(rows)
    tokens = {name: [len(one.token_ids) for part in parts for one in part] for name, parts in columns.items()}
    with FlopCounterMode(display=False) as counter:
        step.backward(rows)
    traced = len(tokens["reason"]) / len(rows)
    lengths = Lengths(
        document=sum(tokens["documents"]) / len(tokens["documents"]),
        query=sum(tokens["direct"]) / len(rows),
        reply=sum(tokens["reason"]) / len(tokens["reason"]) - sum(tokens["direct"]) / len(rows),
        traced=traced,
        measured=True,
    )
    told = work_of(run.model, config, lengths, 1)
    assert told.rows == 4
    assert told.tokens["reasoned queries"] == pytest.approx(sum(tokens["reason"]))
    assert told.passes == pytest.approx(counter.get_total_flops(), rel=0.2)


def test_a_pass_by_hand():
    cost = _Cost.of(build_model(), checkpointing=True)
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert (cost.layers, cost.head, cost.attention) == (2 * matrices, 2 * 32 * 384, 4 * 2 * 32)
    assert (cost.backward, cost.again) == (2.0, 1.0)
    assert cost.forward(10, 5) == 10 * (2 * matrices + 256 * 2.5)
    assert cost.train(10, 0.0, 1) == 10 * 2 * matrices * 5


def test_every_setting_of_stage_two_that_costs_work_is_counted(tmp_path):
    model = build_model()

    def told(*more):
        config = rl_config(tmp_path / "run", "somewhere", *more)
        return work_of(model, config, longest(config), 1)

    base = told()
    assert base.rows == 16
    assert base.tokens["rollouts"] == 16 * (96 + 8)
    assert base.sampling > 0
    for more in (
        ["policy.updates_per_step=2"],
        ["policy.kl_weight=0.1"],
        ["corpus_cache.budget_tokens=3000"],
        ["corpus_cache.audit_every=1"],
        ["rollout.group_size=8"],
        ["rollout.max_reasoning_tokens=16"],
        ["model.gradient_checkpointing=true"],
    ):
        assert told(*more).passes > base.passes, more
    assert told("contrastive.weight=0").passes < base.passes


def test_hours_are_operations_over_what_is_reached(tmp_path):
    config = sft_config(tmp_path / "run", model="somewhere")
    model = build_model()
    work = work_of(model, config, longest(config), 1)
    hours = work.hours(10, Machine(gpus=2, utilisation=0.5), peak_tflops=3.0)
    assert hours == pytest.approx(10 * work.passes / (2 * 3e12 * 0.5) / 3600)
    assert peak_of(config, model, Machine()) == PEAK_TFLOPS["float32"]
    half = sft_config(tmp_path / "run", "optimization.mixed_precision=bf16", model="somewhere")
    assert peak_of(half, model, Machine()) == PEAK_TFLOPS["bf16"]
    assert peak_of(half, model, Machine(peak_tflops=5.0)) == 5.0


@pytest.mark.parametrize("bad", [{"utilisation": 0.0}, {"utilisation": 1.5}, {"gpus": 0}, {"peak_tflops": -1.0}])
def test_shares_and_counts_that_mean_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="must be above 0"):
        Machine(**bad)
