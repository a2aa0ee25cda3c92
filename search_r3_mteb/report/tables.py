"""The report's two tables as pandas frames, and their text in Markdown, CSV and LaTeX.

A number is bold only where the paired bootstrap says so: a quality, where its row beats every other row of its task; a
difference, where its p is below 0.05. Published scores have no per-query values, so they are never part of a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from search_r3_mteb.report.comparisons import ReasoningDifference, ScoreRow
from search_r3_mteb.report.number_text import count, is_nan, p_value, ratio, score, signed, span
from search_r3_mteb.report.peers import Peer
from search_r3_mteb.report.records import Message

if TYPE_CHECKING:
    import pandas as pd

TextFormat = Literal["md", "csv", "latex"]

SCORE_COLUMNS = {
    "task": "Task",
    "model": "Model",
    "mode": "Mode",
    "max_reasoning_tokens": "Budget",
    "ndcg_at_10": "nDCG@10",
    "published_ndcg": "Published",
    "interval": "95 % interval",
    "recall_at_10": "Recall@10",
    "reasoning_tokens": "Tokens/query",
    "milliseconds": "ms/query",
    "documents_per_second": "Documents/s",
    "queries": "Queries",
    "seeds": "Seeds",
    "origin": "From",
}
DIFFERENCE_COLUMNS = {
    "task": "Task",
    "model": "Model",
    "budget": "Budget",
    "direct": "Direct",
    "reason": "Reasoning",
    "difference": "Difference",
    "interval": "95 % interval",
    "p": "p",
    "times": "Time ratio",
    "queries": "Queries",
    "seeds": "Seeds",
}
_SCORE_FIELDS = (
    *(
        "task",
        "model",
        "mode",
        "max_reasoning_tokens",
        "samples",
        "anchor",
        "method",
        "ndcg_at_10",
        "low",
        "high",
        "best",
        "recall_at_10",
    ),
    *("reasoning_tokens", "forced_share", "milliseconds", "queries_per_second", "documents_per_second"),
    *("queries", "documents"),
    *("seeds", "origin", "published", "comparable", "note", "task_name", "split", "hops", "commit", "command"),
    "source",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last: full width
BOLD_NOTE = (
    "Bold: the row beats every other measured row of its task, each by a paired bootstrap over queries (and seeds), "
    "p < 0.05 after Holm's correction; a difference is bold where its own p < 0.05. Published scores come without "
    "per-query values, so they are in no test."
)


def score_frame(rows: Sequence[ScoreRow], peers: Sequence[Peer] = ()) -> pd.DataFrame:
    """One line per row, then the peers of its task; numbers as numbers, None where a source does not give one."""
    order = {place: position for position, place in enumerate(dict.fromkeys(row.place[:2] for row in rows))}
    records = [_score_record(row) for row in rows] + [_peer_record(peer) for peer in peers]
    records.sort(key=lambda item: (order[(item["task_name"], item["split"])], item["published"]))
    return _frame(records, list(_SCORE_FIELDS))


def difference_frame(differences: Sequence[ReasoningDifference]) -> pd.DataFrame:
    """Reasoning minus direct, one line for each model, task and budget."""
    records = []
    for item in differences:
        run, result = item.reason.first, item.result
        left_out = f"{item.left_out} queries without a value on one side" if item.left_out else ""
        records.append(
            {
                "task": run.task_label,
                "model": run.label,
                "hops": run.hops,
                "budget": run.max_reasoning_tokens,
                "direct": item.direct.ndcg_at_10,
                "reason": item.reason.ndcg_at_10,
                "difference": result.difference if result else item.plain_difference,
                "low": result.low if result else None,
                "high": result.high if result else None,
                "p": result.p if result else None,
                "times": item.times,
                "queries": result.queries if result else None,
                "seeds": len(item.reason.runs),
                "significant": bool(result and result.significant),
                "note": item.why_untested or left_out,
            }
        )
    columns = [key for key in DIFFERENCE_COLUMNS if key != "interval"]
    return _frame(records, [*columns, "low", "high", "significant", "hops", "note"])


def render(
    rows: Sequence[ScoreRow],
    differences: Sequence[ReasoningDifference],
    peers: Sequence[Peer],
    messages: Sequence[Message],
    form: str,
) -> dict[str, str]:
    """Texts by the ending of the file's name: CSV gives two ("" and "-differences"), Markdown and LaTeX one.

    Markdown and LaTeX hold the peers marked as shown; CSV holds all of them. Raises ValueError for another format.
    """
    if form not in ("md", "csv", "latex"):
        raise ValueError(f"format {form!r} is not one of html, md, csv, latex.")
    if form == "csv":
        return {"": _csv(score_frame(rows, peers)), "-differences": _csv(difference_frame(differences))}
    few = [peer for peer in peers if peer.shown]
    scores, deltas = score_frame(rows, few), difference_frame(differences)
    notes = table_notes(few, len(peers) - len(few))
    if form == "md":
        return {"": _markdown(display_scores(scores, "md"), display_differences(deltas, "md"), notes, messages)}
    return {"": _latex(display_scores(scores, "latex"), display_differences(deltas, "latex"), notes, messages)}


def display_scores(frame: pd.DataFrame, form: TextFormat) -> pd.DataFrame:
    """The score table for readers: rounded, with marks for bold and for peers on another corpus."""
    import pandas as pd

    shown = pd.DataFrame(index=frame.index)
    for key, title in SCORE_COLUMNS.items() if len(frame) else ():
        if key == "published_ndcg":
            if frame["published"].any():  # never in one column with what was measured
                values = zip(frame["ndcg_at_10"], frame["published"], strict=True)
                shown[title] = [italic(score(value), form) if other else "–" for value, other in values]
        elif key == "ndcg_at_10":
            values = zip(frame[key], frame["published"], strict=True)
            cells = ["–" if other else score(value) for value, other in values]
            shown[title] = [bold(cell, form) if best else cell for cell, best in zip(cells, frame["best"], strict=True)]
        elif key == "interval":
            shown[title] = [span(low, high) for low, high in zip(frame["low"], frame["high"], strict=True)]
        else:
            shown[title] = [_cell(key, value) for value in frame[key]]
    return shown


def display_differences(frame: pd.DataFrame, form: TextFormat) -> pd.DataFrame:
    """The table of differences for readers."""
    import pandas as pd

    shown = pd.DataFrame(index=frame.index)
    for key, title in DIFFERENCE_COLUMNS.items() if len(frame) else ():
        if key == "difference":
            cells = [signed(value) for value in frame[key]]
            flags = zip(cells, frame["significant"], strict=True)
            shown[title] = [bold(cell, form) if significant else cell for cell, significant in flags]
        elif key == "interval":
            bounds = zip(frame["low"], frame["high"], strict=True)
            shown[title] = ["–" if low is None else f"{signed(low)} to {signed(high)}" for low, high in bounds]
        else:
            shown[title] = [_cell(key, value) for value in frame[key]]
    return shown


def table_notes(peers: Sequence[Peer], hidden: int) -> list[str]:
    """The notes below the tables."""
    notes = [BOLD_NOTE]
    kinds = dict.fromkeys((p.publisher, p.task, p.published_as, p.comparable, p.why) for p in peers)
    for publisher, task, name, comparable, why in kinds:
        verdict = "comparable" if comparable else "‡ NOT comparable"
        beside = "" if name == task else f" beside {task}"
        notes.append(f"Published {publisher} scores on {name}{beside}, not measured here: {verdict}: {why}.")
    if hidden:
        notes.append(f"{hidden} more published models are in the HTML page and the CSV.")
    return notes


def bold(text: str, form: TextFormat) -> str:
    """The text in bold for the format; CSV has its own column for it."""
    return {"md": f"**{text}**", "latex": f"\\textbf{{{text}}}", "csv": text}[form]


def italic(text: str, form: TextFormat) -> str:
    """The text in italics for the format: a number that was not measured here."""
    return {"md": f"*{text}*", "latex": f"\\textit{{{text}}}", "csv": text}[form]


def _frame(records: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A frame of Python objects: None stays "not measured", NaN stays NaN, whole numbers stay whole."""
    import pandas as pd

    return pd.DataFrame({key: pd.Series([item.get(key) for item in records], dtype=object) for key in columns})


