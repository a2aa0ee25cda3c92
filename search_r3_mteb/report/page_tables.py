"""The tables of the HTML page, each cell with its text and the value it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_r3_mteb.evaluation.summary import condition
from search_r3_mteb.report.comparisons import ReasoningDifference, ScoreRow
from search_r3_mteb.report.number_text import count, is_nan, p_value, ratio, score, signed, span
from search_r3_mteb.report.tables import SCORE_COLUMNS, difference_frame

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = SCORE_COLUMNS["published_ndcg"]
# Title of a column -> its CSS class.
_SCORE_CLASSES = {
    "Task": "",
    "Model": "wrap",
    "Mode": "",
    **dict.fromkeys(("nDCG@10", PUBLISHED, "Recall@10", "Tokens/query", "Forced"), "number"),
    **dict.fromkeys(("ms/query", "Documents/s", "Queries"), "number"),
    "From": "",
}
_DIFFERENCE_CLASSES = {
    "Task": "",
    "Model": "wrap",
    **dict.fromkeys(("Budget", "Direct", "Reasoning", "Difference", "p"), "number"),
    **dict.fromkeys(("Time ratio", "Queries", "Seeds"), "number"),
}
_PROVENANCE_CLASSES = {
    "Task": "",
    "Model": "wrap",
    "Mode": "",
    "Seeds": "",
    "Commit": "",
    "Command": "wrap",
    "File": "wrap",
}


_CUT = "cut at the budget: a writer has no embed token"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the value it is sorted by, its CSS class; `small` follows the text, `hint` is a tooltip."""

    text: str
    sort: str | float = ""
    kind: str = ""
    strong: bool = False
    small: str = ""
    hint: str = ""


@dataclass(frozen=True)
class TableLine:
    """One line of a table; a hidden one appears when its box is ticked."""

    cells: list[Cell]
    kind: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class PageTable:
    """One table that sorts by its columns, which map a title to its CSS class.

    The first column stays in view. On a narrow screen those numbered in `labels` stand below it, in its cells.
    """

    id: str
    columns: dict[str, str]
    rows: list[TableLine]
    labels: tuple[int, ...] = (1, 2)


def score_table(frame: pd.DataFrame, further: set[tuple[str, str]]) -> PageTable:
    """The scores; rows by hop count, and the peers whose (model, task) is in `further`, are hidden at first."""
    lines = []
    published = bool(frame["published"].any())  # in a column of their own, never in one with what was measured
    for row in frame.to_dict("records"):
        budget = row["max_reasoning_tokens"]
        mode = condition(row["mode"], budget, row["samples"], row["anchor"])
        interval = "" if row["low"] is None else f"[{span(row['low'], row['high']).replace(' to ', ', ')}]"
        forced = row["forced_share"] if row["mode"] not in ("direct", "published") else None
        seeds = f"{row['seeds']} seeds" if (row["seeds"] or 1) > 1 else ""
        cells = [
            Cell(row["task"], row["task"]),
            Cell(row["model"], row["model"], "wrap"),
            Cell(mode, f"{row['mode']} {budget or 0:08d}"),
            _number(
                None if row["published"] else row["ndcg_at_10"],
                score,
                strong=row["best"],
                small=interval,
                hint=row["note"] or "",
            ),
            *([_number(row["ndcg_at_10"] if row["published"] else None, score)] if published else []),
            _number(row["recall_at_10"], score),
            _number(row["reasoning_tokens"], _one_decimal),
            _number(
                forced,
                lambda share: "–" if share is None or is_nan(share) else f"{share:.1%}",
                hint=_CUT if row["method"] is not None and forced is not None else "",
            ),
            _number(row["milliseconds"], _one_decimal),
            _number(row["documents_per_second"], _one_decimal),
            _number(row["queries"], count, small=seeds),
            Cell(row["origin"], row["origin"], hint=row["note"] if row["published"] else ""),
        ]
        more = row["published"] and (row["model"], row["task_name"]) in further
        kinds = {"published": row["published"], "other-corpus": not row["comparable"], "further": more}
        kinds["hops"] = row["hops"] is not None
        names = [name for name, on in kinds.items() if on]
        lines.append(TableLine(cells, " ".join(names), hidden="further" in names or "hops" in names))
    classes = {title: kind for title, kind in _SCORE_CLASSES.items() if published or title != PUBLISHED}
    return PageTable("score-table", classes, lines)


def difference_table(differences: Sequence[ReasoningDifference]) -> PageTable:
    """Reasoning minus direct; rows by hop count are hidden at first."""
    lines = []
    for row in difference_frame(differences).to_dict("records"):
        interval = "" if row["low"] is None else f"[{signed(row['low'])}, {signed(row['high'])}]"
        cells = [
            Cell(row["task"], row["task"]),
            Cell(row["model"], row["model"], "wrap"),
            _number(row["budget"], count),
            _number(row["direct"], score),
            _number(row["reason"], score),
            _number(row["difference"], signed, strong=row["significant"], small=interval, hint=row["note"]),
            _number(row["p"], p_value),
            _number(row["times"], ratio),
            _number(row["queries"], count),
            _number(row["seeds"], count),
        ]
        by_hops = row["hops"] is not None
        lines.append(TableLine(cells, "hops" * by_hops, hidden=by_hops))
    return PageTable("difference-table", _DIFFERENCE_CLASSES, lines, labels=(1,))


def provenance_table(rows: Sequence[ScoreRow]) -> PageTable:
    """The seeds, commit, command and file behind every score."""
    lines = []
    for row in rows:
        if row.first.hops is not None:
            continue
        texts = [
            row.first.task_label,
            row.first.label,
            row.first.mode,
            ", ".join(str(run.seed) for run in row.runs),
            ", ".join(dict.fromkeys(run.commit[:12] for run in row.runs if run.commit)) or "–",
            row.first.command or "–",
            ", ".join(dict.fromkeys(run.source for run in row.runs)),
        ]
        cells = zip(texts, _PROVENANCE_CLASSES.values(), strict=True)
        lines.append(TableLine([Cell(text, text, kind) for text, kind in cells]))
    return PageTable("provenance-table", _PROVENANCE_CLASSES, lines)


def _number(value: Any, show: Callable[[Any], str], *, strong: bool = False, small: str = "", hint: str = "") -> Cell:
    return Cell(show(value), "" if value is None or is_nan(value) else value, "number", strong, small, hint)


def _one_decimal(value: Any) -> str:
    return count(value, 1)
