"""The processes that keep one corpus cache together: each encodes its share, and only changes travel.

In a refresh the processes exchange their hits (row numbers and counts, so that all select the same rows), then (row,
vector) deltas of the share that each encoded; never texts, never matrices. On each machine one process, the writer,
writes the memory maps; the others map the same files read-only, so that a machine holds the matrix once.
"""

import os
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Shaped

from train.processes.errors import OtherProcessError

Arrays = dict[str, Shaped[np.ndarray, "..."]]


class Replicas:
    """All processes, as the cache sees them: here the only one. `writes`: this one writes its machine's memory maps."""

    rank = 0
    size = 1
    writes = True

    def gather(self, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> list[Arrays]:
        """The arrays of every process, in the order of rank; shapes may differ. Every process must call it."""
        return [dict(arrays)]

    def barrier(self) -> None:
        """Wait until every process is here."""


class ProcessGroup(Replicas):
    """The processes of torch.distributed (gloo or nccl), as accelerate or torchrun started them.

    `local_rank` is this process's number on its machine; 0 writes. Default: the environment's LOCAL_RANK, which both
    launchers set. Every machine needs a cache folder of its own: on a shared file system, put the machine's name into
    the path.
    """

    def __init__(self, local_rank: int | None = None) -> None:
        from train.processes import collectives  # torch, which tools that only open a cache need not load

        if not collectives.in_group():
            raise ValueError(
                "There is no process group: torch.distributed is not initialised, so there is no process to gather "
                "from. Start with accelerate or torchrun, or use Replicas()."
            )
        if local_rank is None and "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "LOCAL_RANK is not set, so it is unknown which process of this machine writes the cache. Start with "
                "accelerate or torchrun, or pass local_rank."
            )
        self.rank, self.size = collectives.rank(), collectives.world_size()
        self.writes = (int(os.environ["LOCAL_RANK"]) if local_rank is None else local_rank) == 0
        self._collectives = collectives

    def gather(self, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> list[Arrays]:
        """The arrays of every process, through host memory whatever the device of the run is."""
        return self._collectives.gather_arrays(arrays)

    def barrier(self) -> None:
        """Wait for all."""
        self._collectives.barrier()


def all_processes() -> Replicas:
    """The process group where there is one, else this process alone."""
    from train.processes import collectives

    return ProcessGroup() if collectives.in_group() else Replicas()


def on_all(share: Callable[[], Arrays], replicas: Replicas, what: str) -> list[Arrays]:
    """The shares of all processes in the order of rank. Where one fails to do `what`, all fail, at this same place."""
    if replicas.size == 1:
        return [share()]
    own: Arrays = {"failed": np.array(True)}
    try:
        own = share() | {"failed": np.array(False)}
    finally:
        parts = replicas.gather(own)
    failed = [rank for rank, part in enumerate(parts) if part["failed"]]
    if failed:
        raise OtherProcessError(f"Process {failed[0]} could not {what}. Its own error says why.")
    return parts


def shares(tokens: Shaped[np.ndarray, " rows"], size: int) -> Shaped[np.ndarray, " rows"]:
    """The process that encodes each row, so that all have about equally many tokens: rows by length, dealt in turns."""
    order = np.argsort(-tokens, kind="stable")
    turn = np.arange(len(tokens)) % (2 * size)
    owner = np.empty(len(tokens), dtype=np.int64)
    owner[order] = np.where(turn < size, turn, 2 * size - 1 - turn)
    return owner
