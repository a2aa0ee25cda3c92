"""The optimizers' groups and the learning-rate schedule, by hand; Muon beside AdamW equals each of them alone."""

import copy

import pytest
import torch
from torch import nn

from train.config.run import OptimizationSettings
from train.run.optimizer import learning_rate, make_optimizer, set_learning_rate


def settings(**changed):
    return OptimizationSettings(**({"steps": 10, "learning_rate": 1.0, "warmup_steps": 2} | changed))


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("constant", 0.0, {1: 0.5, 2: 1.0, 3: 1.0, 10: 1.0}),
        ("linear", 0.0, {1: 0.5, 2: 1.0, 3: 1.0, 7: 0.5, 10: 0.125}),
        ("linear", 0.2, {2: 1.0, 7: 0.6, 10: 0.3}),
        ("cosine", 0.0, {2: 1.0, 5: 0.853553, 7: 0.5, 10: 0.038060}),
        ("cosine", 0.1, {2: 1.0, 7: 0.55, 10: 0.134254}),
    ],
)
def test_schedule(schedule, share, expected):
    chosen = settings(schedule=schedule, final_share=share)
    assert {step: learning_rate(step, chosen) for step in expected} == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_every_step_has_a_rate():
    """Regression: the last step of the default schedule had rate 0, and a run of one step learned nothing."""
    assert learning_rate(1, settings(warmup_steps=0, steps=1)) == 1.0
    assert [learning_rate(step, settings(warmup_steps=0, steps=4)) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
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


class Tied(nn.Module):
    """An embedding that is the head as well, a hidden matrix and a norm."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        return self.head(self.norm(self.hidden(self.embedding(ids)).relu()))


def steps(model, *optimizers, count=3, start=0):
    for number in range(start, start + count):
        model(torch.tensor([number % 5, 1, 2])).pow(2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_muon_has_the_hidden_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    together = Tied()
    apart, adamw = copy.deepcopy(together), copy.deepcopy(together)
    chosen = settings(optimizer="muon", learning_rate=0.02, weight_decay=0.1)
    optimizer = make_optimizer(together, chosen)
    assert [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups] == [
        [(4, 4)],
        [(5, 4)],
        [(4,), (4,), (4,)],
    ]
    steps(together, optimizer)
    muon = torch.optim.Muon([apart.hidden.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW(
        [
            {"params": [apart.embedding.weight], "weight_decay": 0.1},
            {"params": [apart.hidden.bias, *apart.norm.parameters()], "weight_decay": 0.0},
        ],
        lr=0.02,
    )
    steps(apart, muon, rest)
    assert same(together, apart)
    steps(adamw, make_optimizer(adamw, settings(learning_rate=0.02, weight_decay=0.1)))
    assert not torch.allclose(together.hidden.weight, adamw.hidden.weight, atol=1e-3), (
        "the control: AdamW goes elsewhere"
    )


def test_muon_and_adamw_continue_from_one_state():
    torch.manual_seed(0)
    whole = Tied()
    chosen = settings(optimizer="muon", learning_rate=0.02)
    optimizer = make_optimizer(whole, chosen)
    steps(whole, optimizer)
    resumed, forgetful = copy.deepcopy(whole), copy.deepcopy(whole)
    continued = make_optimizer(resumed, chosen)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, own in ((whole, optimizer), (resumed, continued), (forgetful, make_optimizer(forgetful, chosen))):
        set_learning_rate(own, 0.01)
        steps(model, own, start=3)
    assert same(whole, resumed)
    assert not same(whole, forgetful), "the control: the moments matter"


def test_muon_refuses_adapters_shards_and_closures():
    model = Tied()
    with pytest.raises(ValueError, match="shards"):
        make_optimizer(model, settings(optimizer="muon"), sharded=True)
    with pytest.raises(ValueError, match="no closure"):
        make_optimizer(model, settings(optimizer="muon")).step(lambda: None)
    model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="full fine-tuning"):
        make_optimizer(model, settings(optimizer="muon"))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_decay_is_that_of_transformers(schedule):
    from transformers import get_scheduler

    chosen = settings(schedule=schedule, warmup_steps=0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=10)
    for step in range(1, 11):
        assert learning_rate(step, chosen) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
