"""What the scripts share that compare the ten documents of a way to search with those of MTEB, query by query."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.settings import Mode
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.json_files import read_object
from search_r3_mteb.tasks.beir_folder import Query, read_queries, read_relevance

K, CLOSE = 10, 1e-5
OUTCOMES = ("equal", "ties", "different")
Ranking = list[tuple[str, float]]
"""Ids and scores, best first."""


def asked(data: Path) -> list[Query]:
    """The queries of the test split."""
    judged = read_relevance(data, "test")
    return [query for query in read_queries(data) if query.id in judged]


def evaluated(
    data: Path, model: str, mode: Mode, settings: Mapping[str, Any], folder: Path, store: Path | None = None
) -> dict[str, Any]:
    """What `evaluate` finds on the test split, with `rankings` of each query by its id; `folder` is shared by modes.

    Both modes read one store, for they have the same documents: FOLDER/store, or another one that is kept for the next
    script. What is compared with the rankings shares nothing with it.
    """
    output, cache = folder / f"evaluate-{mode}", store or folder / "store"
    [row] = evaluate([model], [f"beir:{data}"], mode, output, split="test", settings=dict(settings), cache_folder=cache)
    [file] = (output / "predictions").rglob("*.json")
    scores: dict[str, dict[str, float]] = read_object(file)["default"]["test"]
    return {**row, "rankings": {query: _best_first(each) for query, each in scores.items()}}


def compared(found: Ranking, wanted: Ranking) -> str:
    """How the ten of a query compare: "equal", "ties" where only documents of equal score (to 1e-5) differ, or not."""
    if [id_ for id_, _ in found] == [id_ for id_, _ in wanted[:K]]:
        return "equal"
    scores = dict(wanted)
    alike = all(abs(one - other) < CLOSE for (_, one), (_, other) in zip(found, wanted, strict=False))
    known = all(id_ in scores and abs(scores[id_] - score) < CLOSE for id_, score in found)
    return "ties" if alike and known else "different"


def counted(outcomes: Iterable[str]) -> dict[str, int]:
    """The number of queries, and that of each outcome."""
    found = list(outcomes)
    return {"queries": len(found), **{name: found.count(name) for name in OUTCOMES}}


def _best_first(scores: Mapping[str, float]) -> Ranking:
    return sorted(scores.items(), key=lambda pair: -pair[1])
