"""Exact search by cosine in blocks, without a matrix of all scores and without a second copy of the corpus.

    for each block of the corpus (read once):
        scores = queries @ block                            # one small matrix, bfloat16 where the processor has it
        keep the pairs that can still be among the k best   # score > k-th best so far - 2 * (largest error of a score)
    score the kept pairs again, from float32 vectors in float64, and take the k best.

The k best are therefore exactly those of the float32 vectors, even where the scan reads bfloat16 or float16: a pair is
dropped only when rounding cannot explain the distance. After the first blocks almost no score passes the threshold, so
selecting costs a comparison per score instead of a partial sort.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from search_r3_mteb.search.arrays import RowNumbers
from search_r3_mteb.search.products import (
    as_tensor,
    cpu_multiplies_bfloat16,
    plain_arithmetic,
    product,
    result_rounding,
)
from search_r3_mteb.search.storage import rounding, unpack

BLOCK_BYTES = 8 << 20  # measured: scores that stay in the cache; 32 MiB takes 1.5 times as long
QUERIES_PER_PASS = 1024
_PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Found:
    """The best rows of the corpus for each query, best first; equal scores are ordered by row.

    `rows` (queries, k) int64, `scores` (queries, k) float32 cosines.
    """

    rows: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def exact_search(
    queries: Float[np.ndarray, "queries dim"],
    corpus: Shaped[np.ndarray, "rows dim"],
    k: int,
    *,
    exact_rows: Callable[[RowNumbers], Float[np.ndarray, "rows dim"]] | None = None,
    living: Bool[np.ndarray, " rows"] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Found:
    """The `k` rows of `corpus` with the largest inner product for each query; all rows when it has fewer than `k`.

    `living` says which rows can be found; without it all can.

    `queries` and `corpus` hold vectors of length 1. `corpus` is float32, float16 or uint16 (bfloat16, see `storage`),
    in memory or a memory map. `exact_rows(rows)` returns the float32 vectors behind a corpus in half precision; without
    it the stored values are scored. `block_bytes` bounds the memory of one block of scores and of one converted block.

    Raises ValueError for k below 1, for another dimension and for queries that are not finite or not of length 1;
    TypeError for other number types.
    """
    queries = checked_queries(queries, corpus.shape[1] if corpus.ndim == 2 else -1)
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r}: ask for at least one row.")
    k = min(int(k), len(corpus) if living is None else int(np.count_nonzero(living)))
    if k == 0 or len(queries) == 0:
        return Found(np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32))
    error = scan_error(corpus, "cpu", exact_rows is not None)
    starts = range(0, len(queries), QUERIES_PER_PASS)
    passes = [_Candidates(queries[start : start + QUERIES_PER_PASS], k, 2 * error) for start in starts]
    for first, scores_of in scanners(corpus, min(len(queries), QUERIES_PER_PASS), block_bytes):
        for candidates in passes:
            scores = scores_of(candidates.queries)
            if living is not None:
                own = living[first : first + scores.shape[1]]
                if not own.any():
                    continue
                scores[:, ~own] = -np.inf
            candidates.add(scores, first)
    vectors_of = exact_rows if exact_rows is not None else (lambda rows: unpack(corpus[rows]))
    found = [candidates.best(vectors_of) for candidates in passes]
    return Found(np.concatenate([f.rows for f in found]), np.concatenate([f.scores for f in found]))


def checked_queries(queries: Float[np.ndarray, "queries dim"], dim: int) -> Float[np.ndarray, "queries dim"]:
    """The queries in float32. ValueError unless they are finite unit vectors of dimension `dim`."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(
            f"Queries of shape {queries.shape} do not fit a corpus of {dim}-dimensional rows: both must be (rows, dim) "
            "and come from the same model."
        )
    length = np.linalg.norm(queries, axis=1)
    if not (np.abs(length - 1) < 1e-2).all():
        worst = int(np.argmax(~(np.abs(length - 1) < 1e-2)))
        raise ValueError(
            f"Query {worst} has length {length[worst]:.4g}, not 1: its scores would not be cosines. "
            "Normalise the queries, and look for NaN in them."
        )
    return queries


def scan_error(corpus: Shaped[np.ndarray, "rows dim"], device_type: str, stored_rounded: bool) -> float:
    """The largest difference between a scanned score and the exact one, on a device of that type.

    `stored_rounded`: the exact score is that of a float32 vector whose rounded copy is scanned.
    """
    error = corpus.shape[1] * 2.0**-24  # of the sum
    if rounding(corpus) == 0.0:
        return error
    further = result_rounding(device_type, "bfloat16") if corpus.dtype == np.uint16 else 0.0
    # `rounding` is twice what rounding to nearest does to one vector: half of it is the query's, which is scanned in
    # the same type. Results in bfloat16 concern the score, and a float32 vector that such a product has moved.
    return error * 2 + rounding(corpus) * (1.0 if stored_rounded else 0.5) + 2 * further


