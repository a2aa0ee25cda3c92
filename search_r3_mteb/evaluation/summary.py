"""The rows of summary.json, one per task, split, model and mode, and the table that people read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.evaluation.significance import interval
from search_r3_mteb.json_files import read_json

if TYPE_CHECKING:
    from rich.table import Table

SummaryRow = dict[str, Any]
Records = Sequence[Mapping[str, Any]]
_DIGITS = 6


def read_summary(path: Path) -> list[SummaryRow]:
    """The rows of an earlier run, [] if there is none. Raises ValueError for a file that is not a summary."""
    if not path.exists():
        return []
    rows = read_json(path, "It is written atomically, so something else changed it: remove it.")
    known = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not known or not all(isinstance(name, str | None) for row in rows for name in identity(row)):
        raise ValueError(f"{path} is not a list of results. Name another output folder, or remove the file.")
    return rows


def quality(records: Mapping[str, Records]) -> SummaryRow:
    """nDCG@10, recall@10, number of queries, reasoning tokens and forced share (None: unknown) of records by subset.

    As in MTEB, the means are over subsets of means over queries; a task of one subset also has the 95 % interval of
    nDCG@10 (bootstrap over queries).
    """
    every = [record for part in records.values() for record in part]
    row: SummaryRow = {
        "ndcg_at_10": _mean([_mean_of(part, "ndcg_at_10") for part in records.values()]),
        "recall_at_10": _mean([_mean_of(part, "recall_at_10") for part in records.values()]),
        "queries": len(every),
        "reasoning_tokens_per_query": None,
        "forced_share": None,
    }
    if all(record["reasoning_tokens"] is not None for record in every):
        row["reasoning_tokens_per_query"] = _mean_of(every, "reasoning_tokens")
        row["forced_share"] = _mean([float(record["finished"] is False) for record in every])
    if len(records) == 1:
        bounds = interval([record["ndcg_at_10"] for record in every])
        row["interval"] = [round(bounds.low, _DIGITS), round(bounds.high, _DIGITS)]
    return {key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in row.items()}


def hop_rows(row: SummaryRow, records: Mapping[str, Records]) -> list[SummaryRow]:
    """One more row for each hop count of hopworld, without times, which are measured for all hop counts together."""
    by_hops: dict[int, list[Mapping[str, Any]]] = {}
    for part in records.values():
        for record in part:
            if "hops" in record:
                by_hops.setdefault(record["hops"], []).append(record)
    untimed = {"seconds": None, "queries_per_second": None, "documents_per_second": None}
    return [{**row, **quality({"default": part}), **untimed, "hops": hops} for hops, part in sorted(by_hops.items())]


def replace_rows(rows: Sequence[SummaryRow], new: Sequence[SummaryRow]) -> list[SummaryRow]:
    """`rows` with `new` in place of those of the same task, split, model and mode, or at the end."""
    keys = {identity(row) for row in new}
    places = [position for position, row in enumerate(rows) if identity(row) in keys]
    kept = [row for row in rows if identity(row) not in keys]
    at = places[0] if places else len(kept)
    return [*kept[:at], *new, *kept[at:]]


def identity(row: SummaryRow) -> tuple[Any, ...]:
    """Task, split, model and mode, which only a row and the rows of its hop counts share."""
    return tuple(row.get(key) for key in ("task", "split", "model", "mode"))


def table(rows: Sequence[SummaryRow]) -> "Table":
    """The rows as a rich table; a row of one hop count follows the row of all."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "model", "mode"):
        found.add_column(name, overflow="fold")
    for name in ("nDCG@10", "95 %\ninterval", "recall\n@10", "reasoning\ntokens/query", "queries/s", "documents/s"):
        found.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous is not None and identity(previous) != identity(row):
            found.add_section()
        previous = row
        found.add_row(*_cells(row))
    return found


def _cells(row: SummaryRow) -> list[str]:
    names = [row["task"] if row["split"] == "test" else f"{row['task']} ({row['split']})", row["model"], row["mode"]]
    if "hops" in row:
        names = [f"  {row['hops']} hop" + ("s" if row["hops"] > 1 else ""), "", ""]
    bounds = row.get("interval")
    return [
        *names,
        f"{row['ndcg_at_10']:.3f}",
        "" if bounds is None else f"{bounds[0]:.3f}-{bounds[1]:.3f}",
        f"{row['recall_at_10']:.3f}",
        _rate(row["reasoning_tokens_per_query"]),
        _rate(row.get("queries_per_second")),
        _rate(row.get("documents_per_second")),
    ]


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def rate(count: int, seconds: float) -> float | None:
    """Texts per second, None if no time was measured."""
    return round(count / seconds, 3) if seconds > 0 else None


def _mean_of(records: Records, key: str) -> float:
    return _mean([float(record[key]) for record in records])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
