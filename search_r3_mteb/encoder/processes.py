"""Several devices: under `accelerate launch` each process encodes its share; splitting and gathering are accelerate's."""

import os
from collections.abc import Callable, Sequence
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


def share_among_processes(part: Sequence[int], compute: Callable[[Sequence[int]], Any]) -> Any:
    """`compute(part)`, each process doing every n-th row, with accelerate's own gathering."""
    if process_count() == 1:
        return compute(part)
    from accelerate.utils import gather_object

    state = _state()
    mine = list(part[state.process_index :: state.num_processes])
    gathered = gather_object([(mine, compute(mine) if mine else [])])
    place = {row: result for rows, results in gathered for row, result in zip(rows, results, strict=True)}
    found = [place[row] for row in part]
    return np.stack(found) if found and isinstance(found[0], np.ndarray) else found


def _state() -> Any:
    """Accelerate's state, one a process. Without an accelerator it has to be told: it would else take every process for alone."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
