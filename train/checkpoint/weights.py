"""Weights and optimizer moments by parameter name, from one process, DDP, or shards of FSDP2.

The saved form is the same in all cases, so a sharded run resumes on one process, and the reverse. FSDP1 and DeepSpeed
keep parts of the state inside their own engines; they are refused by name instead of being saved in part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SAMPLES = 32  # values of each frozen weight that go into the digest


@dataclass(frozen=True)
class ModelState:
    """The trained tensors (on the CPU where they were sharded), and the optimizer's state by the same names."""

    weights: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    """{"state": {name: {...}}, "param_groups": [{..., "params": [name, ...]}]}"""


def collect(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> ModelState:
    """The whole state, on the main process; with shards every process must call it. TypeError for FSDP1, DeepSpeed."""
    model = unwrapped(model)
    weights = trained_tensors(model)
    if not is_sharded(model):
        return ModelState(weights, _by_name(optimizer.state_dict(), optimized_names(model, optimizer)))
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    whole: dict[str, Any] = get_model_state_dict(model, options=options)
    return ModelState(
        {name: whole[name] for name in weights if name in whole},
        get_optimizer_state_dict(model, optimizer, options=options),
    )


def apply(saved: ModelState, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a whole state into the live objects; with shards every process calls it and keeps its part."""
    model = unwrapped(model)
    if not is_sharded(model):
        with torch.no_grad():
            for name, tensor in trained_tensors(model).items():
                tensor.copy_(saved.weights[name])
        optimizer.load_state_dict(_by_number(saved.optimizer, optimized_names(model, optimizer), optimizer))
        return
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, strict=False)  # frozen weights are not in it
    set_model_state_dict(model, dict(saved.weights), options=options)
    set_optimizer_state_dict(model, optimizer, saved.optimizer, options=options)


def trained_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained and buffers that are saved, by name; tied ones once."""
    model = unwrapped(model)
    _refuse_foreign_engines(model)
    saved = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found.update({name: b for name, b in model.named_buffers() if name in saved})
    return found


def optimized_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the optimizer's parameters in order; its own state numbers them."""
    names = {id(p): name for name, p in unwrapped(model).named_parameters()}
    return [
        names.get(id(parameter), f"not in the model, number {number}, of shape {tuple(parameter.shape)}")
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    ]


def frozen_digest(model: torch.nn.Module) -> str | None:
    """Digest of names, shapes and 32 values of each frozen weight; None where no weight is frozen.

    Our choice: a sample. Hashing all of a 7B base takes a minute, and two bases differ in some of these values. With
    shards every process must call it.
    """
    frozen = [(name, p) for name, p in unwrapped(model).named_parameters() if not p.requires_grad]
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name, parameter in frozen:
        whole: Any = parameter
        if _is_shard(parameter):
            whole = whole.full_tensor()
        flat = whole.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\0".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether some parameter lies in parts on several processes."""
    return any(_is_shard(parameter) for parameter in model.parameters())


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP and torch.compile, whose wrappers put a prefix before every name."""
    while isinstance(model, torch.nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner: Any = getattr(model, "_orig_mod", None) or model.module
        model = inner
    return model


def _is_shard(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor"  # by name: importing it costs a second that one process never needs


def _refuse_foreign_engines(model: torch.nn.Module) -> None:
    names = {type(module).__name__ for module in model.modules()} | {type(p).__name__ for p in model.parameters()}
    if names & {"FullyShardedDataParallel", "FlatParameter"}:
        raise TypeError(
            "The model is wrapped by FSDP1, whose flat parameters have no names of their own. Set fsdp_version: 2 in "
            "accelerate's configuration."
        )
    if "DeepSpeedEngine" in names or any(hasattr(p, "ds_id") for p in model.parameters()):
        raise TypeError(
            "The model is wrapped by DeepSpeed, which keeps the optimizer's state inside its own engine. Use DDP or "
            "FSDP (fsdp_version: 2) for a run that can be resumed here."
        )


def _by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}


def _by_number(saved: dict[str, Any], names: list[str], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    number = {name: place for place, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in saved["param_groups"]]
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"the checkpoint's optimizer has {len(groups)} groups, this one {len(optimizer.param_groups)}")
    return {"state": {number[name]: value for name, value in saved["state"].items()}, "param_groups": groups}
