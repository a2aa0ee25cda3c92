"""The records of a diagnosis for a group of queries (all, or one hop count), every number with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from search_r3_mteb.evaluation.movement import Cosines, PerQuery, spread
from search_r3_mteb.evaluation.significance import compare, holm, interval

DiagnosisRecord = dict[str, Any]
OWN, OTHER, SHUFFLED, NONE, DIRECT = "own", "other", "shuffled", "none", "direct"
CONTROLS = (OTHER, SHUFFLED, NONE, DIRECT)
_BINS = 5
_DIGITS = 6
_LEVEL = 0.05
# Resamples of the controls, which decide the verdict, and of everything else: a hundred further intervals, whose ends
# move by less than a tenth of their width.
_MANY, _FEWER = 10_000, 2_000


@dataclass(frozen=True)
class BudgetRun:
    """The model's own reasoning under one budget; all arrays are (queries,)."""

    ndcg_at_10: PerQuery
    tokens: Int[np.ndarray, " queries"]
    forced: PerQuery


@dataclass(frozen=True)
class Measured:
    """The measurements of every query. The keys of `ndcg` and `cosine_to_own` are own, other, shuffled, none, direct.

    `tokens` and `forced` belong to the query's own reasoning; `rollout_ndcg` and `rollout_margin` are (rollouts,
    queries); `pools` maps a number of rollouts to the quality of their mean vector.
    """

    ndcg: Mapping[str, PerQuery]
    cosine_to_own: Mapping[str, PerQuery]
    tokens: Int[np.ndarray, " queries"]
    forced: PerQuery
    budgets: Mapping[int, BudgetRun]
    cosines: Cosines
    rollout_ndcg: Float[np.ndarray, "rollouts queries"]
    rollout_margin: Float[np.ndarray, "rollouts queries"]
    rollout_forced: Float[np.ndarray, "rollouts queries"]
    pools: Mapping[int, PerQuery]


def group_record(measured: Measured, rows: Int[np.ndarray, " group"], hops: int | None) -> DiagnosisRecord:
    """The record of one group; `rows` are its queries."""
    own = measured.ndcg[OWN][rows]
    return {
        "hops": hops,
        "queries": len(rows),
        "controls": _controls(measured, rows, own),
        "forced": mean_record(measured.forced[rows]),
        "reasoning_tokens": mean_record(measured.tokens[rows]),
        "movement": _movement(measured, rows),
        "budgets": _budgets(measured, rows),
        "pooling": _pooling(measured, rows),
        "lengths": _lengths(measured, rows),
    }


def mean_record(values: Num[np.ndarray, " queries"], resamples: int = _FEWER) -> DiagnosisRecord | None:
    """Mean and 95 % bootstrap interval over the finite values; None where there is none."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    found = interval(known, resamples=resamples)
    return {"mean": _round(found.mean), "interval": [_round(found.low), _round(found.high)], "queries": len(known)}


def seeds_record(values: Float[np.ndarray, "rollouts queries"]) -> DiagnosisRecord:
    """Mean and interval over queries and, as a second level, over the rollouts' seeds."""
    found = interval(values, resamples=_FEWER)
    bounds = [_round(found.low), _round(found.high)]
    return {"mean": _round(found.mean), "interval": bounds, "queries": found.queries, "seeds": found.seeds}


def difference_record(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."], resamples: int = _FEWER
) -> DiagnosisRecord:
    """Mean of first - second over the same queries, paired bootstrap; (seeds, queries) adds seeds as a second level."""
    found = compare(first, second, resamples=resamples)
    return {
        "difference": _round(found.difference),
        "interval": [_round(found.low), _round(found.high)],
        "p": _round(found.p),
        "significant": found.significant,
        "queries": found.queries,
    }


def adjust(records: Sequence[DiagnosisRecord]) -> None:
    """Add `p_adjusted` (Holm over these records) and make `significant` follow it."""
    for record, p in zip(records, holm([record["p"] for record in records]), strict=True):
        low, high = record["interval"]
        record["p_adjusted"] = _round(p)
        record["significant"] = bool(p < _LEVEL and not low <= 0 <= high)


def _controls(measured: Measured, rows: Int[np.ndarray, " group"], own: PerQuery) -> DiagnosisRecord:
    found: DiagnosisRecord = {OWN: {"ndcg_at_10": mean_record(own, _MANY)}}
    for name in CONTROLS:
        found[name] = {
            "ndcg_at_10": mean_record(measured.ndcg[name][rows], _MANY),
            "own_minus_this": difference_record(own, measured.ndcg[name][rows], _MANY),
            "cosine_to_own": mean_record(measured.cosine_to_own[name][rows]),
        }
    adjust([found[name]["own_minus_this"] for name in CONTROLS])
    return found


