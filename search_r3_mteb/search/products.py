"""Matrix products of half-precision vectors with sums in float32, on a CPU that multiplies bfloat16 and on a GPU.

A processor with bfloat16 instructions multiplies such matrices about five times faster than their float32 copies, and a
scan then reads half the bytes. Where there are none (and for float16 on every CPU) the same numbers are multiplied in
float32: the products are those of the same rounded inputs everywhere.

    device               sums      result
    GPU                  float32   float32
    CPU with bfloat16    float32   rounded to bfloat16 once more: `result_rounding`
    other CPU            float32   float32
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:
    import torch

HALF_RESULT = 2.0**-9
"""Relative error of a product that a CPU gives in bfloat16."""


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AVX512-BF16 or AMX)."""
    import torch

    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def result_rounding(device_type: str, storage: str) -> float:
    """Relative error that `product` adds to its float32 sums."""
    return HALF_RESULT if device_type == "cpu" and storage == "bfloat16" and cpu_multiplies_bfloat16() else 0.0


def tensor_type(storage: str) -> Any:
    """The type of a tensor of vectors stored as "float32", "bfloat16" or "float16"."""
    import torch

    return getattr(torch, storage)


def as_tensor(stored: Shaped[np.ndarray, "rows dim"]) -> "torch.Tensor":
    """The stored vectors as a CPU tensor of their own type, over the same memory; a copy where that is read-only."""
    import torch

    array = np.asarray(stored) if stored.flags.writeable else np.array(stored)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def as_array(tensor: "torch.Tensor") -> Shaped[np.ndarray, "rows dim"]:
    """The opposite of `as_tensor`: bfloat16 as uint16."""
    import torch

    values: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values


def product(left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    """`left @ right` in float32, for two matrices of one type and device."""
    import torch

    if left.dtype == torch.float32:
        return left @ right
    if left.device.type != "cpu":
        return torch.mm(left, right, out_dtype=torch.float32)
    if left.dtype == torch.bfloat16 and cpu_multiplies_bfloat16():
        return (left @ right).float()
    return left.float() @ right.float()


@contextmanager
def plain_arithmetic(device: Any) -> Iterator[None]:
    """Without gradients, without autocast, and float32 products without TF32, whatever the caller has switched on."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = before
