"""Evaluation through MTEB: models times tasks, resumable, with everything that a report needs on disk.

    OUTPUT/summary.json                      one row per task, split, model and mode (and hop count)
    OUTPUT/queries/TASK__MODEL__MODE.jsonl   per query: reasoning, scores, top documents, judged documents
    OUTPUT/predictions/MODEL/MODE/...        MTEB's prediction files, the first 100 documents of each query
    OUTPUT/mteb/results/...                  MTEB's own result files

A unit is one model in one mode on one task. Its files are written when it is done, its row last; a run that was killed
and is started again skips complete units, and inside a unit the encoder's store returns every chunk that was computed.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import write_json, write_jsonl, write_text
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.queries import CUTOFF, best, query_records
from search_r3_mteb.evaluation.recording import SplitRecord
from search_r3_mteb.evaluation.summary import SummaryRow, hop_rows, quality, rate, read_summary, replace_rows
from search_r3_mteb.evaluation.systems import MODE_CHOICES, ModeChoice, ModelSpec, System, check_settings, open_systems
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_task
from search_r3_mteb.json_files import read_object

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

logger = logging.getLogger(__name__)
_KEPT = 100  # documents per query in a prediction file: MTEB's 1000 would take some 40 MB for one hopworld run
_REMOVE = "Name another output folder, or remove the file."
_AGREE = 1e-4


def evaluate(
    models: Sequence[ModelSpec],
    tasks: Sequence[TaskSpec],
    mode: ModeChoice = "both",
    output: Path | str = "runs/evaluate",
    *,
    split: str | None = None,
    cache_folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> list[SummaryRow]:
    """Evaluate every model on every task; returns the rows of these models and tasks, in order.

    `models`: a Search-R3 checkpoint (bundled name, folder, LoRA folder, hub id, or one in memory), an ordinary
    sentence-transformers folder, or "bm25"; NAME=PATH names a folder. An encoder in memory is evaluated in its own
    mode. `tasks`: see `resolve_task`. `cache_folder` is the encoder's store, OUTPUT/store unless given. `settings` are
    those of SearchR3Encoder. `command` is noted in the rows. Raises ValueError and FileNotFoundError, before anything
    long starts, for models, tasks and modes that do not exist.
    """
    if mode not in MODE_CHOICES:
        raise ValueError(f"mode must be one of {', '.join(MODE_CHOICES)}, got {mode!r}.")
    if not models or not tasks:
        raise ValueError(
            f"Nothing to evaluate: {len(models)} models and {len(tasks)} tasks. Name at least one of each."
        )
    output = Path(output)
    check_settings(models, settings or {})
    resolved = [resolve_task(task, split) for task in tasks]
    rows: list[SummaryRow] = []
    store = output / "store" if cache_folder is None else cache_folder
    for spec in models:
        for system in open_systems(spec, mode, settings or {}, store):
            for task in resolved:
                rows.extend(_evaluate_unit(system, task, output, command))
    return rows


def _evaluate_unit(system: System, task: "AbsTaskRetrieval", output: Path, command: str | None) -> list[SummaryRow]:
    """The rows of one model in one mode on one task, read from disk if they are complete."""
    path = output / "summary.json"
    label = _label(system, task.metadata.name, read_summary(path))
    what = f"{label} ({system.mode}) on {task.metadata.name}"
    done = _complete_rows(system, label, task, output)
    if done is not None:
        logger.info("%s: complete in %s, not run again", what, output)
        return done
    logger.info("%s: running", what)
    task.load_data()
    with tempfile.TemporaryDirectory(prefix="search-r3-") as folder:
        rankings, scores, taken = _run(system, task, Path(folder))
        rows: list[SummaryRow] = []
        for split in task.eval_splits:
            parts = {subset: splits[split] for subset, splits in rankings.items() if split in splits}
            records = query_records(task, split, parts, taken[split].thoughts, reasoned=system.mode == "reason")
            row = _row(system, label, task, split, quality(records), taken[split], command)
            _check_against_mteb(row, scores[split])
            file = _queries_file(task, split, label, system.mode, read_summary(path))
            write_jsonl(output / file, [each for part in records.values() for each in part])
            row["queries_file"] = file.as_posix()
            logger.info("%s, %s: nDCG@10 %.4f in %.1f s", what, split, row["ndcg_at_10"], row["seconds"])
            rows.extend([row, *hop_rows(row, records)])
        _keep_predictions(_predictions_file(output, label, system, task), rankings, system)
        _keep_results(Path(folder) / "mteb", output / "mteb")
    task.unload_data()
    write_json(path, replace_rows(read_summary(path), rows))
    return rows


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
    label: str,
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
        "model": label,
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
        "queries_per_second": rate(record.queries, record.query_seconds),
        "documents_per_second": rate(record.documents, record.document_seconds),
        "fingerprint": system.fingerprint,
        "dataset_revision": task.metadata.revision,
    }
    if getattr(task, "unreachable", 0):
        row["unreachable_judgements"] = task.unreachable
    if "interval" in measured:
        row["interval"] = measured["interval"]
    if system.mode == "reason":
        row["max_reasoning_tokens"] = system.settings.get("max_reasoning_tokens")
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


def _complete_rows(system: System, label: str, task: "AbsTaskRetrieval", output: Path) -> list[SummaryRow] | None:
    """The rows of this unit if it was finished earlier on the same data, else None."""
    wanted = {
        "task": task.metadata.name,
        "model": label,
        "mode": system.mode,
        "fingerprint": system.fingerprint,
        "dataset_revision": task.metadata.revision,
    }
    found = [
        row
        for row in read_summary(output / "summary.json")
        if all(row.get(key) == value for key, value in wanted.items()) and row.get("split") in task.eval_splits
    ]
    files = [output / row["queries_file"] for row in found]
    complete = (
        {row["split"] for row in found} == set(task.eval_splits)
        and all(file.exists() for file in files)
        and _predictions_file(output, label, system, task).exists()
    )
    return found if complete else None


def _queries_file(task: "AbsTaskRetrieval", split: str, label: str, mode: str, rows: Sequence[SummaryRow]) -> Path:
    """queries/TASK__MODEL__MODE.jsonl, with TASK.SPLIT for a further split of the same task."""
    name = task.metadata.name
    plain = Path("queries") / f"{name}__{_file_name(label)}__{mode}.jsonl"
    splits = [*task.eval_splits]
    taken = any(row.get("queries_file") == plain.as_posix() and row.get("split") != split for row in rows)
    if taken or split != splits[0]:
        return plain.with_name(f"{name}.{split}__{_file_name(label)}__{mode}.jsonl")
    return plain


def _predictions_file(output: Path, label: str, system: System, task: "AbsTaskRetrieval") -> Path:
    return output / "predictions" / _file_name(label) / system.mode / task.prediction_file_name


def _file_name(label: str) -> str:
    return label.replace("/", "__")


def _keep_predictions(path: Path, rankings: Mapping[str, Mapping[str, Any]], system: System) -> None:
    """Write MTEB's prediction file, keeping the splits that an earlier run of the same model left there."""
    meta = system.model.mteb_model_meta
    kept: dict[str, Any] = {"mteb_model_meta": {"model_name": meta.name, "revision": meta.revision}}
    if path.exists():
        earlier = read_object(path, _REMOVE)
        kept = earlier if earlier.get("mteb_model_meta") == kept["mteb_model_meta"] else kept
    for subset, splits in rankings.items():
        for split, ranking in splits.items():
            first = {query: dict(best(documents, _KEPT)) for query, documents in ranking.items()}
            kept.setdefault(subset, {})[split] = first
    write_text(path, json.dumps(kept))


def _keep_results(made: Path, kept: Path) -> None:
    """Move MTEB's result files into place atomically, keeping the splits that they had for the same data."""
    for path in sorted(made.rglob("*")):
        if not path.is_file():
            continue
        target = kept / path.relative_to(made)
        text = path.read_text(encoding="utf-8")
        if target.exists() and path.suffix == ".json" and path.name != "model_meta.json":
            new, old = read_object(path), read_object(target, _REMOVE)
            if old.get("dataset_revision") == new.get("dataset_revision"):
                if not isinstance(old.get("scores"), dict):
                    raise ValueError(f"{target} holds no 'scores' by split, so it is not a result. {_REMOVE}")
                new["scores"] = {**old["scores"], **new["scores"]}
                text = json.dumps(new, indent=2)
        write_text(target, text)
