"""Losses over several processes: with a share of the batch each, they give the loss and gradients of one process with all of it.

DDP averages gradients over the processes. A process therefore divides its sums by `shared_count`, the number of items on all
processes over the number of processes: the average of such losses is the mean over all items, whether or not the processes
have equally many. A contrastive loss also needs the documents of the others, with gradient: `gather_rows`.

Without a process group everything here is the identity, so that a loop is written once. It works on whatever backend
accelerate initialised (gloo, nccl); sentence-transformers' `all_gather_with_grad` wants equal shapes on all processes and
rests on a function that torch 2.13 deprecates, so it is not used.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from train.losses import TEMPERATURE, Advantages, group_advantages, info_nce, negative_mask


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Equal-shaped tensors of all processes, concatenated; backward sums what every process's loss has to say about ours."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # all_reduce instead of reduce_scatter: gloo lacks the latter, and vectors are small beside the model's gradients.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def row_counts(rows: int, device: torch.device | None = None) -> list[int]:
    """How many rows each process has."""
    if world_size() == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([rows], device=device))
    return [int(count) for count in counts]


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of rank, (sum of rows, ...); processes may have different numbers, also none.

    Differentiable: a row's gradient is the sum over the losses of all processes. Every process must call it, and run backward
    through it, equally often; otherwise the others wait for ever.
    """
    if world_size() == 1:
        return tensor
    counts = row_counts(len(tensor), tensor.device)
    widest = max(counts)
    padding = tensor.new_zeros(widest - len(tensor), *tensor.shape[1:])
    gathered: Tensor = _AllGather.apply(torch.cat([tensor, padding]))
    return (
        torch.cat([part[:count] for part, count in zip(gathered.split(widest), counts, strict=True)])
        if widest
        else tensor
    )


def shared_count(here: int, device: torch.device | None = None) -> float:
    """What a sum over `here` items is divided by, so that the processes' average is the mean over the items of all."""
    return sum(row_counts(here, device)) / world_size()


def gathered_info_nce(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    positives: Int[Tensor, " queries"],
    document_ids: Int[Tensor, " documents"],
    query_ids: Int[Tensor, " queries"],
    *,
    relevant: Int[Tensor, "pairs 2"] | None = None,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """`info_nce` of this process's queries against the documents of all processes, with gradient to all of them.

    Arguments are this process's own; `positives` are columns of its own `documents`, ids mean the same on all processes, and
    `relevant` are the (query id, document id) pairs that this process knows. The average over processes is the loss of the
    whole batch.
    """
    counts = row_counts(len(documents), documents.device)
    positives = positives + sum(counts[: rank()])
    own_pairs = torch.stack([query_ids, document_ids[positives - sum(counts[: rank()])]], dim=1)
    pairs = gather_rows(own_pairs if relevant is None else torch.cat([own_pairs, relevant.to(own_pairs)]))
    every_id = gather_rows(document_ids)
    return info_nce(
        queries,
        gather_rows(documents),
        positives=positives,
        negatives=negative_mask(positives, every_id, query_ids=query_ids, relevant=pairs),
        temperature=temperature,
        count=shared_count(len(queries), queries.device),
    )


def gathered_advantages(
    rewards: Float[Tensor, " rollouts"], groups: Int[Tensor, " rollouts"], *, standardise: bool = False
) -> Advantages:
    """Advantages of this process's rollouts in groups that may lie on several processes; group counts are those of all.

    `groups` are ids of prompts that mean the same on all processes: two prompts under one id would be compared with each other.
    """
    counts = row_counts(len(rewards), rewards.device)
    whole = group_advantages(gather_rows(rewards), gather_rows(groups), standardise=standardise)
    values = whole.values.split(counts)[rank()]
    return Advantages(values=values, groups=whole.groups, zero_variance_groups=whole.zero_variance_groups)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its average over the processes: what DDP does, for a model that DDP does not wrap.

    A parameter that only some processes used counts as 0 on the others; without any gradient it stays without.
    """
    if world_size() == 1:
        return
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        return
    used = torch.tensor([float(parameter.grad is not None) for parameter in trainable], device=trainable[0].device)
    dist.all_reduce(used)
    for parameter, users in zip(trainable, used.tolist(), strict=True):
        if users:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def average(values: dict[str, float], device: torch.device | None = None) -> dict[str, float]:
    """Each number averaged over the processes, which must hold the same names in the same order."""
    if world_size() == 1:
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(numbers)
    return dict(zip(values, (numbers / world_size()).tolist(), strict=True))
