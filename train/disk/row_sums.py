"""Checksums of arrays that change row by row: a row that changes costs its own bytes, not those of the array.

    sum = sum over rows i of r(i) * (sum over words j of m(j) * word(i, j))      modulo 2^64

`word` are the array's bytes as unsigned integers of 4 bytes (2 where the values have 2), `r` and `m` fixed odd numbers
of 64 bits. One damaged bit changes the sum by an odd number times 2^b with b < 32, so it is always found; other damage,
rows or files that changed places among it, is missed once in 2^32 at the worst. It is not a defence against somebody
who wants a change to go unnoticed.

Source: incremental hashing as a sum over blocks is AdHash (Bellare and Micciancio, Eurocrypt 1997), the function of a
row multilinear hashing (Lemire and Kaser, arXiv 1202.4961). What it costs: results/corpus_cache.
"""

import numpy as np
from jaxtyping import Int, Shaped

_BLOCK_BYTES = 4 << 20
_BITS = (1 << 64) - 1


def row_sum(rows: Int[np.ndarray, " rows"], values: Shaped[np.ndarray, "rows ..."]) -> int:
    """The part of these rows (row numbers, and their values) in the sum of an array."""
    if not len(rows):
        return 0
    words = _words(values)
    weights = _odd(np.arange(words.shape[1], dtype=np.uint64) + np.uint64(1 << 63))
    of_rows = np.einsum("ij,j->i", words, weights, dtype=np.uint64, casting="unsafe")
    return int((of_rows * _odd(np.asarray(rows).astype(np.uint64))).sum(dtype=np.uint64))


def whole_sum(array: Shaped[np.ndarray, "rows ..."]) -> int:
    """The sum of an array, read in blocks."""
    size = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
    parts = (np.arange(start, min(start + size, len(array))) for start in range(0, len(array), size))
    return sum(row_sum(rows, array[rows[0] : rows[-1] + 1]) for rows in parts) & _BITS


def changed_sum(
    old: int, array: Shaped[np.ndarray, "rows ..."], rows: Int[np.ndarray, " rows"], values: Shaped[np.ndarray, "..."]
) -> int:
    """The sum that `array` has once its `rows` (each named once) are `values`; `old` is the present one."""
    return (old - row_sum(rows, array[rows]) + row_sum(rows, np.asarray(values, dtype=array.dtype))) & _BITS


def _words(values: Shaped[np.ndarray, "rows ..."]) -> Shaped[np.ndarray, "rows words"]:
    size = min(values.dtype.itemsize, 4)
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return flat.view(np.dtype(f"u{size}"))


def _odd(numbers: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """A fixed odd number of 64 bits for each (the finaliser of splitmix64)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) | np.uint64(1))
