"""Rows of the two token matrices, the input embedding and the head's projection: found, grown, kept beside an adapter.

An adapter's file holds what was trained. The rows under it, which the base folder may lack or have otherwise (a new
token, a vocabulary that was resized), lie in `token_rows.safetensors`, so that a loaded model is the saved one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ROWS_FILE = "token_rows.safetensors"
_BLOCK = 4096  # rows that are added up at once: a whole vocabulary in float64 would take gigabytes


def bare(layer: Any) -> Any:
    """The layer of the base model inside peft's wrappers."""
    while True:
        inner = getattr(layer, "original_module", None)
        inner = getattr(layer, "base_layer", None) if inner is None else inner
        if inner is None:
            return layer
        layer = inner


def token_layers(causal: Any) -> dict[str, Any]:
    """The base's layers "input" and, where the head has a matrix of its own, "output"."""
    layers = {"input": bare(causal.get_input_embeddings())}
    if not tied(causal):
        layers["output"] = bare(causal.get_output_embeddings())
    return layers


def tied(causal: Any) -> bool:
    """Whether the head shares the input embedding's matrix, or there is no head."""
    head = causal.get_output_embeddings()
    return head is None or bare(head).weight is bare(causal.get_input_embeddings()).weight


def layer_name(causal: Any, layer: Any) -> str:
    """A layer's name in the causal LM ("model.embed_tokens", "lm_head"), under which peft knows it."""
    return next(name for name, module in causal.named_modules() if module is layer)


def mean_row(matrix: Float[Tensor, "rows dim"], used: int) -> Float[Tensor, " dim"]:
    """The mean of the first `used` rows, the same on every machine: float64 sums do not depend on the threads."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for start in range(0, used, _BLOCK):
        total += matrix[start : min(used, start + _BLOCK)].double().sum(dim=0)
    return (total / used).to(matrix.dtype)


@torch.no_grad()
def resize(causal: Any, rows: int, used: int) -> None:
    """Give both token matrices `rows` rows; new ones are the mean of the first `used` (no random numbers)."""
    before = int(causal.get_input_embeddings().weight.shape[0])
    if rows == before:
        return
    causal.resize_token_embeddings(rows, mean_resizing=False)
    used = min(used, before)
    for layer in token_layers(causal).values():
        if rows > before:
            layer.weight[before:] = mean_row(layer.weight, used)
    head = causal.get_output_embeddings()
    bias = None if head is None else getattr(bare(head), "bias", None)
    if bias is not None and rows > before:
        bias[before:] = bias[:used].double().mean().to(bias.dtype)


def save_rows(causal: Any, ids: Sequence[int], folder: Path) -> None:
    """Write the base's rows of `ids`, and the number of rows in all."""
    from safetensors.torch import save_file

    index = torch.tensor(sorted(set(ids)))
    tensors = {"ids": index}
    for name, layer in token_layers(causal).items():
        tensors[name] = layer.weight.detach()[index.to(layer.weight.device)].cpu().contiguous()
    rows = int(causal.get_input_embeddings().weight.shape[0])
    save_file(tensors, folder / ROWS_FILE, metadata={"format": "pt", "rows": str(rows)})


@torch.no_grad()
def load_rows(causal: Any, folder: Path) -> None:
    """Put the rows in `folder` into a base model. Raises ValueError for a base whose matrices cannot hold them."""
    from safetensors import safe_open

    with safe_open(folder / ROWS_FILE, framework="pt") as file:
        recorded = (file.metadata() or {}).get("rows", "")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    index = tensors.pop("ids", torch.empty(0))
    before = int(causal.get_input_embeddings().weight.shape[0])
    rows = int(recorded) if recorded.isdecimal() and len(recorded) < 10 else 0
    shaped = all(tensor.dim() == 2 and len(tensor) == len(index) for tensor in tensors.values()) and "input" in tensors
    if (
        index.dtype != torch.int64
        or not len(index)
        or not shaped
        or not 0 <= int(index.min()) <= int(index.max()) < rows
    ):
        rows = 0
    if not 0 < rows <= max(before, int(index.max()) + 1 if len(index) else 0):
        raise ValueError(
            f"{folder.name}/{ROWS_FILE} holds no rows with their ids, or not as many as it says ({recorded!r:.20}), so "
            "it is damaged. Restore it."
        )
    resize(causal, rows, rows)
    layers = token_layers(causal)
    width = causal.get_input_embeddings().weight.shape[1]
    if layers.keys() != tensors.keys() or any(tensor.shape[1] != width for tensor in tensors.values()):
        raise ValueError(
            f"{folder.name}/{ROWS_FILE} holds rows of {', '.join(sorted(tensors))}, {tensors['input'].shape[1]} wide, "
            f"but the base model has {', '.join(sorted(layers))}, {width} wide: head and embedding are tied in one and "
            "not in the other, or the base is another model. Use the base that the adapter was trained on."
        )
    for name, layer in layers.items():
        layer.weight[index] = tensors[name].to(layer.weight)
