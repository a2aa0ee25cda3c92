"""The accelerator of accelerate: device, mixed precision, and the process group."""

from typing import Any

from search_r3_mteb.encoder.checkpoints import default_device
from train.processes import collectives


def new_accelerator(mixed_precision: str) -> Any:
    """Accelerate's `Accelerator`, which also initialises the process group, with the time that a step may wait."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(
        mixed_precision=mixed_precision,
        cpu=default_device() == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=collectives.STEP_WAIT)],
    )
