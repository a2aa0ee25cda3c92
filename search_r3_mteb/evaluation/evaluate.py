"""Evaluation through MTEB: models times tasks, resumable, with everything that a report needs on disk.

    OUTPUT/summary.json                      one row per task, split, model and mode (and hop count)
    OUTPUT/queries/TASK__MODEL__MODE.jsonl   per query: reasoning, scores, top documents, judged documents
    OUTPUT/predictions/MODEL/MODE/...        MTEB's prediction files, the first 100 documents of each query
    OUTPUT/mteb/results/...                  MTEB's own result files

A unit is one model in one mode on one task. Its files are written when it is done, its row last; a run that was killed
and is started again skips complete units, and inside a unit the encoder's store returns every chunk that was computed.
A row holds size and sha256 of its unit's files: a unit with a damaged file or row is named and done again, and so is
one of a version that wrote no checksums. Several evaluations may share an output: what they read, change and write
there is done under a lock, which also decides the names of models that two of them call the same.
"""

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import clean, temporary_folder, write_json, write_jsonl
from search_r3_mteb.checksums import described
from search_r3_mteb.evaluation.given_file import read_given
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.queries import CUTOFF, as_scored, query_records
from search_r3_mteb.evaluation.readiness import check_data, check_models, load_task
from search_r3_mteb.evaluation.recording import RecordedEncoder, RecordedSearch, SplitRecord
from search_r3_mteb.evaluation.summary import (
    SummaryRow,
    by_identity,
    has_checksum,
    hop_rows,
    intact_rows,
    per_text,
    quality,
    rate,
    read_summary,
    replace_rows,
    with_checksum,
)
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.evaluation.systems import (
    GIVEN,
    MODE_CHOICES,
    UNSURE,
    ModeChoice,
    ModelSpec,
    System,
    names_apart,
    open_systems,
)
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_tasks
from search_r3_mteb.evaluation.unit_files import (
    existing,
    keep_predictions,
    keep_results,
    predictions_file,
    queries_file,
    recorded_again,
    result_files,
    set_aside_damaged,
)
from search_r3_mteb.json_files import read_object
from search_r3_mteb.locks import locked

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

logger = logging.getLogger(__name__)
SUMMARY_FILE = "summary.json"
_AGREE = 1e-4


def evaluate(  # noqa: PLR0913  what a run is made of
    models: Sequence[ModelSpec],
    tasks: Sequence[TaskSpec],
    mode: ModeChoice = "both",
    output: Path | str = "runs/evaluate",
    *,
    split: str | None = None,
    cache_folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    reasoning: Path | str | None = None,
    dims: Sequence[int] = (),
    command: str | None = None,
) -> list[SummaryRow]:
    """Evaluate every model on every task; returns the rows of these models and tasks, in order.

    `models`: a Search-R3 checkpoint (bundled name, folder, LoRA folder, hub id, or one in memory), an ordinary
    sentence-transformers folder, or "bm25"; NAME=PATH names a folder, and folders of one name are told apart by the
    parts of their paths that differ. An encoder in memory is evaluated in its own
    mode. `tasks`: see `resolve_tasks`. `cache_folder` is the encoder's store, OUTPUT/store unless given. `settings` are
    those of SearchR3Encoder. `reasoning` is a file of reasonings by query id (`given_file`): mode "given", which reads
    them, then takes the place of "reason". `dims` are further sizes of Search-R3 checkpoints: the first
    dimensions of the same vectors, as models of their own ("NAME-64d"). `command` is noted in the rows. Raises
    ValueError and FileNotFoundError, before anything long starts, for models, tasks and modes that do not exist, and
    for a query without a reasoning.
    """
    if mode not in MODE_CHOICES:
        raise ValueError(f"mode must be one of {', '.join(MODE_CHOICES)}, got {mode!r}.")
    if not models or not tasks:
        raise ValueError(
            f"Nothing to evaluate: {len(models)} models and {len(tasks)} tasks. Name at least one of each."
        )
    output = Path(output)
    given = None if reasoning is None else read_given(reasoning)
    check_models(models)
    check_settings(models, settings or {}, mode, given, dims)
    resolved = resolve_tasks(tasks, split)
    check_data(resolved, output)
    rows: list[SummaryRow] = []
    store = output / "store" if cache_folder is None else cache_folder
    clean(output, *(path for name in ("queries", "predictions", "mteb") for path in _folders(output / name)))
    for spec, label in zip(models, names_apart(models), strict=True):
        for system in open_systems(spec, mode, settings or {}, store, given, dims, label):
            for task in resolved:
                rows.extend(evaluate_unit(system, task, output, command))
    return rows


