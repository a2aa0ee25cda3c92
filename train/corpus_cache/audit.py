"""Audits of the cache: its error on a sample of rows that is encoded again.

An audit encodes `n` rows (the positives of recent rollouts, at most half, and random rows for the rest) and compares
two rankings of these rows for the same queries: by the cache's values, and by the fresh vectors.

    cosine drift   1 - mean cosine between a row's value and its fresh vector
    recall@10      share of the fresh top 10 that the cache's top 10 names
    reward error   mean |reward by values - reward by fresh vectors|, with the reward of stage 2 (`rewards.dcg_scaled`)

The sample is thinner than the corpus, so its rankings are easier to keep: read the figures over time and against the
bound that you set, not as those of the whole corpus (results/corpus_cache has both).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from search_r3_mteb.search.arrays import RowNumbers, Vectors
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.refresh_policies import Hits
from train.losses.rewards import Graded, dcg_scaled

TOP = 10
REWARD_DEPTH = 100
MAX_PROBES = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """Figures of one audit. `queries` ranked the sample: rollouts, or its own documents before the first rollout."""

    step: int
    rows: int
    queries: Literal["rollouts", "documents"]
    cosine_drift: float
    recall_at_10: float
    reward_error: float
    budget_factor: float
    """Factor of the refresh budget from now on."""
    rebuild_advised: bool
    """The error is above the bound and the budget cannot grow further."""


@dataclass(frozen=True)
class Probes:
    """Queries with the rows that are right for them."""

    queries: Vectors
    positives: Sequence[RowNumbers]

    @classmethod
    def of(cls, hits: Hits) -> "Probes":
        """At most 256 of the rollouts, evenly spaced."""
        chosen = np.unique(
            np.linspace(0, len(hits.queries) - 1, min(MAX_PROBES, len(hits.queries))).round().astype(int)
        )
        positives = [np.asarray(hits.positives[rollout], dtype=np.int64).ravel() for rollout in chosen.tolist()]
        return cls(np.array(hits.queries[chosen], dtype=np.float32), positives)


def sample_rows(n: int, wanted: int, positives: RowNumbers, seed: Sequence[int]) -> RowNumbers:
    """Rows to audit, ascending: `positives` of all processes' probes up to half of them, random rows for the rest."""
    if wanted < 2:
        raise ValueError(f"An audit of {wanted} rows cannot rank anything. Sample at least 2, or better a few hundred.")
    wanted = min(wanted, n)
    rng = np.random.default_rng(list(seed))
    chosen = rng.permutation(np.unique(positives))[: wanted // 2]
    while len(chosen) < wanted:
        chosen = np.unique(np.concatenate([chosen, rng.integers(n, size=wanted - len(chosen))]))
    return np.sort(chosen)


def compare(values: Vectors, fresh: Vectors, rows: RowNumbers, probes: Probes | None) -> tuple[float, float, float]:
    """Cosine drift, recall@10 and reward error over the sampled `rows`, whose values and fresh vectors are given."""
    drift = 1.0 - float(np.einsum("rd,rd->r", values, fresh, dtype=np.float64, casting="unsafe").mean())
    usable = [i for i, positive in enumerate(probes.positives) if np.isin(positive, rows).any()] if probes else []
    if probes is None or not usable:
        by_values, by_fresh = fresh @ values.T, fresh @ fresh.T
        np.fill_diagonal(by_values, -np.inf)
        np.fill_diagonal(by_fresh, -np.inf)
        relevant = np.zeros(by_fresh.shape)
        relevant[np.arange(len(rows)), by_fresh.argmax(axis=1)] = 1.0
    else:
        queries = probes.queries[usable]
        by_values, by_fresh = queries @ values.T, queries @ fresh.T
        relevant = np.stack([np.isin(rows, probes.positives[i]) for i in usable]).astype(np.float64)
    return (
        drift,
        overlap(by_values, by_fresh),
        float(np.abs(rewards(by_values, relevant) - rewards(by_fresh, relevant)).mean()),
    )


def overlap(scores: Float[np.ndarray, "queries rows"], truth: Float[np.ndarray, "queries rows"], k: int = TOP) -> float:
    """Share of the `k` best by `truth` that are among the `k` best by `scores`."""
    k = min(k, truth.shape[1] - 1) or 1
    found, right = (np.argsort(-matrix, axis=1, kind="stable")[:, :k] for matrix in (scores, truth))
    return float((found[:, :, None] == right[:, None, :]).any(axis=1).mean())


def rewards(
    scores: Float[np.ndarray, "queries rows"], relevant: Float[np.ndarray, "queries rows"]
) -> Float[np.ndarray, " queries"]:
    """`dcg_scaled` of each query over the rows, with gains `relevant`."""
    k = min(REWARD_DEPTH, scores.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    graded = Graded(
        gains=np.take_along_axis(relevant, order, axis=1),
        ideal=-np.sort(-relevant, axis=1)[:, :k],
        similarities=np.take_along_axis(scores, order, axis=1).astype(np.float64),
    )
    return dcg_scaled(graded)


def grown_budget(error: float, step: int, factor: float, settings: CorpusCacheSettings) -> tuple[float, bool]:
    """The budget's factor after an audit that found `error`, and whether a rebuild is advised; both are logged."""
    if error <= settings.error_bound:
        return (max(1.0, factor / settings.budget_growth) if error < settings.error_bound / 2 else factor), False
    grown = min(settings.max_budget_factor, factor * settings.budget_growth)
    said = f"The audit at step {step} found a reward error of {error:.4f}, above the bound of {settings.error_bound}"
    if grown > factor:
        _log.warning("%s: the refresh budget grows from %g to %g times the configured one.", said, factor, grown)
        return grown, False
    advice = "A full rebuild is advised: cache.rebuild(encode)."
    _log.warning("%s, and the budget is already %g times the configured one. %s", said, factor, advice)
    return factor, True
