"""A folder written by `search-r3 evaluate`: summary, per-query files, MTEB results and predictions, reconciled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search_r3_mteb.report.mteb_results import means, read_predictions, read_result, split_mark
from search_r3_mteb.report.parsing import load_json, number, string, whole
from search_r3_mteb.report.query_files import plain, read_outcomes, split_name
from search_r3_mteb.report.records import EvaluationRecord, Evidence, QueryOutcome

NOT_RESULTS = frozenset({"model_meta.json", "manifest.json", "config.json", "tokenizer.json", "search_r3.json"})
_AGREE = 5e-3  # a summary and the mean of its queries may differ by rounding, not by more


def is_run_folder(folder: Path) -> bool:
    """True for a folder with a summary, or with per-query files whose summary is missing."""
    return (folder / "summary.json").exists() or (folder / "queries").is_dir()


def read_run_folder(folder: Path, evidence: Evidence) -> None:
    """Add the run's evaluations to `evidence`, with a message for everything that does not fit together."""
    rows = _read_summary(folder, evidence)
    files = sorted((folder / "queries").glob("*.jsonl")) if (folder / "queries").is_dir() else []
    rows = _attach_queries(rows, files, folder, evidence)
    for path in sorted((folder / "mteb").rglob("*.json")) if (folder / "mteb").is_dir() else []:
        if path.name in NOT_RESULTS:
            continue
        for row in read_result(path, str(path), evidence):
            if not any(_same_result(row, other) for other in rows if other.origin != "mteb"):
                evidence.warn(
                    row.source,
                    f"{row.task} ({row.model}, {row.mode}) is not in the run's summary.json: shown from MTEB's own file.",
                )
                rows.append(row)
    for path in sorted((folder / "predictions").rglob("*_predictions.json")):
        if not _has_queries(path, rows):
            for row in read_predictions(path, str(path), evidence):
                rows = _merge_predictions(rows, row)
    evidence.evaluations.extend(rows)


def summary_rows(data: Any, source: str, evidence: Evidence) -> list[EvaluationRecord]:
    """The evaluations of a parsed summary: a list of results, or one result."""
    if isinstance(data, dict) and "task" in data:
        data = [data]
    if data is not None and not isinstance(data, list):
        evidence.error(source, f"holds {type(data).__name__} instead of a list of results: left out.")
    rows: list[EvaluationRecord] = []
    for position, entry in enumerate(data if isinstance(data, list) else [], start=1):
        absent = [key for key in ("task", "model", "mode") if not isinstance(entry, dict) or not entry.get(key)]
        if absent:
            evidence.error(source, f"entry {position} has no {', '.join(absent)}: left out.")
            continue
        rows.append(_summary_row(entry, source, f"{source} entry {position}", evidence))
    return rows


def _read_summary(folder: Path, evidence: Evidence) -> list[EvaluationRecord]:
    path = folder / "summary.json"
    if not path.exists():
        evidence.error(
            str(path), "is missing (the run did not finish?): its rows are rebuilt from the per-query files."
        )
        return []
    return summary_rows(load_json(path, str(path), evidence), str(path), evidence)


def _same_result(ours: EvaluationRecord, other: EvaluationRecord) -> bool:
    """MTEB's folders name a model by organisation and fingerprint, so equal scores identify it where names differ."""
    if (plain(ours.task), ours.mode) != (plain(other.task), other.mode):
        return False
    x, y = ours.ndcg_at_10, other.ndcg_at_10
    return plain(other.model) in plain(ours.model) or (x is not None and y is not None and abs(x - y) < 1e-4)


def _written_name(row: EvaluationRecord) -> str:
    return f"{row.model}@{row.mark}" if row.mark else row.model


def _summary_row(entry: dict[str, Any], source: str, where: str, evidence: Evidence) -> EvaluationRecord:
    bounds = entry.get("interval")
    numeric = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(value, int | float) for value in bounds)
    if bounds is not None and not numeric:
        evidence.warn(where, f"interval is {bounds!r} instead of two numbers: left out.")
    reals: dict[str, Any] = {
        key: number(entry, key, where, evidence)
        for key in ("ndcg_at_10", "recall_at_10", "reasoning_tokens_per_query", "forced_share", "seconds")
    }
    if reals["ndcg_at_10"] is None:
        evidence.warn(where, f"{entry['task']} ({entry['model']}, {entry['mode']}) has no nDCG@10.")
    model, mark = split_mark(str(entry["model"]))
    return EvaluationRecord(
        task=str(entry["task"]),
        model=model,
        mark=mark,
        mode=str(entry["mode"]),
        source=source,
        origin="summary",
        split=string(entry, "split") or "test",
        subset=None if entry.get("subset") == "default" else string(entry, "subset"),
        hops=whole(entry, "hops", where, evidence),
        max_reasoning_tokens=whole(entry, "max_reasoning_tokens", where, evidence),
        seed=whole(entry, "seed", where, evidence) or 0,
        interval=(float(bounds[0]), float(bounds[1])) if bounds is not None and numeric else None,
        queries=whole(entry, "queries", where, evidence),
        documents=whole(entry, "documents", where, evidence),
        queries_per_second=number(entry, "queries_per_second", where, evidence),
        documents_per_second=number(entry, "documents_per_second", where, evidence),
        commit=string(entry, "commit"),
        command=string(entry, "command"),
        fingerprint=string(entry, "fingerprint"),
        dataset_revision=string(entry, "dataset_revision"),
        queries_file=string(entry, "queries_file"),
        **reals,
    )


