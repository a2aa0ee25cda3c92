"""Packed weights of linear layers, while a model decodes on a processor.

A decode step multiplies few rows by every weight. Torch's `linear` brings the weight into the kernel's layout at each
call, which for few rows costs as much as the product; oneDNN accepts it in that layout (torch's compiler does so for
frozen models). The packed copies live as long as the decoding: the model's own weights are not touched, so training
between two rollouts needs no care, and a large model, whose copies might not fit, goes without.

What it is worth, by a layer's size and the number of rows: results/speed/tried.json.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Models whose layers have fewer bytes gain too little for the kernels' own memory, and more bytes are not copied. Our
# choice: what fits into a processor's cache, and what a laptop can spare.
LEAST_BYTES, MOST_BYTES = 1 << 22, 1 << 30
# A float32 weight of fewer numbers is multiplied faster as it is: calling oneDNN takes longer than packing it.
LEAST_NUMBERS = {torch.float32: 1 << 17, torch.bfloat16: 0}
# So do fewer rows than these, whose product is with a vector or hardly more: results/speed/kernels.md.
LEAST_ROWS = {torch.float32: 4, torch.bfloat16: 0}
_ROWS = 16  # what the packed layout is chosen for; any number of rows can be multiplied


class PackedLinears:
    """A model's plain linear layers on a CPU with packed weights, by which they multiply inside a `with` block of it.

    For inference only: there are no gradients. Results differ from `linear`'s in the order of summation. Under
    autocast, which does not know this product, weights are packed in autocast's type. Layers whose forward was replaced
    (offloading, quantisation) and subclasses stay as they are, and so do models outside `LEAST_BYTES` to `MOST_BYTES`.
    `rows`: how many there will be at most; None where that is not known.
    """

    def __init__(self, model: Any, rows: int | None = None) -> None:
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        layers = [module for module in model.modules() if _can_be_packed(module, autocast, rows)]
        if not LEAST_BYTES <= sum(layer.weight.numel() * layer.weight.element_size() for layer in layers) <= MOST_BYTES:
            layers = []
        self._forwards = [(layer, _packed(layer, autocast or layer.weight.dtype)) for layer in layers]

    def __enter__(self) -> int:
        """Let the layers multiply so; gives their number."""
        for layer, forward in self._forwards:
            layer.forward = forward
        return len(self._forwards)

    def __exit__(self, *error: object) -> None:
        """Leave the layers as they were."""
        for layer, _ in self._forwards:
            layer.__dict__.pop("forward", None)


@contextmanager
def packed_linears(model: Any, rows: int | None = None) -> Iterator[int]:
    """A context in which the layers of `PackedLinears` multiply by packed weights, which it frees; their number."""
    with PackedLinears(model, rows) as count:
        yield count


def _packed(layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), _ROWS)
    return partial(_multiply, weight=weight, bias=None if layer.bias is None else layer.bias.to(dtype))


def _multiply(inputs: Tensor, *, weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.mkldnn._linear_pointwise.default(inputs.to(weight.dtype), weight, bias, "none", [], "")


def _can_be_packed(module: Any, autocast: torch.dtype | None, rows: int | None) -> bool:
    if type(module) is not torch.nn.Linear or "forward" in module.__dict__ or not _available():
        return False
    weight: Tensor = module.weight
    dtype = autocast or weight.dtype
    least = LEAST_NUMBERS.get(dtype)
    if (rows is not None and rows < LEAST_ROWS.get(dtype, 0)) or not packs(dtype):
        return False
    return weight.device.type == "cpu" and type(weight.data) is Tensor and least is not None and weight.numel() >= least


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a type on this processor: bfloat16 needs AVX-512 or more, and raises without."""
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    return asked is None or (_available() and bool(getattr(torch.ops.mkldnn, asked)()))


def _available() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
