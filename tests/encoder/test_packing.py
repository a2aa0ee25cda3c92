"""Packed weights: the results of the plain layers, and nothing left behind."""

from contextlib import nullcontext

import pytest
import torch

from search_r3_mteb.encoder import engine as engine_module
from search_r3_mteb.encoder import packing
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.packing import packed_linears
from search_r3_mteb.encoder.sampling import Sampling

half = pytest.mark.skipif(not packing.packs(torch.bfloat16), reason="oneDNN packs no bfloat16 on this processor")


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.setitem(packing.LEAST_NUMBERS, torch.float32, 1024)
    monkeypatch.setattr(packing, "LEAST_BYTES", 0)
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.Linear(64, 32, bias=False)).eval()


@pytest.mark.parametrize("shape", [(1, 48), (5, 1, 48), (16, 48), (3, 70, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=half)])
def test_the_same_numbers(layers, shape, dtype):
    layers, rows = layers.to(dtype), torch.randn(shape, dtype=dtype)
    with torch.inference_mode():
        plain = layers(rows)
        with packed_linears(layers) as count:
            packed = layers(rows)
            layers[0].weight.data += 1  # the copy was made before: what it gives now shows that it is used
            kept = layers(rows)
            layers[0].weight.data -= 1
    assert count == 2
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert torch.equal(kept, packed)


@pytest.mark.parametrize(
    ("dtype", "rows", "packed"),
    [
        (torch.float32, 1, 0),
        (torch.float32, 3, 0),
        (torch.float32, 4, 2),
        (torch.float32, None, 2),
        pytest.param(torch.bfloat16, 1, 2, marks=half),
        (torch.float16, 1, 0),
    ],
)
def test_few_rows_go_through_plain_float32_weights(layers, dtype, rows, packed):
    with torch.inference_mode(), packed_linears(layers.to(dtype), rows) as count:
        assert count == packed


def test_the_engine_says_how_many_rows_there_are(make_model, monkeypatch):
    """Those of the groups together; a batch-invariant engine's passes always have the same number."""
    asked = []
    monkeypatch.setattr(engine_module, "packed_linears", lambda model, rows: asked.append(rows) or nullcontext())
    prompts = [[5, 6, 7], [5, 6, 8]]
    for group_size, invariant in ((1, False), (3, False), (1, True)):
        engine = Engine(make_model(), 3, batch_invariant=invariant)
        engine.reason(prompts, Sampling(2), group_size=group_size)
    assert asked[:2] == [2, 6]
    assert asked[2] == engine.shapes.rows > 2


def test_a_type_that_the_processor_cannot_pack_is_left_alone(layers, monkeypatch):
    """Regression: on a processor without AVX-512 every bfloat16 model raised RuntimeError at its first step."""
    monkeypatch.setattr(packing, "packs", lambda dtype: dtype != torch.bfloat16)
    for dtype, count in ((torch.bfloat16, 0), (torch.float32, 2)):
        with torch.inference_mode(), packed_linears(layers.to(dtype)) as packed:
            assert packed == count


@half
def test_under_autocast_the_weights_are_packed_in_its_type(layers):
    rows = torch.randn(16, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = layers(rows)
        with packed_linears(layers) as count:
            packed = layers(rows)
    assert count == 2
    assert plain.dtype == packed.dtype == torch.bfloat16
    torch.testing.assert_close(packed, plain, rtol=0, atol=2e-2)
    assert layers[0].weight.dtype == torch.float32


def test_weights_that_change_between_two_uses_are_packed_again(layers):
    rows = torch.randn(2, 48)
    with torch.inference_mode():
        with packed_linears(layers):
            before = layers(rows)
        layers[2].weight.mul_(2)
        with packed_linears(layers):
            after = layers(rows)
    torch.testing.assert_close(after, 2 * before)


def test_forwards_come_back_after_an_error(layers):
    with pytest.raises(RuntimeError, match="stop"), packed_linears(layers):
        raise RuntimeError("stop")
    assert all("forward" not in layer.__dict__ for layer in layers)
    layers(torch.randn(2, 48)).sum().backward()
    assert layers[0].weight.grad is not None


def test_what_stays_as_it_is(layers, monkeypatch):
    class Other(torch.nn.Linear):
        """A layer that may compute something else."""

    exchanged = torch.nn.Linear(64, 64)
    exchanged.forward = lambda rows: rows
    small = torch.nn.Linear(4, 4)
    with packed_linears(
        torch.nn.ModuleList([Other(64, 64), exchanged, small, torch.nn.Linear(64, 64).double()])
    ) as count:
        assert count == 0
    assert "forward" in exchanged.__dict__
    for name, limit in (("MOST_BYTES", 4 * 48 * 64), ("LEAST_BYTES", 1 << 22)):
        with monkeypatch.context() as changed, packed_linears(layers) as count:
            assert count == 2
            changed.setattr(packing, name, limit)
            with packed_linears(torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.Linear(64, 32))) as count:
                assert count == 0
