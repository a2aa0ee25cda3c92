"""Cached gradients equal the plain ones on a tiny causal LM with dropout, and need the memory of a mini-batch only."""

import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch

from train.losses.gradcache import Forward, cached_backward
from train.losses.stage1 import info_nce, kl_to_base, reply_cross_entropy, select_reply, triplet_margin

PROMPT, REPLY = 6, 3  # tokens of each row; the last one stands for the embed token


@pytest.fixture
def model(make_model):
    return make_model("qwen2", attention_dropout=0.3).train()


@pytest.fixture
def base(make_model):
    return make_model("qwen2", seed=1).requires_grad_(False)


def batch(rows, seed):
    return torch.randint(3, 380, (rows, PROMPT + REPLY), generator=torch.Generator().manual_seed(seed))


def hidden_states(model, ids):
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def documents(model, ids):
    return lambda: Forward(hidden_states(model, ids)[:, -1])


def replies(model, base, ids, tokens):
    """A query with its reasoning: the vector, and cross-entropy and KL on the reply in the same forward."""

    def run():
        hidden = hidden_states(model, ids)
        marked = torch.zeros_like(ids, dtype=torch.bool)
        marked[:, PROMPT:] = True

        def local():
            reply = select_reply(hidden, ids, marked)
            with torch.no_grad():
                base_reply = select_reply(hidden_states(base, ids), ids, marked)
            cross_entropy = reply_cross_entropy(reply.hidden, model.lm_head, reply.targets, count=tokens)
            kl = kl_to_base(reply.hidden, model.lm_head, base_reply.hidden, base.lm_head, count=tokens)
            return cross_entropy + 0.5 * kl

        return Forward(hidden[:, -1], local)

    return run


def contrastive(vectors):
    queries = torch.cat([vectors["direct"], vectors["reason"]])
    rows = len(vectors["direct"])
    positives = torch.arange(rows).repeat(2)
    loss = info_nce(queries, vectors["documents"], positives=positives)
    return loss + triplet_margin(
        queries, vectors["documents"][positives], vectors["documents"][positives.roll(1)][:, None]
    )


def columns(model, base, size, rows=6):
    direct, reason, docs = batch(rows, 1), batch(rows, 2), batch(rows + 2, 3)
    return {
        "documents": [documents(model, ids) for ids in docs.split(size)],
        "direct": [documents(model, ids) for ids in direct.split(size)],
        "reason": [replies(model, base, ids, rows * REPLY) for ids in reason.split(size)],
    }


def plain(columns, backward=True):
    """The same loss with every graph alive at once."""
    forwards = {name: [mini_batch() for mini_batch in parts] for name, parts in columns.items()}
    loss = contrastive({name: torch.cat([f.vectors for f in parts]) for name, parts in forwards.items()})
    local = sum(f.local_loss() for parts in forwards.values() for f in parts if f.local_loss)
    if backward:
        (loss + local).backward()
    return loss.detach(), local.detach()


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_equals_the_plain_loss_with_dropout(model, base):
    torch.manual_seed(7)
    loss, local = plain(columns(model, base, size=2))
    state_after_plain = torch.get_rng_state()
    expected = gradients(model)
    assert len(expected) == sum(1 for _ in model.parameters())
    torch.manual_seed(7)
    cached = cached_backward(columns(model, base, size=2), contrastive)
    torch.testing.assert_close(cached.contrastive, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached.local, local, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), state_after_plain)  # what follows draws the same numbers too
    # Negative control: other dropout masks give other gradients, so the comparison can fail.
    torch.manual_seed(8)
    cached_backward(columns(model, base, size=2), contrastive)
    with pytest.raises(AssertionError):
        assert_equal_gradients(gradients(model), expected)


def test_mini_batch_size_changes_nothing_without_dropout(model, base):
    model.eval()
    plain(columns(model, base, size=6))
    expected = gradients(model)
    for size in (1, 4):
        cached_backward(columns(model, base, size=size), contrastive)
        assert_equal_gradients(gradients(model), expected)
    # Negative control: a loss per mini-batch has fewer negatives and other gradients.
    for ids in (slice(0, 3), slice(3, 6)):
        parts = {
            "documents": [documents(model, batch(8, 3)[ids])],
            "direct": [documents(model, batch(6, 1)[ids])],
            "reason": [replies(model, base, batch(6, 2)[ids], 6 * REPLY)],
        }
        plain(parts)
    with pytest.raises(AssertionError):
        assert_equal_gradients(gradients(model), expected)


