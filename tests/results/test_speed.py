"""The scripts of results/speed: what they time is what would run without them."""

import inspect

import torch

from results.speed.limits import Inside
from results.speed.smol import linear_alone
from search_r3_mteb.encoder import packing
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.sampling import Sampling


def test_a_timed_forward_is_run_as_it_is_without_the_timing(make_model):
    """How a model is run depends on the parameters of its forward pass, which the timing must show."""
    model, prompts = make_model(), [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]]
    kind = type(model.base_model)
    plain = Engine(model, 3)
    expected = plain.reason(prompts, Sampling(6))
    parameters = inspect.signature(kind.forward)
    with Inside(kind) as inside:
        assert inspect.signature(kind.forward) == parameters
        timed = Engine(model, 3)
        found = timed.reason(prompts, Sampling(6))
    assert inside.seconds > 0
    assert found.token_ids == expected.token_ids
    assert torch.equal(found.vectors, expected.vectors)
    assert (timed.abreast, timed.computed_tokens) == (plain.abreast, plain.computed_tokens)


def test_linear_layers_alone_are_packed_and_all_of_them(monkeypatch, make_model):
    monkeypatch.setattr(packing, "LEAST_BYTES", 0)
    monkeypatch.setitem(packing.LEAST_NUMBERS, torch.float32, 0)
    seen = []
    multiply = packing._multiply
    monkeypatch.setattr(packing, "_multiply", lambda rows, **given: seen.append(len(rows)) or multiply(rows, **given))
    model = make_model()
    assert linear_alone(model, 5) > 0
    layers = sum(type(module) is torch.nn.Linear for module in model.modules())
    assert seen == [5] * 6 * layers
