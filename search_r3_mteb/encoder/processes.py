"""The processes of `accelerate launch`: their number, devices and shares, and the gathering of their results."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

LONG_WAIT = timedelta(hours=24)
"""How long a process waits for another one's own work: encoding a share, mining, a graph, an export (our choice)."""


def process_count() -> int:
    """Number of processes that `accelerate launch` or torchrun started together; 1 outside of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_number() -> int:
    """The number of this process among them; 0 outside of them."""
    return int(os.environ.get("RANK", "0"))


def process_device() -> str | None:
    """The device of this process under `accelerate launch`; None leaves the choice to `load`."""
    if process_count() == 1:
        return None
    return str(_state().device)


def own_share(part: Sequence[int]) -> list[int]:
    """The rows of `part` that this process computes: every n-th one."""
    return list(part[process_number() :: process_count()])


def gathered(part: Sequence[int], results: Any) -> Any:
    """The results of all rows of `part`; each process gives those of its own share."""
    if process_count() == 1:
        return results
    pairs = _from_all((own_share(part), results))
    place = {row: result for rows, found in pairs for row, result in zip(rows, found, strict=True)}
    found = [place[row] for row in part]
    return np.stack(found) if found and isinstance(found[0], np.ndarray) else found


def host_group(timeout: timedelta = LONG_WAIT) -> Any:
    """All processes as a gloo group, for what lies in host memory: made once per timeout, by all of them together.

    The default group may have no backend for it: under nccl there are no collectives of CPU tensors. Who waits in this
    group waits on a connection, which breaks at once when the other process dies; nothing waits on the GPU. Between
    machines gloo takes the interface of the host's name, or that of GLOO_SOCKET_IFNAME.
    """
    import torch.distributed as dist

    whole = dist.group.WORLD
    if (whole, timeout) not in _groups:
        for key in [key for key in _groups if key[0] is not whole]:  # of a default group that was destroyed
            del _groups[key]
        _groups[whole, timeout] = dist.new_group(backend="gloo", timeout=timeout)
    return _groups[whole, timeout]


_groups: dict[tuple[Any, timedelta], Any] = {}


def _from_all(mine: Any) -> list[Any]:
    """The values of all processes, in the order of their numbers."""
    import torch.distributed as dist

    _state()  # accelerate initialises the processes' group
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, mine, group=host_group())
    return values


def _state() -> Any:
    """Accelerate's state. Without an accelerator it needs `cpu`, or it would take each process for the only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