def _folders(folder: Path) -> list[Path]:
    """A folder and those below it."""
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())]


def evaluate_unit(system: System, task: "AbsTaskRetrieval", output: Path, command: str | None) -> list[SummaryRow]:
    """The rows of one model in one mode on one task, read from disk if they are complete."""
    what = f"{system.label} ({system.mode}) on {task.metadata.name}"
    with locked(output):
        done = _complete_rows(system, task, output)
    if done is not None:
        logger.info("%s: complete in %s, not run again", what, output)
        return done
    logger.info("%s: running", what)
    load_task(task)
    _prepare(system, task)
    with temporary_folder(Path(tempfile.gettempdir()) / "search-r3", mode=0o700) as folder:
        rankings, scores, taken = _run(system, task, folder)
        measured: dict[str, tuple[SummaryRow, dict[str, Any]]] = {}
        for split in task.eval_splits:
            parts = {subset: splits[split] for subset, splits in rankings.items() if split in splits}
            records = query_records(task, split, parts, taken[split].thoughts, reasoned=system.mode != "direct")
            row = _row(system, task, split, quality(records), taken[split], command)
            _check_against_mteb(row, scores[split])
            logger.info("%s, %s: nDCG@10 %.4f in %.1f s", what, split, row["ndcg_at_10"], row["seconds"])
            measured[split] = row, records
        with locked(output):
            rows = _keep_unit(system, task, output, measured, rankings, folder / "mteb")
    task.unload_data()
    return rows


def _prepare(system: System, task: "AbsTaskRetrieval") -> None:
    """Tell the system what it needs to know of the loaded task; ValueError for a query without a given reasoning."""
    if isinstance(system.model, RecordedEncoder) and system.model.given is not None:
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        system.model.given.check(task)
    if system.mode == UNSURE and isinstance(system.model, RecordedSearch):
        system.model.search_model.as_scored = partial(as_scored, task)


def _keep_unit(
    system: System,
    task: "AbsTaskRetrieval",
    output: Path,
    measured: Mapping[str, tuple[SummaryRow, dict[str, Any]]],
    rankings: Mapping[str, Mapping[str, Any]],
    results: Path,
) -> list[SummaryRow]:
    """Write a unit's files and then its rows, under the lock of `output`; the rows."""
    path = output / SUMMARY_FILE
    summary = intact_rows(read_summary(path), path)
    label = _label(system, task.metadata.name, summary)
    predictions = predictions_file(label, system, task, summary)
    shared = [predictions, *result_files(results)]
    set_aside_damaged(output, summary, existing(output, shared))
    merged = existing(output, shared)  # what other units have in the others is lost: they are done again
    keep_results(results, output)
    keep_predictions(output / predictions, rankings, system)
    new: list[SummaryRow] = []
    for split, (row, records) in measured.items():
        file = queries_file(task, split, label, system.mode, [*summary, *new])
        write_jsonl(output / file, [each for part in records.values() for each in part])
        row = {**row, "model": label, "queries_file": file.as_posix()}
        files = {name.as_posix(): described(output / name) for name in sorted([file, *shared])}
        new.extend(with_checksum([{**row, "files": files}, *hop_rows(row, records)]))
    others = [
        each
        for rows in by_identity(summary).values()
        for each in (recorded_again(rows, output, merged) if has_checksum(rows[0]) else rows)
    ]
    write_json(path, replace_rows(others, new))
    return new


def _run(
    system: System, task: "AbsTaskRetrieval", folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], dict[str, SplitRecord]]:
    """MTEB's rankings (by subset, then split), its scores and what was recorded (by split).

    MTEB writes into `folder`, since its own writes are not atomic; it always computes, since the cache here is the
    encoder's store, which knows every setting.
    """
    import mteb

    system.model.records = {}
    bar = sys.stderr.isatty()
    result = mteb.evaluate(
        system.model,
        task,
        cache=mteb.ResultCache(folder / "mteb"),
        overwrite_strategy="always",
        prediction_folder=folder / "predictions",
        co2_tracker=False,
        show_progress_bar=bar,
        encode_kwargs={"batch_size": 32, "show_progress_bar": bar},
    )
    predictions = read_object(folder / "predictions" / task.prediction_file_name)
    rankings = {subset: splits for subset, splits in predictions.items() if subset != "mteb_model_meta"}
    return rankings, result.task_results[0].scores, system.model.records


