"""Paired bootstrap over queries, with seeds as a second level.

One resample draws queries with replacement (the same draw for both systems: the comparison is paired) and, where a
system was run with several seeds, draws its seeds with replacement too. The statistic is the mean over the drawn
queries and seeds. The interval is the percentile interval; p is twice the smaller share of resampled differences on
either side of zero, with one added to both counts (Davison and Hinkley 1997, section 4.2), so the interval leaves out
zero exactly when p is small.

Why not a library: `scipy.stats.bootstrap` has no second level and no p value; for a single seed ours agrees with it
(`tests/evaluation/test_significance.py`), and `ranx` would add numba for the same one-level test.

With few seeds the second level is itself uncertain: two give intervals that are too narrow, three or more are better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
QueryScores = Mapping[str, float]
"""A score of each query, by query id."""
_CELLS_PER_CHUNK = 4_000_000  # resample weights held at once, in float64 cells: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over queries (and seeds) with its bootstrap interval."""

    mean: float
    low: float
    high: float
    queries: int
    seeds: int
    confidence: float = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of the first system minus mean of the second, with interval and two-sided p over the same queries."""

    difference: float
    low: float
    high: float
    p: float
    queries: int
    seeds: tuple[int, int]
    resamples: int
    confidence: float = 0.95

    @property
    def significant(self) -> bool:
        """True where p is below 1 - confidence and the interval leaves out zero."""
        return self.p < 1 - self.confidence and not self.low <= 0 <= self.high


def interval(values: ArrayLike, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval of one system's mean.

    `values` is (queries,) or (seeds, queries). Raises ValueError on NaN, on no queries, or on other shapes.
    """
    table = _table(values, "values")
    _check(resamples, confidence)
    means = np.concatenate([_means(table, weights, rng) for weights, rng in _draws(table.shape[1], resamples, seed)])
    low, high = np.quantile(means, _tails(confidence))
    return Interval(float(table.mean()), float(low), float(high), table.shape[1], table.shape[0], confidence)


def compare(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Paired bootstrap of mean(first) - mean(second).

    Both are (queries,) or (seeds, queries) over the same queries in the same order (`align` sorts them so); the numbers
    of seeds may differ. Raises ValueError on NaN, on no queries, or on different numbers of queries.

    >>> compare([0.9, 0.8, 1.0, 0.7], [0.1, 0.3, 0.2, 0.2]).significant
    True
    """
    a, b = _table(first, "first"), _table(second, "second")
    _check(resamples, confidence)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"compare needs the same queries on both sides, got {a.shape[1]} and {b.shape[1]}: "
            "a paired test has no meaning otherwise. Use align() to keep the shared ones."
        )
    parts = []
    for weights, rng in _draws(a.shape[1], resamples, seed):
        parts.append(_means(a, weights, rng) - _means(b, weights, rng))
    drawn = np.concatenate(parts)
    # Sums in another order differ in the last bits: a draw that is zero on paper must count as zero.
    drawn[np.abs(drawn) < 1e-12] = 0.0
    low, high = np.quantile(drawn, _tails(confidence))
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = float(min(1.0, 2 * (tail + 1) / (resamples + 1)))
    difference = float(a.mean() - b.mean())
    return Difference(
        difference, float(low), float(high), p, a.shape[1], (a.shape[0], b.shape[0]), resamples, confidence
    )


def align(*systems: Sequence[QueryScores]) -> tuple[list[str], list[FloatArray]]:
    """The sorted ids of the queries that every run has a finite value for, and one (seeds, queries) array per system.

    Each system is a sequence of runs, one per seed. NaN and missing values drop the query from every system, so that
    the comparison stays paired: compare `len(ids)` with the full number and say what was left out. Raises ValueError
    when a system has no run.
    """
    for number, runs in enumerate(systems):
        if not runs:
            raise ValueError(f"align got no run for system {number}: give at least one mapping of query id to value.")
    runs_of_all = [run for runs in systems for run in runs]
    if not runs_of_all:
        return [], []
    shared = {query for query, value in runs_of_all[0].items() if np.isfinite(value)}
    for run in runs_of_all[1:]:
        shared &= {query for query, value in run.items() if np.isfinite(value)}
    ids = sorted(shared)
    return ids, [np.array([[run[query] for query in ids] for run in runs], dtype=np.float64) for runs in systems]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for the number of comparisons (Holm 1979), in the order given; each at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _table(values: ArrayLike, name: str) -> FloatArray:
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        shape = np.shape(values)
        raise ValueError(f"{name} must be (queries,) or (seeds, queries) with at least one query, got shape {shape}.")
    bad = int(np.count_nonzero(~np.isfinite(table)))
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are not finite numbers: their mean says nothing. "
            "Find out why they failed, or drop those queries from both sides with align()."
        )
    return table


def _check(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}: write 0.95 for 95 %.")


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _draws(queries: int, resamples: int, seed: int) -> Iterator[tuple[FloatArray, np.random.Generator]]:
    """Chunks of query weights (resamples, queries), rows summing to one, with the generator that draws the seeds."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS_PER_CHUNK // queries)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        picks = rng.integers(0, queries, size=(count, queries))
        picks += np.arange(count)[:, None] * queries
        counts = np.bincount(picks.ravel(), minlength=count * queries).reshape(count, queries)
        yield counts / queries, rng


def _means(table: FloatArray, weights: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The mean of each resample: (resamples,). A single seed draws nothing, so plain runs stay one-level."""
    per_seed = weights @ table.T
    seeds = table.shape[0]
    if seeds == 1:
        return np.asarray(per_seed[:, 0])
    picks = rng.integers(0, seeds, size=(len(weights), seeds))
    return np.asarray(np.take_along_axis(per_seed, picks, axis=1).mean(axis=1))
