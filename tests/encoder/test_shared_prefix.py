"""Attention that multiplies the rows' common beginning once: the numbers of plain attention, and where it is left."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from search_r3_mteb.encoder import shared_prefix
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.masks import DecodeMasks
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.shared_prefix import can_share, sharing

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
PREFIX = [*range(5, 29)]
PROMPTS = [[*PREFIX, *range(30, 30 + 1 + row % 3)] for row in range(7)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).eval()


@pytest.fixture
def used(monkeypatch):
    """The calls that the shared kernel served, with sharing switched on for small numbers."""
    calls, attend = [], shared_prefix._attend

    def counted(*given):
        calls.append(given[4])
        return attend(*given)

    monkeypatch.setattr(shared_prefix, "LEAST_SHARED", 1)
    monkeypatch.setattr(shared_prefix, "LEAST_COLUMNS", 1)
    monkeypatch.setattr(shared_prefix, "_attend", counted)
    return calls


def reasoned(model, **options):
    return Engine(model, 3, (), **options).reason(PROMPTS, Sampling(8))


@pytest.mark.parametrize("kind", [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_the_ids_and_vectors_of_plain_attention(kind, used, monkeypatch):
    torch.manual_seed(0)
    model = kind[0](kind[1](**SIZES, initializer_range=0.2)).eval()
    shared = reasoned(model)
    assert set(used) == {len(PREFIX)}
    monkeypatch.setattr(shared_prefix, "LEAST_SHARED", 1 << 60)
    count = len(used)
    plain = reasoned(model)
    assert len(used) == count
    assert shared.token_ids == plain.token_ids
    torch.testing.assert_close(shared.vectors, plain.vectors, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_beginning_that_is_not_common_gives_other_numbers(model, used):
    """The control of the equality: rows whose first columns differ would be wrong under sharing."""
    queries, keys, values = (torch.randn(3, heads, size, 16) for heads, size in ((6, 1), (2, 9), (2, 9)))
    seen = torch.arange(9) < torch.tensor([9, 8, 7])[:, None]
    mask = seen[:, None, None]
    attention = torch.nn.functional.scaled_dot_product_attention

    def both():
        plain = attention(queries, keys, values, attn_mask=mask, enable_gqa=True).transpose(1, 2)
        with torch.inference_mode():
            return plain, shared_prefix._attend(queries, keys, values, mask, 5, None)

    plain, shared = both()
    assert (plain - shared).abs().max() > 0.1
    keys[:, :, :5], values[:, :, :5] = keys[:1, :, :5], values[:1, :, :5]
    plain, shared = both()
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6)


def test_double_precision_is_kept(model):
    queries, keys = torch.randn(3, 6, 1, 16, dtype=torch.float64), torch.randn(1, 2, 9, 16, dtype=torch.float64)
    keys = keys.expand(3, -1, -1, -1)
    plain = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True).transpose(1, 2)
    shared = shared_prefix._attend(queries, keys, keys, None, 5, None)
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)


def test_few_rows_and_short_beginnings_are_attended_as_always(model, monkeypatch):
    def refuse(*given):
        raise AssertionError("the shared kernel ran")

    monkeypatch.setattr(shared_prefix, "_attend", refuse)
    reasoned(model)  # 7 rows x 24 columns
    monkeypatch.setattr(shared_prefix, "LEAST_SHARED", 1)
    reasoned(model)
    monkeypatch.setattr(shared_prefix, "LEAST_COLUMNS", 24)
    with pytest.raises(AssertionError, match="the shared kernel ran"):
        reasoned(model)
    assert model.config._attn_implementation == "sdpa"  # also after an error


def test_batches_that_must_not_depend_on_other_rows_share_nothing(model, used):
    reasoned(model, batch_invariant=True)
    reasoned(model, share_prefix=False)
    assert used == []


@pytest.mark.parametrize(
    "change", [{"attn_implementation": "eager"}, {"layer_types": ["full_attention", "sliding_attention"]}]
)
def test_models_that_do_not_fit_are_left_alone(change, used):
    kind = {"use_sliding_window": True, "sliding_window": 4} if "layer_types" in change else {}
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **kind, **change)).eval()
    assert not can_share(model.model, DecodeMasks(model.model))
    reasoned(model)
    assert used == []
    plain = Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()
    assert can_share(plain.model, DecodeMasks(plain.model))


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(6)}, {"dropout": 0.1}])
def test_scores_that_are_changed_otherwise_are_left_to_sdpa(extra):
    queries, keys = torch.randn(3, 6, 1, 16), torch.randn(3, 2, 9, 16)
    assert shared_prefix._fits(queries, keys, keys, None, 5, {})
    assert not shared_prefix._fits(queries, keys, keys, None, 5, extra)


def test_a_pass_of_another_thread_meanwhile_is_as_always(model):
    """A padded batch, as documents are; what the first row is fills the columns that the second does not have."""
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])

    def vectors():
        with torch.inference_mode():
            return model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]

    alone = vectors()
    with sharing(model.model, 100, 1000), ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(vectors).result(), alone)
        with sharing(model.model, 100, 1000):  # as of a third thread that begins now and ends later
            pass
    assert model.config._attn_implementation == "sdpa"
    mask = None
    assert not torch.allclose(vectors(), alone)  # control: the mask matters


def test_outside_of_the_context_nothing_is_shared(model):
    with sharing(model.model, 100, 1000) as shares:
        assert shares
        assert model.config._attn_implementation == shared_prefix.NAME
        assert shared_prefix._shared.get() == 100
    assert shared_prefix._shared.get() == 0
    with sharing(model.model, 3, 2) as shares:
        assert not shares