def _attach_queries(
    rows: list[EvaluationRecord], files: list[Path], folder: Path, evidence: Evidence
) -> list[EvaluationRecord]:
    """Each row with its queries, and a row rebuilt for every per-query file that no row of the summary names."""
    matched: dict[int, dict[str, QueryOutcome]] = {}
    rebuilt: list[EvaluationRecord] = []
    for path in files:
        place = str(path)
        names = {f"queries/{path.name}", path.name}
        owners = [i for i, row in enumerate(rows) if row.queries_file in names] or [
            i
            for i, row in enumerate(rows)
            if plain(path.stem) == plain(f"{row.task}__{_written_name(row)}__{row.mode}")
        ]
        name = split_name(path)
        if not owners and name is None:
            evidence.warn(
                place, "is not named TASK__MODEL__MODE.jsonl, so it cannot be told what it measures: left out."
            )
            continue
        task, model, mode = (rows[owners[0]].task, "", "") if owners or name is None else name
        outcomes = read_outcomes(path, place, task, evidence)
        if not outcomes:
            evidence.error(place, "holds no readable query.")
            continue
        if not owners:
            evidence.warn(place, "has no entry in summary.json: its row is computed from its queries.")
            rebuilt.append(
                EvaluationRecord(
                    task=task,
                    model=model,
                    mode=mode,
                    source=place,
                    origin="queries",
                    outcomes=outcomes,
                    **means(outcomes),
                )
            )
        for index in owners:
            matched[index] = outcomes
    attached = [_with_outcomes(row, matched.get(index), evidence) for index, row in enumerate(rows)]
    bare = sorted({f"{row.task} ({row.model}, {row.mode})" for row in attached if row.outcomes is None})
    if bare:
        evidence.warn(
            str(folder), f"no per-query file for {', '.join(bare)}: no significance test and no explorer for it."
        )
    return attached + rebuilt


def _with_outcomes(
    row: EvaluationRecord, outcomes: dict[str, QueryOutcome] | None, evidence: Evidence
) -> EvaluationRecord:
    if outcomes is None:
        return row
    if row.hops is not None:
        outcomes = {key: item for key, item in outcomes.items() if item.hops == row.hops}
        if not outcomes:
            evidence.warn(row.source, f"no query of {row.task} ({row.mode}) has {row.hops} hops, though a row says so.")
            return row
    measured = means(outcomes)
    theirs, ours = row.ndcg_at_10, measured["ndcg_at_10"]
    if theirs is not None and ours is not None and abs(theirs - ours) > _AGREE:
        evidence.warn(
            row.source,
            f"{row.task_label} ({row.model}, {row.mode}): the summary says nDCG@10 {theirs:.4f}, the mean of its "
            f"{len(outcomes)} queries is {ours:.4f}. Both cannot be right; the summary's is shown.",
        )
    if row.queries is not None and row.queries != len(outcomes):
        evidence.warn(
            row.source,
            f"{row.task_label} ({row.model}, {row.mode}): the summary counts {row.queries} queries, "
            f"the per-query file holds {len(outcomes)}.",
        )
    fill = {key: value for key, value in measured.items() if getattr(row, key) is None}
    return replace(row, outcomes=outcomes, **fill)


def _has_queries(path: Path, rows: Sequence[EvaluationRecord]) -> bool:
    """Whether the rows of a prediction file have per-query results already, which say more. Its folders are MODEL/MODE."""
    task = plain(path.name.removesuffix("_predictions.json"))
    mine = [row for row in rows if plain(row.task) == task]
    named = [row for row in mine if (plain(_written_name(row)), row.mode) == (plain(path.parts[-3]), path.parts[-2])]
    return bool(named or mine) and all(row.outcomes for row in named or mine)


def _merge_predictions(rows: list[EvaluationRecord], ranking: EvaluationRecord) -> list[EvaluationRecord]:
    """The ranking joins the row it belongs to (same task and mode, one candidate), or stands as a row of its own."""
    same = [
        i
        for i, row in enumerate(rows)
        if row.outcomes is None and row.hops is None and (row.task, row.mode) == (ranking.task, ranking.mode)
    ]
    named = [i for i in same if plain(_written_name(rows[i])) in plain(f"{ranking.model} {ranking.source}")]
    owner = (named or same)[0] if len(named) == 1 or (not named and len(same) == 1) else None
    if owner is None:
        return [*rows, ranking]
    return [replace(row, outcomes=ranking.outcomes) if i == owner else row for i, row in enumerate(rows)]
