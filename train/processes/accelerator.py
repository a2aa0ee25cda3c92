"""The accelerator of accelerate: device, mixed precision, and whether it shards the model."""

from typing import Any

from search_r3_mteb.encoder.checkpoints import default_device


def new_accelerator(mixed_precision: str) -> Any:
    """Accelerate's `Accelerator`, which also initialises the process group."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision=mixed_precision, cpu=default_device() == "cpu")


def shards_model(accelerator: Any) -> bool:
    """Whether the model is wrapped by FSDP or DeepSpeed.

    Plain data parallelism has no wrapper: cached gradients need several backward passes per step, after which
    `collectives.average_gradients` averages once.
    """
    return str(accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
