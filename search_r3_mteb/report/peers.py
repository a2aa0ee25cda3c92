"""Published MTEB scores beside ours, marked where their corpus is not the one that we searched."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search_r3_mteb.report.comparisons import ScoreRow
from search_r3_mteb.report.query_files import plain
from search_r3_mteb.report.records import Evidence, mean

_COLUMNS = ("model", "task", "split", "subset", "ndcg_at_10", "recall_at_10")


@dataclass(frozen=True)
class Peer:
    """A published score on `published_as`, beside our rows on `task`.

    `comparable` says whether task, split and corpus are ours; `why` says how that is known.
    """

    model: str
    task: str
    published_as: str
    split: str
    ndcg_at_10: float
    recall_at_10: float | None
    comparable: bool
    why: str
    shown: bool  # among the few that stand beside ours without asking for all


@dataclass(frozen=True)
class _Corpus:
    documents: int | None
    queries: int | None


def read_peers(path: Path, rows: Sequence[ScoreRow], evidence: Evidence) -> list[Peer]:
    """Peers of every task in `rows`, from a CSV with columns model, task, split, subset, ndcg_at_10, recall_at_10.

    Tasks of ours that the file does not hold get a note, as do scores that are not numbers. Raises FileNotFoundError
    where the file does not exist and ValueError where it lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--peers {path}: no such file. Give the CSV of published MTEB retrieval scores.")
    ours: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        if row.first.hops is None and row.first.subset is None:
            ours.setdefault((row.first.task, row.first.split), []).append(row)
    published = _read(path, {plain(published_name(task)) for task, _ in ours}, evidence)
    peers: list[Peer] = []
    for (task, split), mine in ours.items():
        name = plain(published_name(task))
        entries = [entry for entry in published if plain(entry["task"]) == name and entry["split"] == split]
        if not entries:
            evidence.note(str(path), f"holds no published score for {task} ({split}): no peers beside it.")
            continue
        peers.extend(_select(task, split, entries, mine))
    return peers


def published_name(task: str) -> str:
    """MTEB's probable name for a task of ours: `scifact` for `beir-scifact-1a2b3c4d`, which was read from a folder.

    Case does not count. The corpora may still differ: that is examined separately.
    """
    found = re.fullmatch(r"(?:beir-)?(.+)-[0-9a-f]{8}(?:-[\w.-]+)?", task)
    return found.group(1) if found else task


def _read(path: Path, tasks: set[str], evidence: Evidence) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        absent = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
        if absent:
            found = ", ".join(reader.fieldnames or []) or "none"
            raise ValueError(
                f"--peers {path}: no column {', '.join(absent)} (found: {found}). "
                "It must be a CSV of MTEB scores with a header."
            )
        entries = [entry for entry in reader if plain(entry["task"]) in tasks]
    good = [entry for entry in entries if _number(entry["ndcg_at_10"]) is not None]
    if len(good) < len(entries):
        evidence.note(str(path), f"{len(entries) - len(good)} published scores are not numbers: left out.")
    return good


def _select(task: str, split: str, entries: list[dict[str, str]], mine: list[ScoreRow]) -> list[Peer]:
    """One peer per model; `shown` are BM25, those named like a model of ours, the best and the median."""
    models: dict[str, list[dict[str, str]]] = {}
    for entry in entries:  # several revisions of one model are several peers: their mean is not a score of any
        name, revision = entry["model"].replace("__", "/", 1), entry.get("revision") or ""
        others = {other.get("revision") for other in entries if other["model"] == entry["model"]}
        models.setdefault(f"{name} @ {revision[:8]}" if len(others) > 1 else name, []).append(entry)
    same_size = _same_size(split, entries[0]["task"], mine)
    our_names = {plain(row.first.model.rsplit("/", 1)[-1]) for row in mine}
    found = []
    for name, rows in models.items():
        short = plain(name.split(" @ ")[0].rsplit("/", 1)[-1])
        named = any(short == other or other.endswith("-" + short) for other in our_names) or "bm25" in short
        comparable, why = _comparable(rows, mine, same_size)
        ndcg = mean(_number(row["ndcg_at_10"]) for row in rows) or 0.0
        recall = mean(_number(row["recall_at_10"]) for row in rows)
        found.append(Peer(name, task, rows[0]["task"], split, ndcg, recall, comparable, why, named))
    found.sort(key=lambda peer: (-peer.ndcg_at_10, peer.model))
    landmarks = {found[0].model, found[len(found) // 2].model}
    return [replace(peer, shown=True) if peer.model in landmarks else peer for peer in found]


def _comparable(rows: list[dict[str, str]], mine: list[ScoreRow], same_size: tuple[bool, str]) -> tuple[bool, str]:
    """Whether a peer searched our corpus, and why: by dataset revision where ours is one of MTEB's, else by size."""
    if any(row["subset"] != "default" for row in rows):
        return False, "MTEB scores several subsets of this task, ours is one corpus"
    ours = {row.first.dataset_revision for row in mine}
    theirs = {row.get("dataset_revision") for row in rows}
    if ours == theirs:
        return True, "same dataset revision"
    if len(ours) == 1 and re.fullmatch(r"[0-9a-f]{40}", str(next(iter(ours)))) and not same_size[0]:
        return False, "another revision of the dataset"
    return same_size


def _same_size(split: str, task: str, mine: list[ScoreRow]) -> tuple[bool, str]:
    sizes = {_Corpus(row.first.documents, row.first.queries) for row in mine if row.first.documents is not None}
    theirs = _mteb_corpus(task, split)
    if theirs is None or not sizes:
        return False, "corpus not known on one side, so not compared"
    if len(sizes) > 1:
        several = ", ".join(sorted(_words(size) for size in sizes))
        return False, f"our own rows searched different corpora ({several})"
    size = sizes.pop()
    if size.documents == theirs.documents and size.queries in (None, theirs.queries):
        return True, f"same corpus ({_words(theirs)})"
    return False, f"MTEB scores {_words(theirs)}, ours {_words(size)}"


def _mteb_corpus(task: str, split: str) -> _Corpus | None:
    """The size of MTEB's corpus, from the statistics in the installed package; None for tasks that it does not know."""
    import mteb

    try:
        statistics = mteb.get_task(task).metadata.descriptive_stats
    except KeyError:
        return None
    if not statistics or split not in statistics:
        return None
    return _Corpus(statistics[split].get("num_documents"), statistics[split].get("num_queries"))


def _words(corpus: _Corpus) -> str:
    queries = "" if corpus.queries is None else f", {corpus.queries:,} queries"
    return f"{corpus.documents:,} documents{queries}"


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
