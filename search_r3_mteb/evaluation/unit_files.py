"""The files of a unit (one model in one mode on one task): their names, and whether they still are what was written.

MTEB's files and the predictions of several splits of a task lie in one file, which is read, changed and written: call
what does so under the output's lock.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.checksums import described, difference
from search_r3_mteb.evaluation.queries import best
from search_r3_mteb.evaluation.summary import SummaryRow, with_checksum
from search_r3_mteb.evaluation.systems import System
from search_r3_mteb.json_files import read_object

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

_log = logging.getLogger(__name__)
_KEPT = 100  # documents per query in a prediction file: MTEB's 1000 would take some 40 MB for one hopworld run
_REMOVE = "Name another output folder, or remove the file."


def queries_file(task: "AbsTaskRetrieval", split: str, label: str, mode: str, rows: Sequence[SummaryRow]) -> Path:
    """queries/TASK__MODEL__MODE.jsonl, with TASK.SPLIT for a further split of the same task."""
    name = task.metadata.name
    plain = Path("queries") / f"{name}__{_file_name(label)}__{mode}.jsonl"
    splits = [*task.eval_splits]
    taken = any(row.get("queries_file") == plain.as_posix() and row.get("split") != split for row in rows)
    if taken or split != splits[0]:
        return plain.with_name(f"{name}.{split}__{_file_name(label)}__{mode}.jsonl")
    return plain


def predictions_file(label: str, system: System, task: "AbsTaskRetrieval") -> Path:
    """predictions/MODEL/MODE/TASK_predictions.json, of all splits."""
    return Path("predictions") / _file_name(label) / system.mode / task.prediction_file_name


def keep_predictions(path: Path, rankings: Mapping[str, Mapping[str, Any]], system: System) -> None:
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


def result_files(made: Path) -> list[Path]:
    """The names below OUTPUT of MTEB's result files, which it wrote into `made`."""
    return [Path("mteb") / path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]


def existing(output: Path, names: Sequence[Path]) -> list[Path]:
    """Those of the files that are there."""
    return [name for name in names if (output / name).exists()]


def keep_results(made: Path, output: Path) -> None:
    """Move MTEB's result files into OUTPUT/mteb, keeping the splits that they had for the same data."""
    for name in result_files(made):
        path, target = made / name.relative_to("mteb"), output / name
        text = path.read_text(encoding="utf-8")
        if target.exists() and path.suffix == ".json" and path.name != "model_meta.json":
            new, old = read_object(path), read_object(target, _REMOVE)
            if old.get("dataset_revision") == new.get("dataset_revision"):
                if not isinstance(old.get("scores"), dict):
                    raise ValueError(f"{target} holds no 'scores' by split, so it is not a result. {_REMOVE}")
                new["scores"] = {**old["scores"], **new["scores"]}
                text = json.dumps(new, indent=2)
        write_text(target, text)


def set_aside_damaged(output: Path, rows: Sequence[SummaryRow], names: Sequence[Path]) -> list[Path]:
    """Those of the files that are not what the rows say; they are named in a warning and renamed to NAME.damaged-..."""
    damaged = []
    for name in sorted(set(names)):
        recorded = [row["files"][name.as_posix()] for row in rows if name.as_posix() in row.get("files", {})]
        path = output / name
        found = next((how for wanted in recorded if (how := difference(path, wanted)) is not None), None)
        if found is None:
            continue
        damaged.append(name)
        said = "It is made again."
        if path.exists():
            aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
            path.rename(aside)
            said = f"It is now {aside.name}, and is made again."
        _log.warning(
            "%s %s: it was damaged, or a run was killed between this file and summary.json. %s", path, found, said
        )
    return damaged


def recorded_again(rows: Sequence[SummaryRow], output: Path, names: Sequence[Path]) -> list[SummaryRow]:
    """The rows of a unit, with what these files are now where it shares them."""
    shared = [name.as_posix() for name in names if name.as_posix() in rows[0]["files"]]
    if not shared:
        return [*rows]
    now = {name: described(output / name) for name in shared}
    return with_checksum([{**rows[0], "files": {**rows[0]["files"], **now}}, *rows[1:]])


def _file_name(label: str) -> str:
    return label.replace("/", "__")
