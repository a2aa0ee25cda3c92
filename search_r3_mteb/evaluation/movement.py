"""Movement of a query's vectors with its reasoning: cosines and qualities over several rollouts of the same queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

PerQuery = Float[np.ndarray, " queries"]


@dataclass(frozen=True)
class SampledReasonings:
    """`rollouts` sampled reasonings for each of the same queries.

    `vectors` are of unit length; `token_ids[r][q]` come without the embed token; `finished` is False where the embed
    token was forced; `ndcg_at_10` and `margin` as in `Quality`.
    """

    vectors: Float32[np.ndarray, "rollouts queries dim"]
    token_ids: Sequence[Sequence[Sequence[int]]]
    finished: Float[np.ndarray, "rollouts queries"]
    ndcg_at_10: Float[np.ndarray, "rollouts queries"]
    margin: Float[np.ndarray, "rollouts queries"]


@dataclass(frozen=True)
class Cosines:
    """Mean cosines for each query.

    `same`: over pairs of its rollouts. `reworded`: over those pairs whose reasonings differ, NaN if all are the same.
    `different`: over all pairs of one of its rollouts and one of another query's. `distinct`: number of its reasonings
    that differ.
    """

    same: PerQuery
    reworded: PerQuery
    different: PerQuery
    distinct: Int[np.ndarray, " queries"]


def cosines(rollouts: SampledReasonings) -> Cosines:
    """Cosines of vectors within a query's rollouts and between queries; ValueError for fewer than two of either.

    Means over all pairs are exact without a loop over pairs: the squared length of a sum of unit vectors is the sum of
    all cosines.
    """
    vectors = rollouts.vectors.astype(np.float64)
    many, queries = vectors.shape[:2]
    if many < 2 or queries < 2:
        raise ValueError(f"{many} rollouts of {queries} queries: two of each are needed to compare their vectors.")
    sums = vectors.sum(axis=0)
    same = ((sums**2).sum(axis=1) - many) / (many * (many - 1))
    means, total = sums / many, sums.sum(axis=0) / many
    different = (means * (total - means)).sum(axis=1) / (queries - 1)
    labels = _labels(rollouts.token_ids)
    reworded = np.full(queries, np.nan)
    upper = np.triu(np.ones((many, many), dtype=bool), k=1)
    for query in range(queries):
        differ = upper & (labels[:, None, query] != labels[None, :, query])
        if differ.any():
            reworded[query] = (vectors[:, query] @ vectors[:, query].T)[differ].mean()
    distinct = np.array([len(np.unique(labels[:, query])) for query in range(queries)])
    return Cosines(same, reworded, different, distinct)


def spread(values: Float[np.ndarray, "rollouts queries"]) -> PerQuery:
    """Standard deviation over a query's rollouts (n - 1)."""
    found: PerQuery = values.std(axis=0, ddof=1)
    return found


def pooled(vectors: Float32[np.ndarray, "rollouts queries dim"], size: int) -> list[Float32[np.ndarray, "queries dim"]]:
    """Mean-pooled unit vectors of each full group of `size` rollouts."""
    found = []
    for start in range(0, len(vectors) - size + 1, size):
        mean = vectors[start : start + size].astype(np.float64).mean(axis=0)
        found.append((mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32))
    return found


def _labels(token_ids: Sequence[Sequence[Sequence[int]]]) -> Int[np.ndarray, "rollouts queries"]:
    """Equal numbers for equal reasonings of one query."""
    known: dict[tuple[int, ...], int] = {}
    return np.array([[known.setdefault(tuple(ids), len(known)) for ids in rollout] for rollout in token_ids])
