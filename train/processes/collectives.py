"""Rank, world size and collectives of the process group: the one place where training talks between processes.

A tensor travels on its own device, through torch.distributed's default group, which accelerate initialises (nccl,
gloo). What the default group has no backend for, and everything that lies in host memory anyway (arrays, objects,
exceptions), travels through a gloo group of our own: under nccl there are no collectives of CPU tensors. Without a
group each collective is the identity; a group of one process runs them all, so that one GPU shows what several would.

DDP averages gradients over the processes. A process therefore divides its sums by `shared_count`, the number of items
on all processes over the number of processes: the average of such losses is the mean over all items, even where
processes have different numbers. A contrastive loss also needs the documents of the others, with gradient:
`gather_rows`.

A step's collectives wait `STEP_WAIT` for the slowest process. Work of one process alone (`on_main`, or what ends in a
`barrier`: mining, the neighbour graph, copies of checkpoints, exports) may take hours on a real corpus: the others wait
in the gloo group, for up to `LONG_WAIT`, outside of every collective of the device, whose watchdog would end them. A
group, and not a file or a store to wait on, because its connections break when a process dies: the others then end at
once, with an `OtherProcessError`, instead of polling for what never comes.

sentence-transformers' `all_gather_with_grad` wants equal shapes on all processes and uses a function that torch 2.13
deprecates.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from search_r3_mteb.encoder.processes import LONG_WAIT, host_group
from train.processes.errors import OtherProcessError

Result = TypeVar("Result")

STEP_WAIT = timedelta(minutes=30)
"""How long a process waits for another one inside a step: rollouts and evaluations differ in length (our choice)."""


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
    if not in_group():
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # noqa: BLE001  raised again below, on every process
            outcome[1] = _that_travels(error)
    with _together("the main process's work"):
        dist.broadcast_object_list(outcome, src=0, group=host_group(LONG_WAIT))
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def gather(value: Result) -> list[Result]:
    """The values of all processes in the order of rank, on every process. Every process must call it."""
    if not in_group():
        return [value]
    values: list[Any] = [None] * world_size()
    with _together("a gathering of objects"):
        dist.all_gather_object(values, value, group=host_group(STEP_WAIT))
    return values


def gather_arrays(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> list[dict[str, Any]]:
    """The named arrays of every process, in the order of rank; shapes may differ. Every process must call it."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    message = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
    lengths = row_counts(len(message))
    padded = torch.cat([message, message.new_zeros(max(lengths) - len(message))])  # one message, of equal length
    gathered = []
    for length, received in zip(lengths, _all_gather(padded), strict=True):
        with np.load(io.BytesIO(received[:length].numpy().tobytes()), allow_pickle=False) as loaded:
            gathered.append({name: loaded[name] for name in loaded.files})
    return gathered


def barrier() -> None:
    """Wait until every process is here, however long the others work on what they do alone."""
    if in_group():
        with _together("a barrier"):
            dist.barrier(group=host_group(LONG_WAIT))


class _AllGather(torch.autograd.Function):
    """Equal-shaped tensors of all processes, concatenated; backward sums the gradients from every process's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return torch.cat(_all_gather(tensor.contiguous()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # all_reduce instead of reduce_scatter, which gloo lacks: vectors are small beside the model's gradients.
        total = gradients[0].contiguous().clone()
        _all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def row_counts(rows: int, device: torch.device | None = None) -> list[int]:
    """How many rows each process has."""
    if not in_group():
        return [rows]
    return [int(count) for count in _all_gather(torch.tensor([rows], device=device))]


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of rank, (sum of rows, ...); processes may have different numbers, or 0.

    Differentiable: a row's gradient is the sum over the losses of all processes. Every process must call it, and run
    backward through it, equally often, with a loss of 0 where it has nothing to learn; otherwise the others wait.
    """
    if not in_group():
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
    if not in_group():
        return
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        return
    used = torch.tensor([float(parameter.grad is not None) for parameter in trainable], device=trainable[0].device)
    _all_reduce(used)
    for parameter, users in zip(trainable, used.tolist(), strict=True):
        if users:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _all_reduce(parameter.grad)
            parameter.grad /= world_size()


def average(values: dict[str, float], device: torch.device | None = None) -> dict[str, float]:
    """Each number averaged over the processes, which must hold the same names in the same order."""
    return _reduced(values, device, dist.ReduceOp.SUM, world_size())


def maximum(values: dict[str, float], device: torch.device | None = None) -> dict[str, float]:
    """The largest of the processes' numbers by name; they must hold the same names in the same order."""
    return _reduced(values, device, dist.ReduceOp.MAX, 1)


# ---- what reaches torch.distributed ----------------------------------------------------------------------------------


def _reduced(values: dict[str, float], device: torch.device | None, how: Any, divisor: int) -> dict[str, float]:
    if not in_group():
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    _all_reduce(numbers, how)
    return dict(zip(values, (numbers / divisor).tolist(), strict=True))


def _all_gather(tensor: Tensor) -> list[Tensor]:
    """The equal-shaped tensors of all processes."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _together("a gathering of tensors"):
        dist.all_gather(parts, tensor, group=_group_for(tensor))
    return parts


def _all_reduce(tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
    """Replace the tensor by the sum (or `how` says) over all processes."""
    with _together("a sum over processes"):
        dist.all_reduce(tensor, how, group=_group_for(tensor))


def _group_for(tensor: Tensor) -> Any:
    """The default group where it has a backend for the tensor's device, else, for the CPU, our own."""
    backends = dist.get_backend_config().split(",")  # such as "cpu:gloo,cuda:nccl"
    if any(backend.startswith(f"{tensor.device.type}:") for backend in backends):
        return None
    if tensor.device.type == "cpu":
        return host_group(STEP_WAIT)
    raise ValueError(
        f"A tensor on {tensor.device} cannot travel between processes: their group has {dist.get_backend_config()}. "
        "Move it to one of those devices, or initialise the group with a backend for this one."
    )


@contextmanager
def _together(what: str) -> Iterator[None]:
    """The errors of a lost or late process, in words."""
    try:
        yield
    except RuntimeError as error:
        raise OtherProcessError(
            f"Process {rank()} of {world_size()} waited for the others in {what}, and that ended: another process has "
            "stopped, or did not answer in time. The first error in the log of the others says why. Here it was: "
            f"{error}"
        ) from error


def _that_travels(error: Exception) -> Exception:
    """The exception, or one with its type and message where its own class cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    except Exception:  # noqa: BLE001  whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
