"""Trees of plain values and tensors on disk without pickle: tensors in NAME.safetensors, everything else in NAME.json.

A tree is what `state_dict()` gives: dicts (also with whole numbers as keys), lists, tuples, text, numbers, booleans, None, torch
tensors and numpy arrays. It comes back equal, types included; a value of any other type is refused by its path. And the state
of the random number generators as such a tree.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.order import key_of

Tree = Any
_MARK = "__kind__"  # of an object in the JSON that stands for what JSON does not have


def write_tree(tree: Tree, folder: Path, name: str) -> None:
    """Write NAME.json and, where there are tensors, NAME.safetensors. Raises TypeError for a value that is no plain one."""
    tensors: dict[str, Tensor] = {}
    value = _encode(tree, name, tensors)
    write_tensors(tensors, folder / f"{name}.safetensors")
    with (folder / f"{name}.json").open("w", encoding="utf-8") as stream:
        json.dump(value, stream)


def read_tree(folder: Path, name: str) -> Tree:
    """What `write_tree` wrote, tensors on the CPU. Raises FileNotFoundError or ValueError for damaged files."""
    value = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return _decode(value, read_tensors(folder / f"{name}.safetensors"))


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors; none at all make no file."""
    from safetensors.torch import save_file

    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ready[name] = tensor.detach().to("cpu").contiguous()
        storage = ready[name].untyped_storage().data_ptr()
        if storage in seen:  # safetensors refuses two tensors in one storage
            ready[name] = ready[name].clone()
        seen.add(storage)
    if ready:
        save_file(ready, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors on the CPU; empty where there is no file. Raises ValueError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return {}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def capture_random_state(generators: Mapping[str, torch.Generator]) -> Tree:
    """The state of Python's, numpy's and torch's generators and of `generators` in this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  libraries draw from the global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def restore_random_state(tree: Tree, generators: Mapping[str, torch.Generator]) -> None:
    """Continue the draws where `tree` was captured. Raises ValueError where other generators were saved."""
    if set(tree["generators"]) != set(generators):
        raise ValueError(
            f"the checkpoint has random generators {sorted(tree['generators'])}, this run {sorted(generators)}"
        )
    random.setstate(tree["python"])
    np.random.set_state(tree["numpy"])  # noqa: NPY002
    torch.set_rng_state(tree["torch"])
    if tree["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(tree["cuda"])
    for name, generator in generators.items():
        generator.set_state(tree["generators"][name])


def seed_random_state(parts: tuple[object, ...], generators: Mapping[str, torch.Generator]) -> None:
    """Seed all of them from `parts`: for a process that the checkpoint knows nothing of."""
    seed = key_of(*parts) >> 1  # torch takes 63 bits
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    torch.manual_seed(seed)
    for name, generator in generators.items():
        generator.manual_seed(key_of(*parts, name) >> 1)


def _encode(value: Tree, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = f"{path} {len(tensors)}"  # keys may hold dots, so a path alone need not be unique
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if isinstance(value, np.ndarray):
        name = f"{path} {len(tensors)}"
        tensors[name] = torch.from_numpy(np.array(value))
        return {_MARK: "array", "name": name}
    if isinstance(value, np.generic):
        return {_MARK: "number", "type": str(value.dtype), "value": value.item()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}.{number}", tensors) for number, item in enumerate(value)]
        return items if type(value) is list else {_MARK: "tuple", "items": items}
    if isinstance(value, Mapping):
        if _MARK not in value and all(isinstance(key, str) for key in value):
            return {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
        pairs = [[_encode(key, path, tensors), _encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {_MARK: "dict", "pairs": pairs}
    raise TypeError(
        f"{path} is of type {type(value).__name__}, which a checkpoint cannot hold without pickle. Keep numbers, text, tensors, "
        "lists and dicts of them in the state, and make other objects anew on resume."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind is None:
        return {key: _decode(item, tensors) for key, item in value.items()}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in value["items"])
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["pairs"]}
    if kind == "number":
        return np.dtype(value["type"]).type(value["value"])
    tensor = tensors[value["name"]]
    return tensor if kind == "tensor" else tensor.numpy()
