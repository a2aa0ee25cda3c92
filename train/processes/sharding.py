"""FSDP2: weights, gradients and the optimizer's state in shards over the processes, and a whole copy to sample with.

    accelerate launch --use_fsdp --fsdp_version 2 train/rl.py --config ...

Every pass through the sharded model is a collective: all processes must run equally many, in the same order. Training
passes do, with idle ones of weight 0 where a process has less to do. Sampling, encoding, evaluation and export do not:
rollouts end at different lengths, the main process exports alone. They run on a copy of the whole weights that each
process has and that takes over what was trained after every update (our choice: it costs the weights once per device,
while gradients and the optimizer's two moments, three quarters of the memory or more, stay in shards).

The shards are torch's own (`fully_shard` on each layer and on the rest); of accelerate's settings only the switch is
read. Weights stay float32 and compute under autocast, so that a sharded run learns what one process learns. FSDP1 and
DeepSpeed keep parts of the state inside their own engines, and are refused.
"""

import copy
import os
from typing import Any

import torch

from search_r3_mteb.encoder.architecture import backbone_of
from search_r3_mteb.encoder.backbone import unwrap


def wanted() -> bool:
    """Whether accelerate was told to shard. Raises ValueError for an engine that this training cannot use."""
    for name, engine in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise ValueError(
                f"accelerate was told to use {engine}, whose engine keeps the optimizer and the update to itself: a "
                "step here has several backward passes, one update, and a state that is saved by parameter. Use plain "
                "data parallelism, or FSDP with fsdp_version: 2."
            )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"accelerate was told to use FSDP {version}, whose flat parameters have no names of their own, so that no "
            "checkpoint could hold them. Set fsdp_version: 2 in accelerate's configuration."
        )
    return True


def sharded(model: Any, device: torch.device) -> tuple[Any, Any]:
    """`model` with its parameters in shards over all processes, and a whole copy of it as it was."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    lists = [part for part in backbone_of(unwrap(model)).modules() if isinstance(part, torch.nn.ModuleList)]
    for layer in max(lists, key=len, default=()):
        fully_shard(layer, mesh=mesh)
    # The head is applied to the replies after the forward: its weights, and the embedding's, stay until the update.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model, whole


@torch.no_grad()
def take_over(model: Any, whole: Any) -> None:
    """Write the trained weights of the sharded `model` into its `whole` copy. Every process must call it."""
    copies = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            copies[name].copy_(parameter.full_tensor())


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes", "on")
