"""Published scores beside ours, marked where their corpus is not the one that we searched.

They come from files of published scores (`peer_files`). They have no per-query values: they are in no test, and stand
in a column of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search_r3_mteb.report.comparisons import ScoreRow
from search_r3_mteb.report.peer_files import PeerEntry, number, read_peer_files
from search_r3_mteb.report.query_files import plain
from search_r3_mteb.report.records import Evidence, mean


@dataclass(frozen=True)
class Peer:
    """A published score on `published_as`, beside our rows on `task`.

    `comparable` says whether task, split and corpus are ours; `why` says how that is known. `publisher` is "MTEB" or
    "QueryGym".
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
    publisher: str = "MTEB"


@dataclass(frozen=True)
class _Corpus:
    documents: int | None
    queries: int | None


def read_peers(path: Path | Sequence[Path], rows: Sequence[ScoreRow], evidence: Evidence) -> list[Peer]:
    """Peers of every task in `rows`, from files or folders of published scores (see `read_peer_files`).

    Tasks of ours that none of them holds get a note, as do scores that are not numbers. Raises FileNotFoundError where
    a file does not exist and ValueError where it holds something else.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    ours: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        if row.first.hops is None and row.first.subset is None:
            ours.setdefault((row.first.task, row.first.split), []).append(row)
    published = read_peer_files(paths, {plain(published_name(task)) for task, _ in ours}, evidence)
    peers: list[Peer] = []
    for (task, split), mine in ours.items():
        name = plain(published_name(task))
        entries = [entry for entry in published if plain(entry["task"]) == name and entry["split"] == split]
        if not entries:
            where = ", ".join(map(str, paths))
            evidence.note(where, f"holds no published score for {task} ({split}): no peers beside it.")
            continue
        for publisher in dict.fromkeys(entry["publisher"] for entry in entries):
            peers.extend(_select(task, split, [each for each in entries if each["publisher"] == publisher], mine))
    return peers


def published_name(task: str) -> str:
    """MTEB's probable name for a task of ours: `scifact` for `beir-scifact-1a2b3c4d`, which was read from a folder.

    Case does not count. The corpora may still differ: that is examined separately.
    """
    found = re.fullmatch(r"(?:beir-)?(.+)-[0-9a-f]{8}(?:-[\w.-]+)?", task)
    return found.group(1) if found else task


def _select(task: str, split: str, entries: list[PeerEntry], mine: list[ScoreRow]) -> list[Peer]:
    """One peer per model; `shown` are BM25, those named like a model of ours, the best and the median."""
    models: dict[str, list[PeerEntry]] = {}
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
        ndcg = mean(number(row["ndcg_at_10"]) for row in rows) or 0.0
        recall = mean(number(row["recall_at_10"]) for row in rows)
        publisher = rows[0]["publisher"]
        found.append(Peer(name, task, rows[0]["task"], split, ndcg, recall, comparable, why, named, publisher))
    found.sort(key=lambda peer: (-peer.ndcg_at_10, peer.model))
    landmarks = {found[0].model, found[len(found) // 2].model}
    return [replace(peer, shown=True) if peer.model in landmarks else peer for peer in found]


def _comparable(rows: list[PeerEntry], mine: list[ScoreRow], same_size: tuple[bool, str]) -> tuple[bool, str]:
    """Whether a peer searched our corpus, and why: by dataset revision where ours is one of MTEB's, else by size."""
    if any(row["subset"] != "default" for row in rows):
        return False, "MTEB scores several subsets of this task, ours is one corpus"
    if rows[0]["publisher"] != "MTEB":
        queries, own = {row.get("queries") for row in rows}, {row.first.queries for row in mine}
        if len(own) == 1 and None not in own and queries != {str(next(iter(own)))}:
            return False, f"scored on {', '.join(map(str, queries))} queries, ours on {next(iter(own))}"
        return False, "the same data set by name, in another copy: revision and size of its corpus are not known"
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
