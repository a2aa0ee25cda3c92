"""Several devices: under `accelerate launch` each process encodes its share; splitting and gathering are accelerate's."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np


def process_count() -> int:
    """Processes that `accelerate launch` or torchrun started together; 1 outside of them."""
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
    """What this process does of `part`: every n-th row."""
    return list(part[process_number() :: process_count()])


def gathered(part: Sequence[int], results: Any) -> Any:
    """The results of all rows of `part`, of which every process gives those of its own share; accelerate's own gathering."""
    if process_count() == 1:
        return results
    from accelerate.utils import gather_object

    _state()  # accelerate gathers among the processes that its state knows
    pairs = gather_object([(own_share(part), results)])
    place = {row: result for rows, found in pairs for row, result in zip(rows, found, strict=True)}
    found = [place[row] for row in part]
    return np.stack(found) if found and isinstance(found[0], np.ndarray) else found


def _state() -> Any:
    """Accelerate's state, one a process. Without an accelerator it has to be told: it would else take every process for alone."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
