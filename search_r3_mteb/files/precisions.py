"""Vectors in fewer bits: float16, and int8, uint8, binary and ubinary as sentence-transformers makes them.

`quantize_embeddings` of sentence-transformers does the work (util/quantization.py, 6.0): int8 and uint8 cut the range
of each dimension into 256 steps, binary and ubinary keep one bit per dimension, whether it is positive, eight in a
byte. The ranges are those of calibration vectors or, without such, of the vectors themselves, and queries must be cut
by the ranges of the documents: they are written beside the vectors and may be given as calibration.
"""

import logging
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

Precision: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
RANGES_ENDING = ".ranges.npy"
Ranges: TypeAlias = Float32[np.ndarray, "2 dim"]
_FEW = 100  # vectors; below, sentence-transformers calls ranges unstable
logger = logging.getLogger("search_r3_mteb.files")


def needs_ranges(precision: Precision) -> bool:
    """Whether a precision cuts the range of each dimension into steps."""
    return precision in ("int8", "uint8")


def dtype_of(precision: Precision) -> np.dtype:
    """The numpy type of quantised vectors."""
    return np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))


def width_of(precision: Precision, dim: int) -> int:
    """The number of columns of quantised vectors of `dim` dimensions."""
    return -(-dim // 8) if precision in ("binary", "ubinary") else dim


def quantised(
    vectors: Float32[np.ndarray, "n dim"], precision: Precision, ranges: Ranges | None
) -> NDArray[np.generic]:
    """The vectors in that precision; `ranges` (lowest, highest of each dimension) for int8 and uint8."""
    if precision == "float32":
        return vectors
    if precision == "float16":
        return vectors.astype(np.float16)
    from sentence_transformers.util import quantize_embeddings

    found: NDArray[np.generic] = quantize_embeddings(vectors, precision, ranges=ranges)
    return found


class RunningRanges:
    """The lowest and highest value of each dimension of vectors that come in parts."""

    def __init__(self) -> None:
        self._found: Ranges | None = None
        self.count = 0

    def add(self, vectors: Float32[np.ndarray, "n dim"]) -> None:
        """Take more vectors into account."""
        if not len(vectors):
            return
        parts = [vectors] if self._found is None else [self._found, vectors]
        both = np.concatenate(parts)
        self._found = np.stack([both.min(axis=0), both.max(axis=0)])
        self.count += len(vectors)

    def ranges(self, precision: Precision, place: str) -> Ranges:
        """The ranges of all. Raises ValueError for a single vector, of which all values would be the same."""
        if self._found is None or self.count < 2:
            raise ValueError(
                f"{place}: {precision} needs the range of each dimension, and {self.count} vectors have none. Give "
                "vectors of the same model, or the .ranges.npy of its documents: --calibration FILE."
            )
        if self.count < _FEW:
            logger.warning(
                "%s: the ranges of %s are those of %d vectors only; they are steadier with --calibration FILE.",
                place,
                precision,
                self.count,
            )
        return self._found


def read_ranges(path: Path, dim: int, precision: Precision) -> Ranges:
    """The ranges in a .ranges.npy, or those of the float vectors in another .npy, which may be larger than memory.

    Raises FileNotFoundError, and ValueError for what is not such an array or of another length than `dim`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--calibration {path}: there is no such file.")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"--calibration {path} is not a NumPy array ({error}). Give a .npy of vectors.") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        shape = getattr(found, "shape", "no array"), getattr(found, "dtype", "")
        raise ValueError(f"--calibration {path} must hold float vectors (n, dim), got {shape[0]} {shape[1]}.")
    if found.shape[1] != dim:
        raise ValueError(
            f"--calibration {path} has {found.shape[1]} dimensions, the vectors have {dim}. Make it with --dim {dim}."
        )
    if not np.isfinite(found).all():
        raise ValueError(f"--calibration {path} holds values that are not finite. Make it again.")
    if path.name.endswith(RANGES_ENDING):
        if len(found) != 2 or (found[0] > found[1]).any():
            raise ValueError(f"--calibration {path} must hold two rows, the lowest and the highest values.")
        return np.array(found, np.float32)
    running = RunningRanges()
    for start in range(0, len(found), 65536):
        running.add(np.asarray(found[start : start + 65536], np.float32))
    return running.ranges(precision, f"--calibration {path}")
