"""The memory estimate, against sizes counted by hand."""

import pytest

from tests.conftest import build_model
from train.run.memory import estimate


def found(model, **changed):
    given = {"rows": 2, "length": 10, "gradient_checkpointing": False, "base_copy": False, "compute_bytes": 4}
    return estimate(model, **(given | changed))


def test_parts_by_hand():
    model = build_model()
    # Embedding 384 x 32; per layer q 32x32+32, k and v 32x16+16, o 32x32, three of 32x64, two norms; the last norm.
    layer = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32 + 3 * 32 * 64 + 2 * 32
    count = 384 * 32 + 2 * layer + 32
    one = found(model)
    assert one.parameters == one.trainable_parameters == count
    assert (one.weights, one.gradients, one.optimizer, one.base_copy) == (4 * count, 4 * count, 8 * count, 0)
    assert one.activations == 2 * 17 * 2 * 10 * 32 * 4
    assert one.total == one.weights + one.gradients + one.optimizer + one.activations


def test_what_each_choice_saves():
    model = build_model()
    whole = found(model)
    assert found(model, gradient_checkpointing=True).activations == 2 * 2 * 10 * 32 * 4 + whole.activations // 2
    assert found(model, compute_bytes=2).activations == whole.activations // 2
    assert found(model, base_copy=True).base_copy == whole.weights
    assert found(model, rows=4).activations == 2 * whole.activations
    for parameter in model.base_model.layers.parameters():
        parameter.requires_grad_(False)
    frozen = found(model)
    assert frozen.trainable_parameters == 384 * 32 + 32
    assert frozen.optimizer == 8 * frozen.trainable_parameters
    assert frozen.weights == whole.weights


def test_lines_are_for_people():
    first, second = found(build_model()).lines()
    assert first.startswith(f"parameters: {found(build_model()).parameters:,}, trainable: ")
    assert "(100.00%)" in first
    for part in ("weights", "gradients", "optimizer", "base copy", "activations", "total"):
        assert part in second


def test_other_architectures_have_the_same_names():
    assert found(build_model("gpt2")).activations == pytest.approx(found(build_model()).activations)
