"""The rows of summary.json, one per task, split, model and mode, and the table that people read.

The row of all hop counts carries a checksum of itself and of the rows of its hop counts, which follow it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.evaluation.significance import interval
from search_r3_mteb.json_files import read_json

if TYPE_CHECKING:
    from search_r3_mteb.narrow_tables import NarrowTable

SummaryRow = dict[str, Any]
Records = Sequence[Mapping[str, Any]]
_DIGITS = 6
_CHECKSUM = "checksum"
_log = logging.getLogger(__name__)


def read_summary(path: Path) -> list[SummaryRow]:
    """The rows of an earlier run, [] if there is none. Raises ValueError for a file that is not a summary."""
    if not path.exists():
        return []
    rows = read_json(path, "It is written atomically, so something else changed it: remove it.")
    known = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not known or not all(isinstance(name, str | None) for row in rows for name in identity(row)):
        raise ValueError(f"{path} is not a list of results. Name another output folder, or remove the file.")
    return rows


def with_checksum(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """A row and those of its hop counts, the first with the checksum of them all."""
    first = {key: value for key, value in rows[0].items() if key != _CHECKSUM}
    content = json.dumps([first, *rows[1:]], sort_keys=True, allow_nan=False)
    return [{**first, _CHECKSUM: hashlib.sha256(content.encode()).hexdigest()}, *rows[1:]]


def intact_rows(rows: Sequence[SummaryRow], path: Path) -> list[SummaryRow]:
    """`rows` without those that do not match their checksum, which a warning names; rows without one stay."""
    kept = []
    for mine in by_identity(rows).values():
        sealed = any(_CHECKSUM in row for row in mine)
        if (sealed and with_checksum(mine) != mine) or (not sealed and all("hops" in row for row in mine)):
            what = ", ".join(str(value) for value in identity(mine[0]))
            _log.warning("%s: the row of %s does not match its checksum. It is damaged, and left out.", path, what)
        else:
            kept += mine
    return kept


def has_checksum(row: SummaryRow) -> bool:
    """False for rows of versions that wrote none, and for those of one hop count."""
    return _CHECKSUM in row


def by_identity(rows: Sequence[SummaryRow]) -> dict[tuple[Any, ...], list[SummaryRow]]:
    """Each row with those of its hop counts, in order."""
    found: dict[tuple[Any, ...], list[SummaryRow]] = {}
    for row in rows:
        found.setdefault(identity(row), []).append(row)
    return found


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
    times = ("seconds", "milliseconds_per_query", "queries_per_second", "documents_per_second")
    untimed = dict.fromkeys(times)
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


def table(rows: Sequence[SummaryRow]) -> "NarrowTable":
    """The rows as a table that fits its terminal; a row of one hop count follows the row of all.

    Tokens are those that a query's system generated; times are of this machine, without the search of the vectors.
    """
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    names = [NarrowColumn("task", name=True), NarrowColumn("model", name=True), NarrowColumn("mode", name=True)]
    numbers = [("nDCG@10", 0), ("95 %\ninterval", 3), ("recall\n@10", 5), ("tokens\n/query", 4)]
    numbers += [("ms\n/query", 2), ("docs\n/s", 1)]
    found = NarrowTable([*names, *(NarrowColumn(name, leaves=order) for name, order in numbers)])
    previous = None
    for row in rows:
        if previous is not None and identity(previous) != identity(row):
            found.add_section()
        previous = row
        found.add_row(*_cells(row))
    return found


def _cells(row: SummaryRow) -> list[str]:
    mode = row["mode"] if "anchor" in row["mode"] else condition(row["mode"], None, None, row.get("anchor"))
    names = [row["task"] if row["split"] == "test" else f"{row['task']} ({row['split']})", row["model"], mode]
    if "hops" in row:
        names = [f"  {row['hops']} hop" + ("s" if row["hops"] > 1 else ""), "", ""]
    bounds = row.get("interval")
    return [
        *names,
        f"{row['ndcg_at_10']:.3f}",
        "" if bounds is None else f"{bounds[0]:.3f}-{bounds[1]:.3f}",
        f"{row['recall_at_10']:.3f}",
        _rate(row["reasoning_tokens_per_query"]),
        _rate(milliseconds(row)),
        _rate(row.get("documents_per_second")),
    ]


def condition(mode: str, budget: float | None, samples: float | None = None, anchor: float | None = None) -> str:
    """A mode with what tells its runs apart: the budget of tokens, of each text where there are several; the anchor."""
    texts = f"{samples:g} × " if samples is not None and samples > 1 else ""
    most = "" if budget is None else f" ≤ {texts}{budget:g}"
    return f"{mode}{most}{'' if anchor is None else f', anchor {anchor:g}'}"


def milliseconds(row: SummaryRow) -> float | None:
    """The row's milliseconds per query, None if no time was measured; rows of older versions have only the rate."""
    if "milliseconds_per_query" in row:
        found: float | None = row["milliseconds_per_query"]
        return found
    per_second = row.get("queries_per_second")
    return 1000 / per_second if per_second else None


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if 0 < value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def rate(count: int, seconds: float) -> float | None:
    """Texts per second, None if no time was measured."""
    return round(count / seconds, 3) if seconds > 0 else None


def per_text(seconds: float, count: int) -> float | None:
    """Milliseconds per text, None if no time was measured."""
    return round(1000 * seconds / count, 6) if count and seconds > 0 else None


def _mean_of(records: Records, key: str) -> float:
    return _mean([float(record[key]) for record in records])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