def _movement(measured: Measured, rows: Int[np.ndarray, " group"]) -> DiagnosisRecord:
    cosines, ndcg = measured.cosines, measured.rollout_ndcg[:, rows]
    same, different = cosines.same[rows], cosines.different[rows]
    ndcg_spread, margin_spread = spread(ndcg), spread(measured.rollout_margin[:, rows])
    within = float(ndcg.var(axis=0, ddof=1).mean())
    between = max(0.0, float(ndcg.mean(axis=0).var(ddof=1)) - within / len(ndcg)) if len(rows) > 1 else 0.0
    return {
        "rollouts": len(ndcg),
        "same_query": mean_record(same),
        "same_query_other_words": mean_record(cosines.reworded[rows]),
        "different_queries": mean_record(different),
        "same_minus_different": difference_record(same, different),
        # 0: all rollouts of a query give one vector. 1: they lie as far apart as different queries do.
        "distance_ratio": mean_record(_ratio(1 - same, 1 - different)),
        "distinct_reasonings": mean_record(cosines.distinct[rows]),
        "forced": mean_record(measured.rollout_forced[:, rows].mean(axis=0)),
        "ndcg_at_10": seeds_record(ndcg),
        "sampled_minus_direct": difference_record(ndcg, measured.ndcg[DIRECT][rows]),
        "ndcg_spread": mean_record(ndcg_spread),
        "margin_spread": mean_record(margin_spread),
        "queries_with_spread": mean_record((ndcg_spread > 1e-9).astype(np.float64)),
        "variance_within_queries": _round(within / (within + between)) if within + between > 0 else None,
        "best_rollout": mean_record(ndcg.max(axis=0)),
        "worst_rollout": mean_record(ndcg.min(axis=0)),
        "correlation_movement_margin_spread": _spearman(1 - same, margin_spread),
        "correlation_movement_ndcg_spread": _spearman(1 - same, ndcg_spread),
    }


def _budgets(measured: Measured, rows: Int[np.ndarray, " group"]) -> list[DiagnosisRecord]:
    """One record per budget, each compared with the smallest one."""
    found: list[DiagnosisRecord] = []
    base = measured.budgets[min(measured.budgets)].ndcg_at_10[rows]
    for budget, run in sorted(measured.budgets.items()):
        record: DiagnosisRecord = {
            "max_reasoning_tokens": budget,
            "ndcg_at_10": mean_record(run.ndcg_at_10[rows]),
            "reasoning_tokens": mean_record(run.tokens[rows]),
            "forced": mean_record(run.forced[rows]),
        }
        if found:
            record["minus_smallest"] = difference_record(run.ndcg_at_10[rows], base)
        found.append(record)
    adjust([record["minus_smallest"] for record in found[1:]])
    return found


def _pooling(measured: Measured, rows: Int[np.ndarray, " group"]) -> list[DiagnosisRecord]:
    """One record per pool size, each compared with one rollout and with the query's own (usually greedy) reasoning."""
    found: list[DiagnosisRecord] = []
    single = measured.pools[1][rows]
    for size, values in sorted(measured.pools.items()):
        record: DiagnosisRecord = {
            "rollouts": size,
            "ndcg_at_10": mean_record(values[rows]),
            "minus_own": difference_record(values[rows], measured.ndcg[OWN][rows]),
        }
        if size > 1:
            record["minus_single"] = difference_record(values[rows], single)
        found.append(record)
    adjust([record["minus_own"] for record in found])
    adjust([record["minus_single"] for record in found if "minus_single" in record])
    return found


def _lengths(measured: Measured, rows: Int[np.ndarray, " group"]) -> list[DiagnosisRecord]:
    """Quality by length of the query's own reasoning, in five bins; forced rows apart: their length is the budget."""
    tokens, forced = measured.tokens[rows], measured.forced[rows].astype(bool)
    found = []
    for low, high, inside in _bins(tokens, ~forced):
        found.append({"tokens": [low, high], "forced": False, **_of_length(measured, rows[inside])})
    if forced.any():
        lengths = tokens[forced]
        ends = [int(lengths.min()), int(lengths.max())]
        found.append({"tokens": ends, "forced": True, **_of_length(measured, rows[forced])})
    adjust([record["own_minus_direct"] for record in found])
    return found