def test_equals_the_plain_loss_under_autocast(model, base):
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain(columns(model, base, size=2))
    expected = gradients(model)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_backward(columns(model, base, size=2), contrastive)
    actual = gradients(model)
    assert actual.keys() == expected.keys()  # weights cached without a graph would have no gradient
    for name in expected:
        error = (actual[name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.02, name  # backward in bfloat16 adds in another order


def test_without_replay_the_second_forward_is_refused(model, base, monkeypatch):
    import sentence_transformers.base.losses.gradcache as theirs

    monkeypatch.setattr(theirs, "RandContext", lambda *_: nullcontext())
    with pytest.raises(ValueError, match=r"Mini-batch 0 of column 'documents' gave other vectors the second time"):
        cached_backward(columns(model, base, size=2), contrastive)


def test_random_numbers_from_elsewhere_are_refused():
    weight, numbers = torch.ones(3, requires_grad=True), iter((0.1, 0.5, 0.9, 0.3))

    def noisy():
        return Forward(torch.eye(3) * weight + next(numbers))

    with pytest.raises(ValueError, match="column 'q' gave other vectors"):
        cached_backward({"q": [noisy, noisy]}, lambda v: info_nce(v["q"], v["q"]))


def test_gradient_accumulation_and_no_sync():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    entered = []

    @contextmanager
    def no_sync():
        entered.append("skip")
        yield

    def mini_batch(rows):
        return lambda: Forward(torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)) * weight)

    parts = {"q": [mini_batch(2), mini_batch(3)], "d": [mini_batch(5), mini_batch(1)]}

    def loss(vectors):
        return info_nce(vectors["q"], vectors["d"], temperature=0.5)

    cached_backward(parts, loss, no_sync=no_sync)
    whole = weight.grad.clone()
    assert entered == ["skip"] * 3  # every mini-batch but the last
    weight.grad = None
    for _ in range(2):  # as accelerate.backward does with two accumulation steps
        cached_backward(parts, loss, backward=lambda surrogate: (surrogate / 2).backward())
    torch.testing.assert_close(weight.grad, whole)


def test_refuses():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    column = [lambda: Forward(torch.eye(3) * weight)]
    for parts in (1, 2):
        with pytest.raises(ValueError, match="does not depend on column 'd'"):
            cached_backward({"q": column * parts, "d": column * parts}, lambda v: info_nce(v["q"], v["q"]))
    with pytest.raises(ValueError, match=r"Columns without a mini-batch: \['d'\]"):
        cached_backward({"q": column, "d": []}, lambda v: info_nce(v["q"], v["q"]))
    with pytest.raises(ValueError, match="`gradient of q`"):
        cached_backward({"q": column}, lambda v: v["q"].sum().log() * torch.inf)


def test_one_mini_batch_a_column_runs_the_model_once():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    calls = []

    def mini_batch():
        calls.append(1)
        return Forward(torch.eye(3) * weight, lambda: weight.sum())

    loss = cached_backward({"q": [mini_batch]}, lambda v: info_nce(v["q"], v["q"]))
    assert calls == [1]
    single = weight.grad.clone()
    weight.grad = None
    (info_nce(torch.eye(3) * weight, torch.eye(3) * weight) + weight.sum()).backward()
    torch.testing.assert_close(single, weight.grad)
    assert float(loss.local.detach()) == 6.0


class _Held:
    """One tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def peak_of_kept_activations(run, model):
    """Most bytes that autograd kept for backward passes at any one time, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    meter = {"now": 0, "peak": 0}

    def release(size):
        meter["now"] -= size

    def pack(tensor):
        held = _Held(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            size = tensor.numel() * tensor.element_size()
            meter["now"] += size
            meter["peak"] = max(meter["peak"], meter["now"])
            weakref.finalize(held, release, size)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        run()
    assert meter["now"] == 0
    return meter["peak"]


def test_memory_grows_with_the_mini_batch_and_not_with_the_batch(model, base):
    def peak(rows, size):
        return peak_of_kept_activations(lambda: cached_backward(columns(model, base, size, rows), contrastive), model)

    small = peak(rows=4, size=2)
    assert peak(rows=16, size=2) < 1.1 * small
    assert 1.6 * small < peak(rows=16, size=4) < 2.2 * small
    # Negative control: the plain loss keeps everything.
    assert peak_of_kept_activations(lambda: plain(columns(model, base, 2, 16)), model) > 15 * small
