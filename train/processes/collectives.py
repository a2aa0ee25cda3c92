"""Rank, world size and collectives of the process group; without one, each collective is the identity.

DDP averages gradients over the processes. A process therefore divides its sums by `shared_count`, the number of items
on all processes over the number of processes: the average of such losses is the mean over all items, even where
processes have different numbers. A contrastive loss also needs the documents of the others, with gradient:
`gather_rows`.

The group is torch.distributed's default one, which accelerate initialises (gloo, nccl). sentence-transformers'
`all_gather_with_grad` wants equal shapes on all processes and uses a function that torch 2.13 deprecates.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

Result = TypeVar("Result")


def in_group() -> bool:
    """Whether accelerate or torchrun started this process in a group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if in_group() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if in_group() else 0


def on_main(action: Callable[[], Result]) -> Result:
    """Run `action` on the main process; all processes wait for it and get its result.

    An exception there is raised on every process: otherwise the others would wait until their time-out.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # noqa: BLE001  raised again below, on every process
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def gather(value: Result) -> list[Result]:
    """The values of all processes in the order of rank, on the main process; elsewhere an empty list."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.gather_object(value, values if rank() == 0 else None, dst=0)
    return values if rank() == 0 else []


def gather_arrays(arrays: Mapping[str, Shaped[np.ndarray, "..."]], device: Any) -> list[dict[str, Any]]:
    """The named arrays of every process, in the order of rank; shapes may differ. Every process must call it."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    message = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8).to(device)
    lengths = row_counts(len(message), device)
    padded = torch.cat([message, message.new_zeros(max(lengths) - len(message))])  # one message, of equal length
    messages = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(messages, padded)
    gathered = []
    for length, received in zip(lengths, messages, strict=True):
        with np.load(io.BytesIO(received[:length].cpu().numpy().tobytes()), allow_pickle=False) as loaded:
            gathered.append({name: loaded[name] for name in loaded.files})
    return gathered


def barrier() -> None:
    """Wait until every process is here."""
    if in_group():
        dist.barrier()


class _AllGather(torch.autograd.Function):
    """Equal-shaped tensors of all processes, concatenated; backward sums the gradients from every process's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # all_reduce instead of reduce_scatter, which gloo lacks: vectors are small beside the model's gradients.
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
    """The rows of all processes in the order of rank, (sum of rows, ...); processes may have different numbers, or 0.

    Differentiable: a row's gradient is the sum over the losses of all processes. Every process must call it, and run
    backward through it, equally often; otherwise the others wait for ever.
    """
    if world_size() == 1:
        return tensor
    counts = row_counts(len(tensor), tensor.device)
    widest = max(counts)
    padding = tensor.new_zeros(widest - len(tensor), *tensor.shape[1:])
    gathered: Tensor = _AllGather.apply(torch.cat([tensor, padding]))
    parts = [part[:count] for part, count in zip(gathered.split(widest), counts, strict=True)] if widest else [tensor]
    return torch.cat(parts)


def rows_before(rows: int, device: torch.device | None = None) -> int:
    """The number of this process's first row among those that `gather_rows` gives."""
    return sum(row_counts(rows, device)[: rank()])


def shared_count(here: int, device: torch.device | None = None) -> float:
    """The divisor of a sum over `here` items, with which the processes' average is the mean over the items of all."""
    return sum(row_counts(here, device)) / world_size()


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