def scanners(
    corpus: Shaped[np.ndarray, "rows dim"], queries: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, Callable[[Float[np.ndarray, "queries dim"]], Float[np.ndarray, "queries block"]]]]:
    """`(first row, scores of queries for the rows from there)` over the corpus, each block within `block_bytes`."""
    rows = max(256, block_bytes // (4 * max(queries, corpus.shape[1])))
    half = corpus.dtype == np.uint16 and cpu_multiplies_bfloat16()
    for first in range(0, len(corpus), rows):
        block = corpus[first : first + rows]
        yield first, partial(_half_scores, as_tensor(block)) if half else partial(_scores, unpack(block))


def _scores(block: Float[np.ndarray, "block dim"], queries: Float[np.ndarray, "queries dim"]) -> np.ndarray:
    scores: Float[np.ndarray, "queries block"] = queries @ block.T
    return scores


def _half_scores(block: Any, queries: Float[np.ndarray, "queries dim"]) -> np.ndarray:
    with plain_arithmetic("cpu"):
        scores: np.ndarray = product(block, as_tensor(queries).to(block.dtype).T).T.contiguous().numpy()
    return scores


@dataclass
class _Candidates:
    """The pairs of one group of queries that may still be among the k best."""

    queries: Float[np.ndarray, "queries dim"]
    k: int
    slack: float
    pairs: list[tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]] = field(
        default_factory=list
    )
    best_scores: Float[np.ndarray, "queries known"] = field(init=False)

    def __post_init__(self) -> None:
        self.best_scores = np.zeros((len(self.queries), 0), np.float32)

    def add(self, scores: Float[np.ndarray, "queries block"], first: int) -> None:
        """Keep the pairs of this block that may be among the best."""
        if self.best_scores.shape[1] < self.k:
            self.best_scores = _largest(np.concatenate([self.best_scores, scores], axis=1), self.k)
            query, column = np.nonzero(scores >= self._threshold()[:, None])
            self.pairs.append((query, column + first, scores[query, column]))
            return
        flat = np.flatnonzero(scores >= self._threshold()[:, None])
        if len(flat) == 0:
            return
        query, column = np.divmod(flat, scores.shape[1])
        values = scores.ravel()[flat]
        self._raise_threshold(query, values)
        alive = values >= self._threshold()[query]
        self.pairs.append((query[alive], column[alive] + first, values[alive]))
        if sum(len(part[0]) for part in self.pairs) > 8 * self.best_scores.size + _PAIRS_AT_ONCE:
            self.pairs = [self._alive()]

    def _threshold(self) -> Float[np.ndarray, " queries"]:
        """The score below which a pair cannot be among the k best; -inf until k scores are known."""
        if self.best_scores.shape[1] < self.k:
            return np.full(len(self.queries), -np.inf, dtype=np.float32)
        lowest: Float[np.ndarray, " queries"] = self.best_scores.min(axis=1) - np.float32(self.slack)
        return lowest

    def _raise_threshold(self, query: Int[np.ndarray, " pairs"], values: Float[np.ndarray, " pairs"]) -> None:
        """Merge new scores, grouped by query, into the k best of each query that has any."""
        touched, begin, counts = np.unique(query, return_index=True, return_counts=True)
        place = np.arange(len(query)) - np.repeat(begin, counts)
        table = np.full((len(touched), self.k + int(counts.max())), -np.inf, dtype=np.float32)
        table[:, : self.k] = self.best_scores[touched]
        table[np.repeat(np.arange(len(touched)), counts), self.k + place] = values
        self.best_scores[touched] = _largest(table, self.k)

    def _alive(self) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
        query, row, score = (np.concatenate(part) for part in zip(*self.pairs, strict=True))
        alive = score >= self._threshold()[query]
        return query[alive], row[alive], score[alive]

    def best(self, vectors_of: Callable[[RowNumbers], Float[np.ndarray, "rows dim"]]) -> Found:
        """The k best of the remaining pairs, scored exactly."""
        query, row, _ = self._alive()
        return best_pairs(query, row, _exact_scores(self.queries, query, row, vectors_of), len(self.queries), self.k)


def _exact_scores(
    queries: Float[np.ndarray, "queries dim"],
    query: Int[np.ndarray, " pairs"],
    row: Int[np.ndarray, " pairs"],
    vectors_of: Callable[[RowNumbers], Float[np.ndarray, "rows dim"]],
) -> Float[np.ndarray, " pairs"]:
    scores = np.empty(len(row), dtype=np.float32)
    for start in range(0, len(row), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        unique, place = np.unique(row[part], return_inverse=True)
        vectors = vectors_of(unique)
        scores[part] = np.einsum("pd,pd->p", queries[query[part]], vectors[place], dtype=np.float64, casting="unsafe")
    return scores


def best_pairs(
    query: Int[np.ndarray, " pairs"],
    row: Int[np.ndarray, " pairs"],
    scores: Float[np.ndarray, " pairs"],
    queries: int,
    k: int,
) -> Found:
    """The k best of the scored (query, row) pairs of each of the `queries`, of which each has at least k."""
    order = np.lexsort((row, -scores, query))
    begin = np.searchsorted(query[order], np.arange(queries))
    chosen = order[begin[:, None] + np.arange(k)]
    return Found(row[chosen].astype(np.int64), scores[chosen])


def _largest(values: Float[np.ndarray, "queries many"], k: int) -> Float[np.ndarray, "queries k"]:
    """The k largest of each row, unordered; all of them where there are fewer."""
    if values.shape[1] <= k:
        return values.copy()
    return np.partition(values, values.shape[1] - k, axis=1)[:, -k:].copy()
