"""Reading of everything a report is made of: run folders, summaries, MTEB results, predictions and training logs.

Every path may be one of those files or a folder that holds any number of them. Nothing here raises over the content of
a file: what is missing, half written, repeated or not a number becomes a message in the returned `Evidence`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from search_r3_mteb.report.mteb_results import judge, means, read_predictions, read_result
from search_r3_mteb.report.records import EvaluationRecord, Evidence, QueryOutcome
from search_r3_mteb.report.repeats import settle_repeats
from search_r3_mteb.report.run_file import RunFile
from search_r3_mteb.report.run_folder import NOT_RESULTS, is_run_folder, read_run_folder, summary_rows
from search_r3_mteb.report.training_logs import read_log

_SKIPPED_FOLDERS = {"checkpoints", "cache", "store", "__pycache__"}
_PARTS_OF_A_RUN = {"queries", "predictions", "mteb"}


def read_runs(paths: Sequence[Path]) -> Evidence:
    """All evaluations, logs and messages found under the paths.

    Raises FileNotFoundError for a path that does not exist, and ValueError for no path at all.
    """
    if not paths:
        raise ValueError("report got no run: name at least one run folder, summary.json, MTEB folder or log.jsonl.")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"report: no such file or folder: {', '.join(missing)}. Check the path of each run.")
    evidence = Evidence()
    for path in dict.fromkeys(paths):
        before = evidence.size
        _read_path(path, evidence)
        if evidence.size == before:
            kinds = "summary.json, MTEB results, prediction files or log.jsonl"
            evidence.error(str(path), f"holds no {kinds}.")
    evidence.evaluations = settle_repeats(_judge_predictions(evidence), evidence)
    _name_missing_tasks(evidence)
    evidence.name_not_numbers()
    return evidence


def _read_path(path: Path, evidence: Evidence) -> None:
    if path.is_file():
        _read_file(path, evidence, asked_for=True)
        return
    for folder, names in _walk(path):
        if is_run_folder(folder):
            read_run_folder(folder, evidence)
        for name in names:
            if name != "summary.json" and name not in NOT_RESULTS:
                _read_file(folder / name, evidence)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with their file names in a fixed order, without the folders that are read together with their run."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        skipped = _SKIPPED_FOLDERS | (_PARTS_OF_A_RUN if is_run_folder(folder) else set())
        folders[:] = sorted(sub for sub in folders if sub not in skipped and not sub.startswith("."))
        yield folder, sorted(files)


def _read_file(path: Path, evidence: Evidence, *, asked_for: bool = False) -> None:
    """Read a file of any known kind. JSON of other kinds is passed over, unless the user named the file."""
    file = RunFile(path, evidence)
    if path.name == "summary.json":
        read_run_folder(path.parent, evidence)
    elif path.name == "log.jsonl" or (path.suffix == ".jsonl" and asked_for):
        log = read_log(file)
        if log is not None:
            evidence.logs.append(log)
    elif path.name.endswith("_predictions.json"):
        evidence.evaluations.extend(read_predictions(file))
    elif path.suffix == ".json" and path.name.startswith("diagnose"):
        data = file.json()
        if isinstance(data, dict):
            evidence.diagnoses.append({**data, "source": file.where})
    elif path.suffix == ".json" and asked_for and not _in_mteb_folder(path):
        data = file.json()
        if isinstance(data, dict) and "scores" in data:
            evidence.evaluations.extend(read_result(file))
        else:
            evidence.evaluations.extend(summary_rows(data, file))
    elif path.suffix == ".json" and _in_mteb_folder(path):
        evidence.evaluations.extend(read_result(file))


def _in_mteb_folder(path: Path) -> bool:
    """Whether MTEB's model_meta.json stands beside the file, or above it, as for experiments."""
    return any((folder / "model_meta.json").exists() for folder in (path.parent, path.parent.parent.parent))


def _judge_predictions(evidence: Evidence) -> list[EvaluationRecord]:
    """The evaluations, rankings scored with the judgements of other runs; a message where there are none."""
    known: dict[tuple[str, str], dict[str, QueryOutcome]] = {}
    for row in evidence.evaluations:
        if row.outcomes and row.hops is None:
            judged = {key: item for key, item in row.outcomes.items() if item.judged}
            known.setdefault((row.task, row.split), {}).update(judged)
    result = []
    for row in evidence.evaluations:
        found = (row.outcomes or {}).values()
        if row.outcomes and not any(item.judged or item.ndcg_at_10 is not None for item in found):
            outcomes = judge(row.outcomes, known.get((row.task, row.split), {}))
            row = replace(row, outcomes=outcomes)
            if row.origin == "predictions":
                row = replace(row, **means(outcomes))
            if not any(item.judged for item in outcomes.values()):
                problem = f"no run holds judgements for {row.task}"
                evidence.warn(row.source, f"{problem}: its rankings are shown without quality.")
        result.append(row)
    return result


def _name_missing_tasks(evidence: Evidence) -> None:
    """Add a note for each model and mode without a task that another one has."""
    rows = [row for row in evidence.evaluations if row.hops is None]
    tasks = {(row.task, row.split) for row in rows}
    for label, mode in sorted({(row.label, row.mode) for row in rows}):
        absent = tasks - {(row.task, row.split) for row in rows if (row.label, row.mode) == (label, mode)}
        if absent:
            names = ", ".join(sorted(task if split == "test" else f"{task} {split}" for task, split in absent))
            evidence.note(f"{label} ({mode})", f"was not evaluated on {names}: missing there, not zero.")
