"""Digest of everything about a checkpoint that decides a vector."""

import hashlib
import json
from functools import cache
from typing import Any

# Path and library version do not decide a vector, and the tensors' own types are hashed.
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
_NOT_ADAPTER = ("base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version")


def digest(model: Any, tokenizer: Any, rest: Any) -> str:
    """SHA-256 (hex) over each tensor's name, type, shape and bytes, the configuration, the tokenizer and `rest` (JSON).

    The configuration counts because equal weights under another rotary base or LoRA alpha give other vectors.
    """
    import torch

    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.detach().to("cpu").contiguous().reshape(-1)
        state.update(data.view(torch.uint8).numpy().data)
    for part in (_configuration(model), _tokenizer(tokenizer), rest):
        state.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return state.hexdigest()


def weights_version(model: Any) -> int:
    """A number that grows with every change of a weight in place and every optimizer step; it reads no weights."""
    tensors = [*model.parameters(), *model.buffers()]
    changes = sum(tensor._version for tensor in tensors if not tensor.is_inference())
    return changes + _optimizer_steps()[0]


@cache
def _optimizer_steps() -> list[int]:
    """The number of steps of all optimizers in this process since the first call.

    Fused optimizers change weights without telling autograd, so that no tensor's version grows.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    register_optimizer_step_post_hook(count)
    return steps


def _configuration(model: Any) -> dict[str, Any]:
    # The difference from the defaults: a new key in the next version of transformers must not change every fingerprint.
    parts = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_IDENTITY}
    adapters = getattr(model, "peft_config", {})
    for name in getattr(model, "active_adapters", []) if adapters else []:
        parts[f"adapter {name}"] = {k: v for k, v in adapters[name].to_dict().items() if k not in _NOT_ADAPTER}
    return parts


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are state of the last call, which leaves its settings there.
    parts = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    return parts | {"chat_template": tokenizer.chat_template}


def _plain(value: Any) -> Any:
    """JSON for the other values in configurations: sets and enumerations."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
