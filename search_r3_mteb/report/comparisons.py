"""Rows of the results table (seeds merged) and the differences between them, each with its paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_r3_mteb.evaluation.costs import time_ratio
from search_r3_mteb.evaluation.significance import Difference, align, compare, holm, interval
from search_r3_mteb.report.records import EvaluationRecord, Evidence, QueryOutcome, mean

_FAST_QUERIES = 2_000  # above, fewer resamples keep a report of 10,000 queries within seconds


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table: one model, mode and budget on one task, its seeds merged."""

    runs: tuple[EvaluationRecord, ...]
    ndcg_at_10: float | None
    interval: tuple[float, float] | None
    best: bool = False
    best_reason: str = ""

    @property
    def first(self) -> EvaluationRecord:
        """The run of the lowest seed; all runs of a row share task, model, mode and budget."""
        return self.runs[0]

    @property
    def place(self) -> tuple[Any, ...]:
        """The task, split, subset and hop count: rows of one place are compared with each other."""
        run = self.first
        return (run.task, run.split, run.subset, run.hops)

    @property
    def budget(self) -> float:
        """The most reasoning tokens of one query, infinite where no budget is known."""
        tokens = self.first.max_reasoning_tokens
        return math.inf if tokens is None else tokens

    def average(self, name: str) -> float | None:
        """Mean of a field over the seeds that have it."""
        return mean(getattr(run, name) for run in self.runs)

    def values(self) -> list[dict[str, float]] | None:
        """For each seed, nDCG@10 by query id; None unless every seed has one."""
        found = [run.values() for run in self.runs]
        return [item for item in found if item is not None] if all(found) else None


@dataclass(frozen=True)
class ReasoningDifference:
    """Reasoning minus direct for one model on one task, at one budget. `result` is None where it cannot be tested."""

    reason: ScoreRow
    direct: ScoreRow
    result: Difference | None
    left_out: int  # queries without a value on one side
    why_untested: str = ""

    @property
    def plain_difference(self) -> float | None:
        """The difference of the two means as they stand in the table."""
        if self.reason.ndcg_at_10 is None or self.direct.ndcg_at_10 is None:
            return None
        return self.reason.ndcg_at_10 - self.direct.ndcg_at_10

    @property
    def times(self) -> float | None:
        """Time per query with reasoning in units of the direct one; None where one was not measured."""
        return time_ratio(self.reason.average("milliseconds"), self.direct.average("milliseconds"))


def table_rows(evidence: Evidence) -> list[ScoreRow]:
    """All rows, sorted by task and quality, with the significantly best of each task marked."""
    groups: dict[tuple[Any, ...], list[EvaluationRecord]] = {}
    for run in [*evidence.evaluations, *_by_hops(evidence.evaluations)]:
        groups.setdefault(run.condition, []).append(run)
    rows = [_row(tuple(sorted(runs, key=lambda run: run.seed))) for runs in groups.values()]
    marked = [marked_row for place in _places(rows) for marked_row in _mark_best(place)]
    return sorted(marked, key=lambda row: (_text_key(row.place), -_or_low(row.ndcg_at_10)))


def reasoning_differences(rows: Sequence[ScoreRow]) -> list[ReasoningDifference]:
    """Reasoning against direct for every model that has both on the same task, one entry per budget."""
    direct = {(row.place, row.first.label): row for row in rows if row.first.mode == "direct"}
    found = []
    for row in rows:
        other = direct.get((row.place, row.first.label)) or direct.get((row.place, row.first.model))
        if row.first.mode == "reason" and other is not None:
            found.append(_difference(row, other))
    return found


def resamples(queries: int) -> int:
    """The number of bootstrap resamples for a number of queries."""
    return 10_000 if queries <= _FAST_QUERIES else 2_000


def _row(runs: tuple[EvaluationRecord, ...]) -> ScoreRow:
    scores = [run.ndcg_at_10 for run in runs if run.ndcg_at_10 is not None]
    if len(scores) == 1 and math.isnan(scores[0]):
        return ScoreRow(runs, math.nan, None)
    score = mean(scores)
    values = [run.values() for run in runs]
    bounds = runs[0].interval if len(runs) == 1 else None
    if bounds is None and values and all(values):
        _, (table,) = align([item for item in values if item is not None])
        if table.size:
            result = interval(table, resamples=resamples(table.shape[1]))
            bounds = (result.low, result.high)
    return ScoreRow(runs, score, bounds)


def _by_hops(runs: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """One evaluation for each hop count that the queries name, unless the summary has its own."""
    given = {(run.source, run.task, run.split, run.label, run.mode, run.hops) for run in runs}
    found = []
    for run in runs:
        if run.hops is not None or not run.outcomes:
            continue
        counts = sorted({item.hops for item in run.outcomes.values() if item.hops is not None})
        for hops in counts if len(counts) > 1 else []:
            if (run.source, run.task, run.split, run.label, run.mode, hops) not in given:
                part = {key: item for key, item in run.outcomes.items() if item.hops == hops}
                found.append(_restricted(run, hops, part))
    return found


def _restricted(run: EvaluationRecord, hops: int, part: dict[str, QueryOutcome]) -> EvaluationRecord:
    from search_r3_mteb.report.mteb_results import means

    untimed = replace(run, milliseconds_per_query=None, queries_per_second=None, documents_per_second=None)
    return replace(untimed, hops=hops, outcomes=part, interval=None, **means(part))


def _places(rows: Sequence[ScoreRow]) -> list[list[ScoreRow]]:
    places: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in rows:
        places.setdefault(row.place, []).append(row)
    return list(places.values())


def _mark_best(rows: list[ScoreRow]) -> list[ScoreRow]:
    """The rows of one task; one that beats every other by a paired bootstrap (Holm-adjusted) is marked."""
    scored = [row for row in rows if row.ndcg_at_10 is not None and not math.isnan(row.ndcg_at_10)]
    if len(scored) < 2:
        return rows
    leader = max(scored, key=lambda row: _or_low(row.ndcg_at_10))
    mine = leader.values()
    results = []
    for other in scored:
        theirs = other.values()
        if other is leader:
            continue
        if mine is None or theirs is None:
            return rows  # without its queries the difference cannot be tested
        ids, (first, second) = align(mine, theirs)
        if not ids:
            return rows
        results.append(compare(first, second, resamples=resamples(len(ids))))
    adjusted = holm([result.p for result in results])
    if not all(p < 0.05 and result.low > 0 for p, result in zip(adjusted, results, strict=True)):
        return rows
    reason = f"better than each of the {len(results)} other rows, largest p = {max(adjusted):.2g} (Holm)"
    return [replace(row, best=True, best_reason=reason) if row is leader else row for row in rows]


def _difference(reason: ScoreRow, direct: ScoreRow) -> ReasoningDifference:
    first, second = reason.values(), direct.values()
    if first is None or second is None:
        return ReasoningDifference(reason, direct, None, 0, "no per-query results for both modes")
    ids, (a, b) = align(first, second)
    everything = set().union(*first, *second)
    if not ids:
        return ReasoningDifference(reason, direct, None, len(everything), "no query with a value in both modes")
    return ReasoningDifference(reason, direct, compare(a, b, resamples=resamples(len(ids))), len(everything) - len(ids))


def _or_low(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _text_key(place: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple("" if part is None else str(part) for part in place)
