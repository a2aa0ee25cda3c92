"""AdamW's groups and the learning-rate schedule, by hand."""

import pytest
import torch
from torch import nn

from train.optimizer import learning_rate, make_optimizer, set_learning_rate
from train.settings import Optimization


def settings(**changed):
    return Optimization(**({"steps": 10, "learning_rate": 1.0, "warmup_steps": 2} | changed))


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("constant", 0.0, {1: 0.5, 2: 1.0, 3: 1.0, 10: 1.0}),
        ("linear", 0.0, {1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("linear", 0.2, {2: 1.0, 6: 0.6, 10: 0.2}),
        ("cosine", 0.0, {2: 1.0, 4: 0.853553, 6: 0.5, 10: 0.0}),
        ("cosine", 0.1, {2: 1.0, 6: 0.55, 10: 0.1}),
    ],
)
def test_schedule(schedule, share, expected):
    chosen = settings(schedule=schedule, final_share=share)
    assert {step: learning_rate(step, chosen) for step in expected} == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_has_a_rate():
    assert learning_rate(1, settings(warmup_steps=0, steps=1)) == 0.0  # the last step of a linear schedule
    assert learning_rate(1, settings(warmup_steps=0, steps=4)) == 0.75
    assert learning_rate(1, settings(warmup_steps=0, steps=4, schedule="constant")) == 1.0


def test_decay_is_for_matrices_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model, settings(weight_decay=0.3, betas=(0.8, 0.9), epsilon=1e-7))
    matrices, vectors = optimizer.param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(4,), (4,), (4,)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert (matrices["betas"], matrices["eps"]) == ((0.8, 0.9), 1e-7)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_a_model_of_matrices_alone_has_one_group():
    model = nn.Linear(2, 2, bias=False)
    optimizer = make_optimizer(model, settings())
    assert len(optimizer.param_groups) == 1
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