def _row(
    system: System,
    task: "AbsTaskRetrieval",
    split: str,
    measured: SummaryRow,
    record: SplitRecord,
    command: str | None,
) -> SummaryRow:
    documents = sum(len(subsets[split]["corpus"]) for subsets in task.dataset.values() if split in subsets)
    row = {
        "task": task.metadata.name,
        "split": split,
        "model": system.label,
        "mode": system.mode,
        "ndcg_at_10": measured["ndcg_at_10"],
        "recall_at_10": measured["recall_at_10"],
        "queries": measured["queries"],
        "documents": documents,
        "reasoning_tokens_per_query": measured["reasoning_tokens_per_query"],
        "forced_share": measured["forced_share"],
        "seconds": round(record.query_seconds + record.document_seconds, 3),
        "seed": system.seed,
        "commit": commit(),
        "milliseconds_per_query": per_text(record.query_seconds, record.queries),
        "queries_per_second": rate(record.queries, record.query_seconds),
        "documents_per_second": rate(record.documents, record.document_seconds),
        "fingerprint": system.fingerprint,
        "dataset_revision": task.metadata.revision,
    }
    if getattr(task, "unreachable", 0):
        row["unreachable_judgements"] = task.unreachable
    if "interval" in measured:
        row["interval"] = measured["interval"]
    if system.mode != "direct":
        row["max_reasoning_tokens"] = system.settings.get("max_reasoning_tokens")
    if system.mode == UNSURE:
        spoken = [each for thoughts in record.thoughts.values() for each in thoughts]
        row["abstain_margin"] = system.settings["abstain_margin"]
        row["reasoned_share"] = round(sum(text is not None for text, *_ in spoken) / max(1, len(spoken)), 6)
    if "anchor" in system.settings and (system.mode != "direct" or system.settings["anchor"] is not None):
        row["anchor"] = system.settings["anchor"]
    if "truncate_dim" in system.settings:
        row["dim"] = system.settings["truncate_dim"]
    row |= {key: system.settings[key] for key in ("method", "samples") if key in system.settings}
    if system.encoder_fingerprint is not None:
        row["encoder_fingerprint"] = system.encoder_fingerprint
    if system.mode == GIVEN:
        row |= {key: system.settings[key] for key in ("reasoning_file", "reasoning")}
    if command is not None:
        row["command"] = command
    return row


def _check_against_mteb(row: SummaryRow, scores: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuntimeError if our mean over queries is not MTEB's score."""
    theirs = sum(float(subset["ndcg_at_10"]) for subset in scores) / len(scores)
    if abs(theirs - row["ndcg_at_10"]) > _AGREE:
        raise RuntimeError(
            f"{row['task']}: MTEB's nDCG@{CUTOFF} is {theirs:.5f}, the mean over its rankings {row['ndcg_at_10']:.5f}. "
            "Both come from one run, so this is a bug: please report it with the output of `search-r3 doctor`."
        )


def _label(system: System, task: str, rows: Sequence[SummaryRow]) -> str:
    """The model's name, with the start of its fingerprint if another model already has that name in this folder.

    Otherwise a second checkpoint of the same name, or a second budget, would silently replace the first one.
    """
    others = {
        row.get("fingerprint")
        for row in rows
        if (row.get("task"), row.get("model"), row.get("mode")) == (task, system.label, system.mode)
    }
    taken = bool(others) and system.fingerprint not in others
    return f"{system.label}@{system.fingerprint[:8]}" if taken else system.label


def _complete_rows(system: System, task: "AbsTaskRetrieval", output: Path) -> list[SummaryRow] | None:
    """The rows of this unit if it was finished earlier on the same data and is intact, else None."""
    path = output / SUMMARY_FILE
    rows = intact_rows(read_summary(path), path)
    wanted = {
        "task": task.metadata.name,
        "model": _label(system, task.metadata.name, rows),
        "mode": system.mode,
        "fingerprint": system.fingerprint,
        "dataset_revision": task.metadata.revision,
    }
    found = [
        row
        for row in rows
        if all(row.get(key) == value for key, value in wanted.items()) and row.get("split") in task.eval_splits
    ]
    whole = [row for row in found if "hops" not in row]
    if {row["split"] for row in whole} != set(task.eval_splits):
        return None
    if not all(has_checksum(row) for row in whole):
        logger.warning("%s: %s was written without checksums, and is done again.", path, wanted["task"])
        return None
    names = [Path(name) for row in whole for name in row["files"]]
    return None if set_aside_damaged(output, whole, names) else found
