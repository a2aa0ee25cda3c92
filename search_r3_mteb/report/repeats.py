"""Repeated evaluations of one model: equal results become one, different results stay apart, seeds are replicates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from search_r3_mteb.report.records import EvaluationRecord, Evidence


def settle_repeats(rows: Sequence[EvaluationRecord], evidence: Evidence) -> list[EvaluationRecord]:
    """The rows, every (condition, seed) once; each repeat gives a message.

    The same numbers twice are shown once. Different numbers under one name are both shown, each labelled with its run:
    choosing one would be choosing a result.
    """
    groups: dict[tuple[object, ...], list[EvaluationRecord]] = {}
    for row in rows:
        groups.setdefault((*row.condition, row.seed), []).append(row)
    settled: list[EvaluationRecord] = []
    for same in groups.values():
        kept = _distinct(same, evidence)
        if len(kept) > 1:
            first = kept[0]
            results = ", ".join(f"{_shown(row.ndcg_at_10)} ({row.source})" for row in kept)
            if first.hops is None:
                evidence.warn(
                    first.source,
                    f"{first.model} ({first.mode}) was evaluated {len(kept)} times on {first.task_label} with seed "
                    f"{first.seed} and different results: nDCG@10 {results}. All are shown, named by their run; "
                    "give different checkpoints different names.",
                )
            names = _run_names(kept)
            kept = [replace(row, variant=name) for row, name in zip(kept, names, strict=True)]
        settled.extend(kept)
    return settled


def _distinct(same: list[EvaluationRecord], evidence: Evidence) -> list[EvaluationRecord]:
    kept: list[EvaluationRecord] = []
    for row in same:
        twin = next((index for index, other in enumerate(kept) if _equal(row, other)), None)
        if twin is None:
            kept.append(row)
            continue
        other = kept[twin]
        if row.hops is None:  # its rows by hop count repeat with it
            evidence.note(
                row.source,
                f"{row.model} ({row.mode}) on {row.task_label} was evaluated twice with the same result (also in "
                f"{other.source}): shown once.",
            )
        if other.outcomes is None and row.outcomes is not None:
            kept[twin] = row
    return kept


def _equal(a: EvaluationRecord, b: EvaluationRecord) -> bool:
    """Whether every query has the same value; where those are not known, whether mean and fingerprint agree."""
    if a.outcomes is not None and b.outcomes is not None:
        first, second = a.values() or {}, b.values() or {}
        same = (first.get(key, math.nan) == value for key, value in second.items())
        return bool(first) and first.keys() == second.keys() and all(same)
    if a.fingerprint and b.fingerprint and a.fingerprint != b.fingerprint:
        return False
    x, y = a.ndcg_at_10, b.ndcg_at_10
    if x is None or y is None or math.isnan(x) or math.isnan(y):
        return False
    return math.isclose(x, y, abs_tol=5e-6) and (a.queries is None or b.queries is None or a.queries == b.queries)


def _run_names(rows: Sequence[EvaluationRecord]) -> list[str]:
    """Fingerprints where the runs have them, else the shortest path endings that tell them apart, else numbers."""
    marks = [row.mark or (row.fingerprint or "")[:8] for row in rows]
    if len(set(marks)) == len(rows):
        return [mark or "first" for mark in marks]
    parents = [PurePath(row.source).parent.parts or ("run",) for row in rows]
    depth = 1
    while depth < max(map(len, parents)) and len({parts[-depth:] for parts in parents}) < len(rows):
        depth += 1
    names = ["/".join(parts[-depth:]) for parts in parents]
    return [
        name if names.count(name) == 1 else f"{name}, no. {names[: i + 1].count(name)}" for i, name in enumerate(names)
    ]


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
