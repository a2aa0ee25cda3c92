"""Files of published scores: a CSV of MTEB scores, MTEB's results folder, and QueryGym's results.

| what | layout, read in those repositories |
|---|---|
| CSV of MTEB scores | model, task, split, subset, ndcg_at_10, recall_at_10, perhaps revision, dataset_revision |
| MTEB's results (embeddings-benchmark/results) | ORG__MODEL/REVISION/Task.json, perhaps below results/ |
| QueryGym's (ls3-lab/QueryGym, before radinhamidi/QueryGym) | reproducibility/data/results.csv: a row for each metric |

QueryGym's rows have the columns dataset_id (as in pyserini: beir-v1.0.0-scifact), method_id, model (the writer),
retriever_id, metric ("ndcg_cut_10") and value; without a method they would be the retriever alone. Its split is the one
that pyserini's topics have, "test" for BEIR.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from search_r3_mteb.json_files import read_json
from search_r3_mteb.report.query_files import plain
from search_r3_mteb.report.records import Evidence

PeerEntry: TypeAlias = dict[str, str]
_MTEB_COLUMNS = ("model", "task", "split", "subset", "ndcg_at_10", "recall_at_10")
_GYM_COLUMNS = ("dataset_id", "method_id", "model", "retriever_id", "metric", "value")
_GYM_FILE = Path("reproducibility/data/results.csv")
_KINDS = (
    "Give a CSV of MTEB scores with a header, MTEB's results folder (ORG__MODEL/REVISION/Task.json), or QueryGym's "
    "results.csv or repository."
)


def read_peer_files(paths: Sequence[Path], tasks: set[str], evidence: Evidence) -> list[PeerEntry]:
    """The entries of `tasks` (plain names) in all files, with a "publisher" each; notes go to `evidence`.

    Raises FileNotFoundError for a path that does not exist and ValueError for one that holds something else.
    """
    return [entry for path in paths for entry in _numbers(_read(path, tasks, evidence), path, evidence)]


def number(text: str | None) -> float | None:
    """A finite number, None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(entries: list[PeerEntry], path: Path, evidence: Evidence) -> list[PeerEntry]:
    good = [entry for entry in entries if number(entry["ndcg_at_10"]) is not None]
    if len(good) < len(entries):
        evidence.note(str(path), f"{len(entries) - len(good)} published scores are not numbers: left out.")
    return good


def _read(path: Path, tasks: set[str], evidence: Evidence) -> list[PeerEntry]:
    if path.is_dir():
        inside = next((each for each in (path / _GYM_FILE, path / "results.csv") if each.is_file()), None)
        return _mteb_folder(path, tasks, evidence) if inside is None else _read(inside, tasks, evidence)
    if not path.is_file():
        raise FileNotFoundError(f"--peers {path}: no such file or folder. {_KINDS}")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if set(_GYM_COLUMNS) <= set(columns):
            return _gym(reader, tasks, path)
        absent = [name for name in _MTEB_COLUMNS if name not in columns]
        if absent:
            found = ", ".join(columns) or "none"
            raise ValueError(f"--peers {path}: no column {', '.join(absent)} (found: {found}). {_KINDS}")
        return [{**entry, "publisher": "MTEB"} for entry in reader if plain(entry["task"]) in tasks]


def _gym(reader: csv.DictReader[str], tasks: set[str], path: Path) -> list[PeerEntry]:
    """An entry for each run: nDCG@10 of a method, its writer and a retriever."""
    runs: dict[tuple[str, ...], PeerEntry] = {}
    for row in reader:
        if row["metric"] != "ndcg_cut_10" or plain(_gym_task(row["dataset_id"])) not in tasks:
            continue
        parts = (row["method_id"], row["model"].rpartition("/")[2], row["retriever_id"])
        settings = row.get("params_hash") or ""
        key = (row["dataset_id"], *parts, settings)
        if key in runs and runs[key]["ndcg_at_10"] != row["value"]:
            raise ValueError(
                f"--peers {path}, line {reader.line_num}: a second nDCG@10 of {' '.join(key)}, {row['value']} beside "
                f"{runs[key]['ndcg_at_10']}. Two files were put together: give one of them."
            )
        runs[key] = {
            "model": f"{parts[0]}, {parts[1]} + {parts[2]}",
            "revision": settings,
            "task": _gym_task(row["dataset_id"]),
            "split": "test",
            "subset": "default",
            "ndcg_at_10": row["value"],
            "recall_at_10": "",
            "queries": row.get("num_queries") or "",
            "publisher": "QueryGym",
        }
    return list(runs.values())


def _gym_task(dataset: str) -> str:
    """The data set's name: "scifact" of beir-v1.0.0-scifact and of beir-v1.0.0-scifact.test."""
    found = re.fullmatch(r"beir-v[\d.]+-(.+?)(?:\.test)?", dataset)
    return found.group(1) if found else dataset


def _mteb_folder(folder: Path, tasks: set[str], evidence: Evidence) -> list[PeerEntry]:
    """The entries of MTEB's results; only files of `tasks` are opened. ValueError where there is no result at all."""
    files = [path for path in sorted(folder.rglob("*.json")) if path.name != "model_meta.json"]
    placed = [path for path in files if _place(path) is not None]
    if not placed:
        raise ValueError(f"--peers {folder}: holds no result of MTEB (ORG__MODEL/REVISION/Task.json). {_KINDS}")
    found: list[PeerEntry] = []
    for path in placed:
        if plain(path.stem) in tasks:
            found += _mteb_file(path, evidence)
    return found


def _place(path: Path) -> tuple[str, str] | None:
    """Model and revision of a result file, by its folders; None for a file elsewhere."""
    parent = path.parent
    experiment = ""
    if parent.parent.name == "experiments":
        experiment, parent = f" ({parent.name})", parent.parent.parent
    model = parent.parent.name
    return (model.replace("__", "/", 1) + experiment, parent.name) if "__" in model else None


def _mteb_file(path: Path, evidence: Evidence) -> Iterator[PeerEntry]:
    place = _place(path)
    try:
        data: Any = read_json(path)
        scores = data["scores"] if place is not None else {}
        rows = [(split, entry) for split, entries in scores.items() for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        evidence.warn(str(path), f"is not an MTEB result file ({error}): left out.")
        return
    for split, entry in rows:
        if place is not None and isinstance(entry, dict) and "ndcg_at_10" in entry:
            yield {
                "model": place[0],
                "revision": place[1],
                "task": path.stem,
                "split": split,
                "subset": str(entry.get("hf_subset") or "default"),
                "ndcg_at_10": json.dumps(entry["ndcg_at_10"]),
                "recall_at_10": json.dumps(entry.get("recall_at_10")),
                "dataset_revision": str(data.get("dataset_revision") or ""),
                "publisher": "MTEB",
            }
