"""The rows of the store's keys, found by binary search."""

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray


class KeyIndex:
    """The rows of keys: sorted segments, merged as they grow, 40 bytes per row."""

    def __init__(self) -> None:
        self._segments: list[tuple[NDArray[np.bytes_], Int64[np.ndarray, " rows"]]] = []

    def add(self, keys: NDArray[np.bytes_], first: int) -> None:
        """Enter `keys` as the rows `first`, `first` + 1, ..."""
        rows = np.arange(first, first + len(keys), dtype=np.int64)
        self._segments.append(self._sorted(keys, rows))
        # Merging only segments of similar size costs n log n in total, for any number of chunks.
        while len(self._segments) > 1 and len(self._segments[-2][0]) <= 2 * len(self._segments[-1][0]):
            (keys1, rows1), (keys2, rows2) = self._segments.pop(), self._segments.pop()
            self._segments.append(self._sorted(np.concatenate([keys2, keys1]), np.concatenate([rows2, rows1])))

    @staticmethod
    def _sorted(
        keys: NDArray[np.bytes_], rows: Int64[np.ndarray, " rows"]
    ) -> tuple[NDArray[np.bytes_], Int64[np.ndarray, " rows"]]:
        order = np.argsort(keys, kind="stable")
        return keys[order], rows[order]

    def find(self, keys: NDArray[np.bytes_]) -> Int64[np.ndarray, " keys"]:
        """The row of each key, -1 for those that are not stored."""
        found = np.full(len(keys), -1, dtype=np.int64)
        for sorted_keys, rows in self._segments:
            place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
            hit = (sorted_keys[place] == keys) & (found < 0)
            found[hit] = rows[place[hit]]
        return found
