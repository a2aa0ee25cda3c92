"""A FAISS IVF index for corpora that are too large to scan, whose rows are updated in place.

The index proposes rows; `best_of` scores them again from the float32 vectors. Only IVF is offered: of the approximate
indexes that we measured it alone keeps its recall when rows change (HNSW updated in place costs three inserts per row
and loses recall), see `DirectMap` in FAISS's notes on special operations.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from search_r3_mteb.search.exact import Found
from search_r3_mteb.search.storage import Storage, unpack

_ADDED_AT_ONCE = 1 << 16
_ROWS_PER_LIST = 39  # below, FAISS warns that its k-means has too few points
_PROBED_SHARE, _PROBED_AT_LEAST = 16, 32


def best_of(
    queries: Float[np.ndarray, "queries dim"],
    candidates: Int[np.ndarray, "queries many"],
    k: int,
    values: Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, "rows dim"]],
) -> Found:
    """Each query's best `k` candidates, scored from the float32 vectors `values(rows)`; -1 is not a candidate."""
    unique, place = np.unique(np.maximum(candidates, 0), return_inverse=True)
    vectors = values(unique)[place.reshape(candidates.shape)]
    scores = np.einsum("qd,qcd->qc", queries, vectors, dtype=np.float64, casting="unsafe").astype(np.float32)
    scores[candidates < 0] = -np.inf
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return Found(np.take_along_axis(candidates, order, axis=1), np.take_along_axis(scores, order, axis=1))


class IvfIndex:
    """About sqrt(n) inverted lists over unit vectors in `storage`; 1/16 of the lists, at least 32, are probed.

    Rows that a drift map moves stay in their lists, so the index is used up after `max_moves` maps and must be rebuilt.
    """

    def __init__(self, vectors: Shaped[np.ndarray, "rows dim"], storage: Storage, *, max_moves: int) -> None:
        import faiss as library

        faiss: Any = library

        n, dim = vectors.shape
        lists = max(1, min(int(n**0.5), n // _ROWS_PER_LIST))
        quantizer = faiss.IndexFlatIP(dim)
        if storage == "float32":
            index: Any = faiss.IndexIVFFlat(quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
        else:
            kind = faiss.ScalarQuantizer.QT_fp16 if storage == "float16" else faiss.ScalarQuantizer.QT_bf16
            index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
        sample = np.sort(
            np.random.default_rng(0).choice(n, min(n, max(256, 2 * _ROWS_PER_LIST * lists)), replace=False)
        )
        index.train(unpack(vectors[sample]))
        index.set_direct_map_type(faiss.DirectMap.Array)
        for start in range(0, n, _ADDED_AT_ONCE):
            index.add(unpack(vectors[start : start + _ADDED_AT_ONCE]))
        index.nprobe = min(lists, max(_PROBED_AT_LEAST, lists // _PROBED_SHARE))
        self._index = index
        self._moves, self._max_moves = 0, max_moves

    def update(
        self, rows: Int[np.ndarray, " rows"], vectors: Float[np.ndarray, "rows dim"], *, others_moved: bool
    ) -> bool:
        """Overwrite rows, moving them to the lists that they now belong to. False once the index is used up."""
        self._moves += others_moved
        if len(rows):
            self._index.update_vectors(np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(vectors, np.float32))
        return self._moves < self._max_moves

    def candidates(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Int[np.ndarray, "queries k"]:
        """Rows that may be among the best `k`, unordered; -1 where the probed lists hold fewer rows."""
        rows: Int[np.ndarray, "queries k"] = self._index.search(queries, k)[1]
        return rows
