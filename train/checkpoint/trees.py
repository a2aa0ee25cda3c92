"""Trees of plain values and tensors on disk without pickle: tensors in NAME.safetensors, everything else in NAME.json.

A tree is what `state_dict()` gives: dicts (also with integer keys), lists, tuples, text, numbers, booleans, None, torch
tensors and numpy arrays. It comes back equal, types included; a value of any other type is refused by its path.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_r3_mteb.json_files import read_json

Tree = Any
_MARK = "__kind__"  # key of a JSON object that stands for a value of another type


def write_tree(tree: Tree, folder: Path, name: str) -> None:
    """Write NAME.json and, where there are tensors, NAME.safetensors. Raises TypeError for a value of another type."""
    tensors: dict[str, Tensor] = {}
    value = _encode(tree, name, tensors)
    write_tensors(tensors, folder / f"{name}.safetensors")
    with (folder / f"{name}.json").open("w", encoding="utf-8") as stream:
        json.dump(value, stream)


def read_tree(folder: Path, name: str) -> Tree:
    """The tree that `write_tree` wrote, tensors on the CPU. FileNotFoundError or ValueError for damaged files."""
    value = read_json(folder / f"{name}.json")
    return _decode(value, read_tensors(folder / f"{name}.safetensors"))


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors; without tensors no file is written."""
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


def _encode(value: Tree, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        name = f"{path} {len(tensors)}"  # keys may hold dots, so a path alone need not be unique
        tensors[name] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return {_MARK: "tensor" if isinstance(value, Tensor) else "array", "name": name}
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
        f"{path} is of type {type(value).__name__}, which a checkpoint cannot hold without pickle. Keep numbers, text, "
        "tensors, lists and dicts of them in the state, and make other objects again on resume."
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
