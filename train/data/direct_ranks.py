"""Which queries stage 2 trains on, by where the starting model's direct vector ranks their relevant documents.

The ranks are measured once, over the searched corpus, and kept in `direct_ranks.json` of the run's folder: a resumed
run reads them, since its weights have moved.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from search_r3_mteb.atomic import write_json
from search_r3_mteb.json_files import read_object
from search_r3_mteb.keys import key_of
from train.data.mixing import TrainingData
from train.data.rows import TrainingRow
from train.data.sources import all_rows
from train.processes import collectives

FILE = "direct_ranks.json"
_QUERIES = 512  # measured at once

Ranks = dict[str, dict[str, int | None]]
"""Source -> query's text -> rank of its best relevant document from 1, None where it is below `high`."""


def measured(
    data: TrainingData, ranks_of: Callable[[Sequence[TrainingRow]], Sequence[int | None]], on_bad_row: str
) -> Ranks:
    """The ranks of all queries, by a function that measures some; every process measures its share, and gets all."""
    found: Ranks = {}
    for stream in data.streams:
        rows = list({row.query: row for row in all_rows(stream.source, on_bad_row)}.values())
        mine = rows[collectives.rank() :: collectives.world_size()]
        ranks: dict[str, int | None] = {}
        for start in range(0, len(mine), _QUERIES):
            part = mine[start : start + _QUERIES]
            ranks |= dict(zip([row.query for row in part], ranks_of(part), strict=True))
        together = {query: rank for one in collectives.gather(ranks) for query, rank in one.items()}
        found[stream.label] = {row.query: together[row.query] for row in rows}
    return found


def keep(data: TrainingData, ranks: Ranks, bounds: tuple[int, int]) -> dict[str, int]:
    """Let the streams give the queries alone whose rank lies within `bounds`; returns the log's counts.

    Raises ValueError for a source of which no query is left, and for one that was not measured.
    """
    low, high = bounds
    counts: dict[str, int] = {}
    for stream in data.streams:
        if stream.label not in ranks:
            raise ValueError(
                f"{FILE} has no ranks of the source {stream.label!r}, only of {', '.join(ranks)}. It belongs to "
                "another run: name another output.folder."
            )
        own = ranks[stream.label]
        kept = {query for query, rank in own.items() if rank is not None and low <= rank <= high}
        better = sum(rank is not None and rank < low for rank in own.values())
        if not kept:
            raise ValueError(
                f"data.direct_rank = {[low, high]} leaves none of the {len(own)} queries of {stream.label}: {better} "
                f"have a relevant document before rank {low}, {len(own) - better} have none up to rank {high}. Widen "
                "the ranks, or remove the source."
            )
        stream.kept = frozenset(key_of(query) for query in kept)
        counts |= {f"{stream.label}_{name}": n for name, n in _numbers(len(own), better, len(kept)).items()}
    return counts


def write(folder: Path, ranks: Ranks, bounds: tuple[int, int], documents: int) -> None:
    """Keep the ranks in the run's folder, on the main process; the others wait."""
    described = {"direct_rank": list(bounds), "documents": documents, "ranks": ranks}
    collectives.on_main(lambda: write_json(folder / FILE, described))


def read(folder: Path, bounds: tuple[int, int], documents: int) -> Ranks:
    """The ranks that the run was begun with.

    Raises FileNotFoundError where they are gone, ValueError where they are of other bounds or another corpus.
    """
    place = folder / FILE
    if not place.is_file():
        raise FileNotFoundError(
            f"{place} is not there: the run was begun with data.direct_rank, whose ranks are those of the starting "
            "model, and its weights have moved since. Restore the file, or begin again in another output.folder."
        )
    saved = read_object(place)
    if (saved.get("direct_rank"), saved.get("documents")) != (list(bounds), documents):
        raise ValueError(
            f"{place} was measured for ranks {saved.get('direct_rank')} over {saved.get('documents')} documents, and "
            f"this run has {list(bounds)} over {documents}. Begin again in another output.folder."
        )
    ranks: Ranks = saved["ranks"]
    return ranks


def said(counts: dict[str, int], labels: Sequence[str], bounds: tuple[int, int]) -> str:
    """The counts in words."""
    parts = (f"{counts[f'{label}_kept']:,} of {counts[f'{label}_queries']:,} of {label}" for label in labels)
    return f"queries whose direct vector has a relevant document at rank {bounds[0]} to {bounds[1]}: {', '.join(parts)}"


def _numbers(queries: int, better: int, kept: int) -> dict[str, int]:
    return {"queries": queries, "better": better, "kept": kept, "worse": queries - better - kept}