def _csv(frame: pd.DataFrame) -> str:
    records = [
        {key: "NaN" if is_nan(value) else _no_formula(value) for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
    return str(_frame(records, list(frame.columns)).to_csv(index=False))


def _no_formula(value: Any) -> Any:
    """A cell that a spreadsheet shows: it would compute a text that begins like a formula. Numbers are not texts."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value


def _score_record(row: ScoreRow) -> dict[str, Any]:
    run = row.first
    low, high = row.interval or (None, None)
    return {
        "task": run.task_label,
        "model": run.label,
        "mode": run.mode,
        "max_reasoning_tokens": run.max_reasoning_tokens if run.mode != "direct" else None,
        "samples": run.samples,
        "anchor": run.anchor,
        "method": run.method,
        "ndcg_at_10": row.ndcg_at_10,
        "low": low,
        "high": high,
        "best": row.best,
        "recall_at_10": row.average("recall_at_10"),
        "reasoning_tokens": row.average("reasoning_tokens_per_query"),
        "forced_share": row.average("forced_share"),
        "milliseconds": row.average("milliseconds"),
        "queries_per_second": row.average("queries_per_second"),
        "documents_per_second": row.average("documents_per_second"),
        "queries": run.queries,
        "documents": run.documents,
        "seeds": len(row.runs),
        "origin": {"mteb": "MTEB file", "predictions": "MTEB rankings"}.get(run.origin, "this run"),
        "published": False,
        "comparable": True,
        "note": row.best_reason,
        "task_name": run.task,
        "split": run.split,
        "hops": run.hops,
        "commit": ", ".join(dict.fromkeys(str(item.commit) for item in row.runs if item.commit)) or None,
        "command": run.command,
        "source": ", ".join(dict.fromkeys(item.source for item in row.runs)),
    }


def _peer_record(peer: Peer) -> dict[str, Any]:
    return {
        "task": peer.task if peer.split == "test" else f"{peer.task} · {peer.split}",
        "model": peer.model,
        "mode": "published",
        "ndcg_at_10": peer.ndcg_at_10,
        "best": False,
        "recall_at_10": peer.recall_at_10,
        "origin": f"{peer.publisher}{', same corpus' if peer.comparable else ' ‡ other corpus'}",
        "published": True,
        "comparable": peer.comparable,
        "note": peer.why,
        "task_name": peer.task,
        "split": peer.split,
    }


def _cell(key: str, value: Any) -> str:
    if key in ("recall_at_10", "direct", "reason"):
        return score(value)
    if key == "p":
        return p_value(value)
    if key == "times":
        return ratio(value)
    if key in ("reasoning_tokens", "milliseconds", "documents_per_second"):
        return count(value, 1)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return count(value)
    return "–" if value is None else str(value)


def _markdown(scores: pd.DataFrame, deltas: pd.DataFrame, notes: Sequence[str], messages: Sequence[Message]) -> str:
    parts = ["# Results", "", "## Scores", "", _markdown_table(scores), ""]
    parts += ["## Reasoning minus direct", "", _markdown_table(deltas), ""]
    parts += [note + "\n" for note in notes]
    if messages:
        parts += ["## Messages about the runs", "", *(f"- {message}" for message in messages), ""]
    return "\n".join(parts)


def _markdown_table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "None."
    # A bar or a line break inside a name would end its cell.
    safe = frame.map(lambda cell: cell.replace("|", "\\|").replace("\n", " "))
    return str(safe.to_markdown(index=False, disable_numparse=True))


def _latex(scores: pd.DataFrame, deltas: pd.DataFrame, notes: Sequence[str], messages: Sequence[Message]) -> str:
    parts = ["% Needs \\usepackage{booktabs}"]
    parts[0] += "".join("\n% " + " ".join(str(message).split()) for message in messages)
    for frame, caption in ((scores, "Scores."), (deltas, "Reasoning minus direct, nDCG@10.")):
        if frame.empty:
            continue
        safe = frame.map(_latex_escape).rename(columns=_latex_escape)
        layout = "".join("l" if title in ("Task", "Model", "Mode", "From") else "r" for title in frame.columns)
        text = safe.style.hide(axis="index").to_latex(
            hrules=True, column_format=layout, caption=caption, position_float="centering"
        )
        parts.append(text.strip())
    parts += [_latex_escape(note) + "\n" for note in notes]
    return "\n\n".join(parts) + "\n"


def _latex_escape(text: str) -> str:
    """The text for LaTeX: special characters escaped, except in our own marks for bold and italics."""
    for opening in ("\\textbf{", "\\textit{"):
        if text.startswith(opening) and text.endswith("}"):
            return opening + _latex_escape(text[len(opening) : -1]) + "}"
    table = {c: "\\" + c for c in "&%$#_{}"} | {
        "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
        "–": "--", "−": "$-$", "‡": "$\\ddagger$", "·": "$\\cdot$", "<": "$<$", ">": "$>$",
    }  # fmt: skip
    return "".join(table.get(character, character) for character in text)
