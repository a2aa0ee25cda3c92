"""What one process does for all of them, and what all of them tell one. Without a process group there is one process.

It rests on torch.distributed's default group, which accelerate initialises; accelerate itself is not imported.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; the main process is 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


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
