"""A folder written by `search-r3 evaluate`: summary, per-query files, MTEB results and predictions, reconciled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search_r3_mteb.report.mteb_results import means, read_predictions, read_result, split_mark
from search_r3_mteb.report.query_files import plain, read_outcomes, split_name
from search_r3_mteb.report.records import EvaluationRecord, Evidence, QueryOutcome
from search_r3_mteb.report.run_file import RunFile, string

NOT_RESULTS = frozenset({"model_meta.json", "manifest.json", "config.json", "tokenizer.json", "search_r3.json"})
_NUMBERS = (
    *("ndcg_at_10", "recall_at_10", "reasoning_tokens_per_query", "forced_share", "seconds"),
    *("milliseconds_per_query", "queries_per_second", "documents_per_second", "anchor"),
)
_WHOLE_NUMBERS = ("hops", "max_reasoning_tokens", "samples", "seed", "queries", "documents")
_TEXTS = (
    "split",
    "subset",
    "commit",
    "command",
    "fingerprint",
    "dataset_revision",
    "queries_file",
    "method",
    "encoder_fingerprint",
)
_MOST_DISAGREEMENT = 5e-3  # a summary and the mean of its queries may differ by rounding, not by more


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
        for row in read_result(RunFile(path, evidence)):
            if not any(_same_result(row, other) for other in rows if other.origin != "mteb"):
                name = f"{row.task} ({row.model}, {row.mode})"
                evidence.warn(row.source, f"{name} is not in the run's summary.json: shown from MTEB's own file.")
                rows.append(row)
    for path in sorted((folder / "predictions").rglob("*_predictions.json")):
        if not _has_queries(path, rows):
            for row in read_predictions(RunFile(path, evidence)):
                rows = _merge_predictions(rows, row)
    evidence.evaluations.extend(rows)


def summary_rows(data: Any, file: RunFile) -> list[EvaluationRecord]:
    """The evaluations of a parsed summary: a list of results, or one result."""
    if isinstance(data, dict) and "task" in data:
        data = [data]
    if data is not None and not isinstance(data, list):
        file.error(f"holds {type(data).__name__} instead of a list of results: left out.")
    rows: list[EvaluationRecord] = []
    for position, entry in enumerate(data if isinstance(data, list) else [], start=1):
        absent = [key for key in ("task", "model", "mode") if not isinstance(entry, dict) or not entry.get(key)]
        if absent:
            file.error(f"entry {position} has no {', '.join(absent)}: left out.")
            continue
        rows.append(_summary_row(entry, replace(file, entry=position)))
    return rows


def _read_summary(folder: Path, evidence: Evidence) -> list[EvaluationRecord]:
    file = RunFile(folder / "summary.json", evidence)
    if file.path.exists():
        return summary_rows(file.json(), file)
    file.error("is missing (the run did not finish?): its rows are rebuilt from the per-query files.")
    return []


def _same_result(ours: EvaluationRecord, other: EvaluationRecord) -> bool:
    """Whether MTEB's result is `other`: its folders name models by other names, so equal scores count as well."""
    if (plain(ours.task), ours.mode) != (plain(other.task), other.mode):
        return False
    x, y = ours.ndcg_at_10, other.ndcg_at_10
    return plain(other.model) in plain(ours.model) or (x is not None and y is not None and abs(x - y) < 1e-4)


def _written_name(row: EvaluationRecord) -> str:
    return f"{row.model}@{row.mark}" if row.mark else row.model


def _summary_row(entry: dict[str, Any], file: RunFile) -> EvaluationRecord:
    bounds = entry.get("interval")
    numeric = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(value, int | float) for value in bounds)
    if bounds is not None and not numeric:
        file.warn(f"interval is {bounds!r} instead of two numbers: left out.")
    values: dict[str, Any] = {key: file.number(entry, key) for key in _NUMBERS}
    values |= {key: file.whole(entry, key) for key in _WHOLE_NUMBERS}
    values |= {key: string(entry, key) for key in _TEXTS}
    if values["ndcg_at_10"] is None:
        file.warn(f"{entry['task']} ({entry['model']}, {entry['mode']}) has no nDCG@10.")
    values["seed"] = values["seed"] or 0
    values["split"] = values["split"] or "test"
    values["subset"] = None if values["subset"] == "default" else values["subset"]
    if bounds is not None and numeric:
        values["interval"] = (float(bounds[0]), float(bounds[1]))
    model, mark = split_mark(str(entry["model"]))
    task, mode = str(entry["task"]), str(entry["mode"])
    return EvaluationRecord(task, model, mode, str(file.path), "summary", mark=mark, **values)


def _attach_queries(
    rows: list[EvaluationRecord], files: list[Path], folder: Path, evidence: Evidence
) -> list[EvaluationRecord]:
    """Each row with its queries, and a row rebuilt for every per-query file that no row of the summary names."""
    matched: dict[int, dict[str, QueryOutcome]] = {}
    rebuilt: list[EvaluationRecord] = []
    for path in files:
        file = RunFile(path, evidence)
        names = {f"queries/{path.name}", path.name}
        owners = [i for i, row in enumerate(rows) if row.queries_file in names] or [
            i
            for i, row in enumerate(rows)
            if plain(path.stem) == plain(f"{row.task}__{_written_name(row)}__{row.mode}")
        ]
        name = split_name(path)
        if not owners and name is None:
            file.warn("is not named TASK__MODEL__MODE.jsonl, so nothing says what it measures: left out.")
            continue
        task, model, mode = (rows[owners[0]].task, "", "") if owners or name is None else name
        outcomes = read_outcomes(file, task)
        if not outcomes:
            file.error("holds no readable query.")
            continue
        if not owners:
            file.warn("has no entry in summary.json: its row is computed from its queries.")
            row = EvaluationRecord(task, model, mode, file.where, "queries", outcomes=outcomes, **means(outcomes))
            rebuilt.append(row)
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
    if theirs is not None and ours is not None and abs(theirs - ours) > _MOST_DISAGREEMENT:
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
    """Whether the rows of a prediction file, MODEL/MODE/TASK, have per-query results already, which say more."""
    task = plain(path.name.removesuffix("_predictions.json"))
    mine = [row for row in rows if plain(row.task) == task]
    named = [row for row in mine if (plain(_written_name(row)), row.mode) == (plain(path.parts[-3]), path.parts[-2])]
    return bool(named or mine) and all(row.outcomes for row in named or mine)


def _merge_predictions(rows: list[EvaluationRecord], ranking: EvaluationRecord) -> list[EvaluationRecord]:
    """The rows with the ranking in the one that lacks it (same task and mode), or as a row of its own."""
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