def _of_length(measured: Measured, rows: Int[np.ndarray, " bin"]) -> DiagnosisRecord:
    own, direct = measured.ndcg[OWN][rows], measured.ndcg[DIRECT][rows]
    return {
        "queries": len(rows),
        "ndcg_at_10": mean_record(own),
        # Long and short reasonings belong to different queries: the direct embedding says how hard each bin's are.
        "direct": mean_record(direct),
        "own_minus_direct": difference_record(own, direct),
    }


def _bins(
    tokens: Int[np.ndarray, " group"], wanted: Bool[np.ndarray, " group"]
) -> list[tuple[int, int, Bool[np.ndarray, " group"]]]:
    """(shortest, longest, members) of at most five bins between quantiles; equal lengths share a bin."""
    if not wanted.any():
        return []
    longest = np.unique(np.quantile(tokens[wanted], np.linspace(0, 1, _BINS + 1)[1:], method="higher"))
    place = np.searchsorted(longest, tokens, side="left")
    found = []
    for index in np.unique(place[wanted]):
        inside = wanted & (place == index)
        found.append((int(tokens[inside].min()), int(tokens[inside].max()), inside))
    return found


def _ratio(over: PerQuery, under: PerQuery) -> PerQuery:
    """The quotient, NaN where `under` is 0 up to rounding."""
    safe = under > 1e-9
    found: PerQuery = np.where(safe, over / np.where(safe, under, 1.0), np.nan)
    return found


def _spearman(first: PerQuery, second: PerQuery) -> float | None:
    """Rank correlation over the queries, None where one side does not vary or fewer than three are known."""
    from scipy.stats import spearmanr

    known = np.isfinite(first) & np.isfinite(second)
    a, b = first[known], second[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return _round(float(spearmanr(a, b).statistic))


def _round(value: float) -> float:
    return round(float(value), _DIGITS)


def hop_groups(hops: Sequence[int | None]) -> list[tuple[int | None, Int[np.ndarray, " group"]]]:
    """All queries together, then those of each hop count where the task knows it."""
    every: list[tuple[int | None, Int[np.ndarray, " group"]]] = [(None, np.arange(len(hops)))]
    counts = sorted({count for count in hops if count is not None})
    for count in counts:
        every.append((count, np.flatnonzero([each == count for each in hops])))
    return every


def verdict(group: DiagnosisRecord, model: str, task: str) -> DiagnosisRecord:
    """Whether the reasoning matters (what it says changes what is found) and helps, in one sentence with its intervals.

    "Matters" compares with another query's reasoning. "Helps" compares with the better of the empty reasoning and the
    direct template, so that a badly trained one of the two does not flatter the reasoning.
    """
    controls = group["controls"]
    without = max((DIRECT, NONE), key=lambda name: controls[name]["ndcg_at_10"]["mean"])
    content, help_ = controls[OTHER]["own_minus_this"], controls[without]["own_minus_this"]
    a, b = _sign(content), _sign(help_)
    said = {
        (1, 1): "the reasoning matters and helps",
        (1, 0): "what the reasoning says matters, but it cannot be told apart from no reasoning in quality",
        (1, -1): "what the reasoning says matters, but no reasoning at all is better",
        (0, 1): "reasoning helps, but another query's cannot be told apart from it",
        (0, 0): "no effect of the reasoning can be shown",
        (0, -1): "the reasoning hurts, whatever it says",
        (-1, 1): "reasoning helps, but another query's reasoning helps more",
        (-1, 0): "the query's own reasoning misleads: another query's is better",
        (-1, -1): "the query's own reasoning misleads: another query's is better, and so is none",
    }[a, b]
    name = {DIRECT: "direct embedding", NONE: "empty reasoning"}[without]
    return {
        "text": f"{model} on {task}: {said}: nDCG@10 with it is {_shown(content)} over another query's reasoning and "
        f"{_shown(help_)} over {name} ({group['queries']:,} queries).",
        "matters": a > 0,
        "helps": b > 0,
        "without": without,
    }


def _sign(record: DiagnosisRecord) -> int:
    return int(np.sign(record["difference"])) if record["significant"] else 0


def _shown(record: DiagnosisRecord) -> str:
    low, high = record["interval"]
    return f"{record['difference']:+z.3f} (95 % interval {low:+z.3f} to {high:+z.3f})"
