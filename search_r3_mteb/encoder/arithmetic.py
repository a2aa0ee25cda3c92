"""What decides a vector beside weights, texts and sampling: in half precision, what runs together, and where.

Sums in another order differ by some 1e-6 in float32, and so do vectors; words would differ only where two tokens tie to
that digit. In bfloat16 and float16 a vector differs by some 1e-3, and now and then a row gets other words (of long
sampled texts, as writers write them, most do), when the order changes with the batch, the number of threads or the
processor. So there these are part of a vector's
identity. The texts beside a text cannot be; `batch_invariant=True` makes its vector independent of them
(`fixed_shapes.py`).
"""

from typing import Any

from search_r3_mteb.encoder.engine_kinds import TextEngine
from search_r3_mteb.threads import in_words

# On a processor reasoning attends to the rows' common beginning apart (`shared_prefix.py`): sums in another order than
# in the releases before, so that half-precision rows that these stored are made again.
SHARED_BEGINNING = "common beginning apart"


def is_half(model: Any) -> bool:
    """Whether the model computes in bfloat16 or float16."""
    return bool(model.dtype.itemsize < 4)


def batching(engine: TextEngine) -> dict[str, Any]:
    """The settings of batches that decide vectors: none in float32, unless batches are invariant."""
    if engine.batch_invariant:
        return {"batch_invariant": True}
    return {"batch_tokens": engine.token_budget} if is_half(engine.causal) else {}


def arithmetic(engine: TextEngine, *, reasons: bool = True) -> dict[str, Any]:
    """`batching`, another engine than our own, and in half precision the device.

    The device is a GPU's name, or a processor's instructions and the threads; where rows reason on a processor, also
    how they attend to their common beginning. `reasons` False: of rows that are
    embedded directly, for which another engine may leave the work to our own.
    """
    found = batching(engine) | engine.identity(reasons)
    if not is_half(engine.causal):
        return found
    decode = [SHARED_BEGINNING] if reasons and engine.device.type == "cpu" and not engine.batch_invariant else []
    return found | {"arithmetic": [*_device(engine.device), *decode]}


def _device(device: Any) -> list[str]:
    import torch

    if device.type == "cuda":
        return [torch.cuda.get_device_name(device)]
    if device.type != "cpu":
        return [str(device.type)]
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    half = [name for name in ("amx_bf16", "avx512_bf16", "amx_fp16", "avx512_fp16") if found.get(name)]
    return [torch.backends.cpu.get_cpu_capability(), *half, in_words()]
