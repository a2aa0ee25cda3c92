"""Storage types of vectors on disk: float32, bfloat16 and float16.

numpy has no bfloat16: it is kept as uint16, the upper half of the float32 bits, so that the file stays a plain `.npy`.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

Storage = Literal["float32", "bfloat16", "float16"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

_NUMPY: dict[Storage, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
}
_ROUNDING: dict[np.dtype, float] = {
    np.dtype(np.float32): 0.0,
    np.dtype(np.uint16): 2.0**-8,
    np.dtype(np.float16): 2.0**-11,
}


def numpy_dtype(storage: Storage) -> np.dtype:
    """The numpy type that holds `storage`. ValueError for any other name."""
    if storage not in _NUMPY:
        raise ValueError(f"There is no vector storage {storage!r}. Choose one of {', '.join(STORAGES)}.")
    return _NUMPY[storage]


def rounding(stored: Shaped[np.ndarray, "..."]) -> float:
    """Largest relative error of one stored number; by Cauchy-Schwarz it also bounds the error of a cosine."""
    if stored.dtype not in _ROUNDING:
        raise TypeError(
            f"Stored vectors are float32, float16 or uint16 (bfloat16), got {stored.dtype}. Convert them with `pack`."
        )
    return _ROUNDING[stored.dtype]


def pack(vectors: Float[np.ndarray, "rows dim"], storage: Storage) -> Shaped[np.ndarray, "rows dim"]:
    """The vectors in their storage type, rounded to nearest even."""
    dtype = numpy_dtype(storage)
    if storage != "bfloat16":
        return np.ascontiguousarray(vectors, dtype=dtype)
    bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def unpack(stored: Shaped[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """The stored vectors as float32, exactly; a view where they are float32 already."""
    if rounding(stored) and stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(stored, dtype=np.float32)
