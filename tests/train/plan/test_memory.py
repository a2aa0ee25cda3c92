"""The memory estimate, against sizes counted by hand and against what the loops allocate."""

import pytest
import torch

from tests.conftest import build_model
from tests.train.loops import rl_config, sft_config
from train.plan.memory import estimate, rows_at_once

# Embedding 384 x 32; per layer q 32x32+32, k and v 32x16+16, o 32x32, three of 32x64, two norms; the last norm.
LAYER = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32 + 3 * 32 * 64 + 2 * 32
COUNT = 384 * 32 + 2 * LAYER + 32


@pytest.fixture
def sft(tmp_path):
    """Stage 1 settings: batches of 2 rows of up to 10 tokens."""
    return lambda *more: sft_config(
        tmp_path / "run", "optimization.batch_size=2", "data.max_length=10", *more, model="somewhere"
    )


def test_parts_by_hand(sft):
    one = estimate(build_model(), sft())
    assert one.parameters == one.trainable_parameters == COUNT
    assert (one.weights, one.gradients, one.optimizer, one.base_copy) == (4 * COUNT, 4 * COUNT, 8 * COUNT, 0)
    assert one.compute_copy == one.rollouts == 0
    assert one.activations == 2 * 2 * 10 * 4 * (9 * 32 + 2 * 64)
    assert one.head == 3 * 20 * 384 * 4
    assert one.total == one.weights + one.gradients + one.optimizer + one.activations + one.head


def test_what_each_choice_saves_and_costs(sft):
    model = build_model()
    whole = estimate(model, sft())
    checkpointed = estimate(model, sft("model.gradient_checkpointing=true"))
    assert checkpointed.activations == 2 * 2 * 10 * 32 * 4 + whole.activations // 2
    half = estimate(model, sft("optimization.mixed_precision=bf16"))
    assert half.activations == whole.activations // 2
    assert half.compute_copy == sum(2 * p.numel() for p in model.parameters() if p.ndim == 2)
    assert estimate(model, sft("loss.kl=1")).base_copy == whole.weights
    adapter = estimate(model, sft("loss.kl=1", "model.lora.rank=2"))
    assert adapter.base_copy == 8 * adapter.trainable_parameters, "two copies of what is trained"
    assert estimate(model, sft("optimization.batch_size=4")).activations == 2 * whole.activations
    assert estimate(model, sft("optimization.batch_size=4"), gpus=2).activations == whole.activations
    assert estimate(model, sft("optimization.mini_batch_size=1")).activations == whole.activations // 2
    for parameter in model.base_model.layers.parameters():
        parameter.requires_grad_(False)
    kept = estimate(model, sft("optimization.mixed_precision=bf16", "model.gradient_checkpointing=true"))
    assert kept.compute_copy == 2 * 384 * 32, "of the frozen layers, only the one that is recomputed has a copy"
    frozen = estimate(model, sft())
    assert frozen.trainable_parameters == 384 * 32 + 32
    assert frozen.optimizer == 8 * frozen.trainable_parameters
    assert frozen.weights == whole.weights


def test_hard_negatives_are_rows_of_the_same_forward(sft):
    more = ["loss.hard_negatives=true", "data.hard_negatives=3"]
    assert rows_at_once(sft(*more), 1)[0] == 8
    assert rows_at_once(sft(*more, "optimization.mini_batch_size=2"), 1)[0] == 2


def test_sampling_holds_keys_and_values_but_no_gradients(tmp_path):
    config = rl_config(tmp_path / "run", "somewhere", "rollout.batch_tokens=1000000")
    one = estimate(build_model(), config)
    assert one.rollouts == 1_000_000 * 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, size, bytes
    assert one.total == one.weights + one.optimizer + one.rollouts + one.head
    small = estimate(build_model(), rl_config(tmp_path / "run", "somewhere", "rollout.batch_tokens=1"))
    assert small.total == small.weights + small.optimizer + small.gradients + small.activations + small.head


def test_the_reserved_keys_and_values_are_what_a_rollout_takes(tiny_checkpoint):
    """The formula for one position, against the tensors that a model's own cache holds."""
    from transformers import DynamicCache

    from train.plan.memory import _bytes_per_position

    for kind in ("qwen2", "llama", "gpt2"):
        model, cache = build_model(kind), DynamicCache()
        with torch.no_grad():
            model(input_ids=torch.arange(7)[None], past_key_values=cache)
        held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        assert _bytes_per_position(model.config, 4) * 7 == held


def test_weights_gradients_and_moments_are_those_of_a_run(tmp_path):
    """What AdamW and backward really hold after a step."""
    from tests.train.loops import byte_folder
    from train.run.run import Run
    from train.stage1.step import SupervisedStep

    config = sft_config(tmp_path / "run", model=byte_folder(tmp_path / "base"))
    run = Run.begin(config)
    SupervisedStep(run, config.loss).backward(run.data.next_batch())
    run.optimizer.step()
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    one = estimate(run.checkpoint.model, config)
    assert one.weights == size(run.checkpoint.model.parameters())
    assert one.gradients == size(p.grad for p in run.checkpoint.model.parameters())
    moments = [t for state in run.optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert one.optimizer == size(moments)


def test_lines_are_for_people(sft):
    one = estimate(build_model(), sft())
    first, second = one.lines()
    assert first.startswith(f"parameters: {one.parameters:,}, trainable: ")
    assert "(100.00%)" in first
    for part in ("weights", "gradients", "optimizer", "base copy", "activations", "head", "rollouts", "total"):
        assert part in second


def test_other_architectures_have_the_same_names(sft):
    """GPT-2's feed-forward part is four times as wide as the model."""
    assert estimate(build_model("gpt2"), sft()).activations == 2 * 2 * 10 * 4 * (9 * 32 + 2 * 128)
