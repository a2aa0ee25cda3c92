"""The processes of `accelerate launch`: their number, devices and shares, and the gathering of their results."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np


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
    """The results of all rows of `part`, gathered by accelerate; each process gives those of its own share."""
    if process_count() == 1:
        return results
    from accelerate.utils import gather_object

    _state()  # accelerate gathers among the processes that its state knows
    pairs = gather_object([(own_share(part), results)])
    place = {row: result for rows, found in pairs for row, result in zip(rows, found, strict=True)}
    found = [place[row] for row in part]
    return np.stack(found) if found and isinstance(found[0], np.ndarray) else found


def _state() -> Any:
    """Accelerate's state. Without an accelerator it needs `cpu`, or it would take each process for the only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
