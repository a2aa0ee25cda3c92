"""Cached gradients (GradCache, arXiv 2101.06983): a contrastive loss over a batch that does not fit in memory.

    1. Every mini-batch goes through the model without a graph; only its vectors and the random state are kept.
    2. The contrastive loss of all vectors gives the gradient at each vector: the cache. No model is involved.
    3. Every mini-batch goes through the model again, with a graph and the same random state (so the same dropout mask);
       `sum(vectors * cached gradient)` has exactly the gradient of the whole batch's loss through these vectors.

One mini-batch of activations is alive at a time, so memory grows with the mini-batch and not with the batch.

`RandContext`, which saves and replays the random state, is sentence-transformers'. Their `CachedLossMixin` is not used,
because it fits one shape only: one model called on a dict of features, sliced by rows, that returns one
"sentence_embedding". Here a step has several kinds of forwards (a query direct, the same query with its reasoning,
documents), each a chat prompt with its own spans, and step 3 also carries the losses that need no other row
(cross-entropy and KL on the reply's tokens): a forward of their own would cost half as much again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.losses.checks import at_least_float32, require_finite


@dataclass(frozen=True)
class Forward:
    """The vectors of one mini-batch, and a function that computes the losses of this mini-batch alone.

    `local_loss` is called in the second pass only, so the first one computes no logits. It returns a sum over its own
    tokens, divided by the count of the whole batch (see stage1.py); the losses of all mini-batches are added up.
    """

    vectors: Float[Tensor, "rows dim"]
    local_loss: Callable[[], Float[Tensor, ""]] | None = None


@dataclass(frozen=True)
class CachedLoss:
    """The two parts of the loss, without graph: their gradients have already been added to the parameters."""

    contrastive: Float[Tensor, ""]
    local: Float[Tensor, ""]


MiniBatch = Callable[[], Forward]
ContrastiveLoss = Callable[[dict[str, Tensor]], Tensor]


def cached_backward(
    columns: Mapping[str, Sequence[MiniBatch]],
    contrastive: ContrastiveLoss,
    *,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> CachedLoss:
    """Add the gradient of `contrastive(vectors of each column)` + all local losses to the parameters; both losses.

    When every column is one mini-batch, each runs once, with a graph; memory is then that of the batch.

    `columns` maps a name ("direct", "reason", "documents") to its mini-batches: functions that run the model. Each is
    called twice and gives the same vectors both times under the same torch random state. `contrastive` gets a dict of
    (rows, dim) tensors, float32 or wider, the mini-batches of each column concatenated in order.

    `backward` runs a backward pass: `accelerator.backward` divides for gradient accumulation and scales for float16.
    `no_sync` is entered for every mini-batch but the last, which then makes DDP average once; under DDP the last
    mini-batch of the last column must reach every trainable parameter (put replies there, not documents), or use
    `collectives.average_gradients` instead. FSDP needs the same number of mini-batches on every process.

    Raises ValueError when a column has no mini-batch, when the loss does not depend on a column, when a gradient is not
    finite, and when a mini-batch gives other vectors the second time.
    """
    empty = [name for name, mini_batches in columns.items() if not mini_batches]
    if empty or not columns:
        raise ValueError(f"Columns without a mini-batch: {empty or 'all'}. Leave an unused column out.")
    if all(len(mini_batches) == 1 for mini_batches in columns.values()):
        return _single_pass({name: mini_batches[0] for name, mini_batches in columns.items()}, contrastive, backward)
    from sentence_transformers.base.losses.gradcache import RandContext  # takes seconds: not before it is needed

    device = _rng_device()
    states: dict[str, list[RandContext]] = {name: [] for name in columns}
    leaves: dict[str, list[Tensor]] = {name: [] for name in columns}
    with torch.no_grad():
        for name, mini_batches in columns.items():
            for mini_batch in mini_batches:
                states[name].append(RandContext(torch.empty(0, device=device)))
                vectors = mini_batch().vectors
                if vectors.device.type != "cpu" and vectors.device != device:
                    raise ValueError(
                        f"Column {name!r} gave vectors on {vectors.device}, but the random state of {device} was "
                        "saved. Call torch.cuda.set_device with the model's device."
                    )
                leaves[name].append(at_least_float32(vectors.detach()))
    torch.clear_autocast_cache()  # pass 2 must not use bfloat16 copies of the weights made without a graph
    loss, cache = _vector_gradients(leaves, contrastive)
    local = torch.zeros((), dtype=loss.dtype, device=loss.device)
    left = sum(len(mini_batches) for mini_batches in columns.values())
    for name, mini_batches in columns.items():
        for index, mini_batch in enumerate(mini_batches):
            left -= 1
            with nullcontext() if left == 0 else no_sync():
                with states[name][index]:
                    forward = mini_batch()
                    own = None if forward.local_loss is None else forward.local_loss()
                again = at_least_float32(forward.vectors)
                _require_same(leaves[name][index], again.detach(), forward.vectors.dtype, name, index)
                surrogate = (again * cache[name][index]).sum()
                if own is not None:
                    local = local + own.detach().to(local)
                    surrogate = surrogate + own
                backward(surrogate)
    return CachedLoss(contrastive=loss, local=local)


def _single_pass(
    columns: Mapping[str, MiniBatch], contrastive: ContrastiveLoss, backward: Callable[[Tensor], object]
) -> CachedLoss:
    """One forward per column, with a graph: where no column is cut in parts, a second forward would save nothing.

    The gradient at the vectors is still taken first, so that on every process the backward of the gathers is done
    before DDP begins to average, whether or not another process has more mini-batches or columns.
    """
    forwards = {name: mini_batch() for name, mini_batch in columns.items()}
    vectors = {name: at_least_float32(forward.vectors) for name, forward in forwards.items()}
    loss, cache = _vector_gradients({name: [rows.detach()] for name, rows in vectors.items()}, contrastive)
    surrogate = torch.stack([(rows * cache[name][0]).sum() for name, rows in vectors.items()]).sum()
    local = torch.zeros_like(loss)
    for forward in forwards.values():
        if forward.local_loss is not None:
            own = forward.local_loss()
            local = local + own.detach().to(local)
            surrogate = surrogate + own
    backward(surrogate)
    return CachedLoss(contrastive=loss, local=local)


def _vector_gradients(
    leaves: Mapping[str, Sequence[Tensor]], contrastive: ContrastiveLoss
) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
    """The loss of all vectors, and its gradient at each mini-batch's."""
    joined = {name: torch.cat(list(parts)).requires_grad_() for name, parts in leaves.items()}
    loss = contrastive(joined)
    gradients: tuple[Tensor | None, ...] = (None,) * len(joined)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(joined.values()), allow_unused=True)
    cache: dict[str, tuple[Tensor, ...]] = {}
    for (name, parts), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"The contrastive loss does not depend on column {name!r}: its vectors get no gradient, though each is "
                "computed twice. Leave the column out, or do not detach it."
            )
        require_finite(**{f"gradient of {name}": gradient})
        cache[name] = gradient.split([len(part) for part in parts])
    return loss.detach(), cache


def _rng_device() -> torch.device:
    """The current device of this process, where random numbers are drawn beside the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def _require_same(first: Tensor, second: Tensor, dtype: torch.dtype, name: str, index: int) -> None:
    """ValueError when the second forward differs by more than a GPU kernel's rounding, as with another dropout mask."""
    tolerance = 1e-3 if torch.finfo(dtype).bits >= 32 else 5e-2
    same = first.shape == second.shape and bool(
        ((first - second).abs() <= tolerance * first.abs().amax(dim=-1, keepdim=True)).all()
    )
    if not same:
        raise ValueError(
            f"Mini-batch {index} of column {name!r} gave other vectors the second time: the cached gradient does not "
            "belong to them. The function must be repeatable under torch's random state: no random numbers from Python "
            "or NumPy, no changed inputs, no counter."
        )
