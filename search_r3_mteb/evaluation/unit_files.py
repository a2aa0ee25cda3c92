"""The files of a unit (one model in one mode on one task): their names, and whether they still are what was written.

MTEB's files and the predictions of several splits of a task lie in one file, which is read, changed and written: call
what does so under the output's lock.
"""

import hashlib
import json
import logging
import unicodedata
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.checksums import described, difference
from search_r3_mteb.evaluation.queries import best
from search_r3_mteb.evaluation.summary import SummaryRow, identity, with_checksum
from search_r3_mteb.evaluation.systems import System
from search_r3_mteb.json_files import read_object

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

_log = logging.getLogger(__name__)
_KEPT = 100  # documents per query in a prediction file: MTEB's 1000 would take some 40 MB for one hopworld run
_LONGEST = 120  # bytes of a model in a file's name; a file system takes 255 for all of it
_REMOVE = "Name another output folder, or remove the file."


def queries_file(task: "AbsTaskRetrieval", split: str, label: str, mode: str, rows: Sequence[SummaryRow]) -> Path:
    """queries/TASK__MODEL__MODE.jsonl, with TASK.SPLIT for a further split of the same task.

    Where a row of another unit has a file of that name, or one that a file system without case takes for it, a digest
    of the label follows the label.
    """
    name = task.metadata.name
    others = [row for row in rows if identity(row) != (name, split, label, mode)]

    def plain(part: str) -> Path:
        return Path("queries") / f"{name}__{part}__{mode}.jsonl"

    def of_split(part: str) -> Path:
        return Path("queries") / f"{name}.{split}__{part}__{mode}.jsonl"

    return _first_free([plain, of_split] if split == task.eval_splits[0] else [of_split], label, others)


def predictions_file(label: str, system: System, task: "AbsTaskRetrieval", rows: Sequence[SummaryRow]) -> Path:
    """predictions/MODEL/MODE/TASK_predictions.json, of all splits; a digest follows MODEL as in `queries_file`."""
    mine = (task.metadata.name, label, system.mode)
    others = [row for row in rows if (row.get("task"), row.get("model"), row.get("mode")) != mine]

    def plain(part: str) -> Path:
        return Path("predictions") / part / system.mode / task.prediction_file_name

    return _first_free([plain], label, others)


def _first_free(forms: Sequence[Callable[[str], Path]], label: str, others: Sequence[SummaryRow]) -> Path:
    """The first of the forms that no other row has as one of its files."""
    taken = {
        _folded(name) for row in others for name in [*row.get("files", {}), row.get("queries_file")] if name is not None
    }
    part, digest = file_name(label), hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
    found = (form(end) for end in (part, f"{part}-{digest[:8]}", f"{part}-{digest}") for form in forms)
    return next(path for path in found if _folded(path.as_posix()) not in taken)


def _folded(name: str) -> str:
    """What two names share that are one file where case, or the way in which an accent is written, does not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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


def file_name(label: str) -> str:
    """The label as a part of a file's name: without slashes, a long one with its digest in the place of its end."""
    name = label.replace("/", "__")
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST:
        return name
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{data[: _LONGEST - 17].decode('utf-8', 'ignore')}-{digest[:16]}"
