"""The report as one HTML file that needs nothing else: tables, figures and the query explorer, below 5 MB.

plotly.js comes from the installed plotly package; it and the data stand in the page as gzip in base64, which the
browser unpacks (DecompressionStream, in every browser since 2023). Uncompressed, plotly.js alone would fill the 5 MB;
a smaller bundle would have to be copied into the repository. A content security policy keeps it from loading anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.evaluation.costs import rough_time, times_text
from search_r3_mteb.report import figures as drawing
from search_r3_mteb.report.comparisons import ReasoningDifference, ScoreRow
from search_r3_mteb.report.explorer import Pair, build_payload, compress, find_pairs
from search_r3_mteb.report.number_text import p_value, signed
from search_r3_mteb.report.page_tables import difference_table, provenance_table, score_table
from search_r3_mteb.report.peers import Peer
from search_r3_mteb.report.plot import Figure, FigureGroup, LeftOut
from search_r3_mteb.report.records import Evidence
from search_r3_mteb.report.tables import score_frame, table_notes
from search_r3_mteb.report.training_figures import training_figures

MOST_BYTES = 4_900_000  # of the finished file
_FILES = Path(__file__).parent
_TRAINING_TEXT = "Losses and rewards, quality while training, age and error of the cache."


@dataclass(frozen=True)
class TextSection:
    """A section of lines, below the scores."""

    id: str
    title: str
    lines: Sequence[str]
    text: str = ""


@dataclass(frozen=True)
class Content:
    """What the page shows."""

    evidence: Evidence
    rows: Sequence[ScoreRow]
    differences: Sequence[ReasoningDifference]
    peers: Sequence[Peer] = ()
    title: str = "Search-R3: what the runs show"
    extra_groups: Sequence[FigureGroup] = field(default_factory=tuple)
    texts: Sequence[TextSection] = field(default_factory=tuple)
    baselines: Mapping[str, str] = field(default_factory=dict)  # what a model stands beside in the explorer
    controls: Collection[str] = ()  # names of models whose reasoning was exchanged: the explorer has them last


def write_page(content: Content, output: Path, most_bytes: int = MOST_BYTES) -> int:
    """Write the page and return its size in bytes.

    Raises ValueError where it cannot be kept below `most_bytes` (far too many models at once).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pairs = find_pairs(content.rows, content.baselines, content.controls)
    groups = _figure_groups(content)
    pair_figures = _pair_figures(pairs)
    plots = {item.name: _packed(item) for group in groups for item in group.figures}
    plots |= {item.name: _packed(item) for item in pair_figures}  # one left out: its sentence, and nothing to draw
    context = _context(content, pairs, groups)
    context["plotly"] = _plotly()
    template = environment.get_template("page.html.j2")
    bare = len(template.render(**context, data="", explorer_notes="").encode("utf-8", "replace"))
    payload = build_payload(pairs, content.evidence.texts, plots, most_bytes - bare - 2_000)
    page = template.render(**context, data=payload.encoded, explorer_notes=" ".join(payload.notes))
    encoded = page.encode("utf-8", "replace")  # a lone surrogate in a text must not stop the page
    write_text(output, encoded.decode("utf-8"))
    return len(encoded)


@cache
def _plotly() -> str:
    """plotly.js of the installed package, packed."""
    from plotly.offline import get_plotlyjs

    return compress(get_plotlyjs())


def _context(content: Content, pairs: Sequence[Pair], groups: Sequence[FigureGroup]) -> dict[str, Any]:
    evidence, rows = content.evidence, content.rows
    few = [peer for peer in content.peers if peer.shown]
    further = {(peer.model, peer.task) for peer in content.peers if not peer.shown}
    differences = difference_table(content.differences)
    sections = [("scores", "Scores")]
    sections += [(each.id, each.title) for each in content.texts]
    if differences.rows or pairs:
        sections.append(("reasoning", "Reasoning against direct"))
    sections += [(group.id, group.title) for group in groups]
    sections += [("explorer", "Query explorer")] * bool(pairs)
    sections += [("provenance", "Where the numbers come from")] * bool(rows)
    models = {row.first.label for row in rows}
    tasks = {(row.first.task, row.first.split) for row in rows}
    return {
        "title": content.title,
        "subtitle": f"{_plural(len(models), 'model')}, {_plural(len(tasks), 'task')}, "
        f"{_plural(len(evidence.logs), 'training run')}.",
        "sections": sections,
        "messages": _message_groups(evidence),
        "messages_title": f"{_plural(len(evidence.messages), 'message')} about these runs",
        "scores": score_table(score_frame(rows, content.peers), further),
        "by_hops": any(row.first.hops is not None for row in rows),
        "further": len(content.peers) - len(few),
        "notes": table_notes(few, 0) if rows else [],
        "texts": content.texts,
        "differences": differences,
        "verdicts": [_verdict(item) for item in content.differences if item.reason.first.hops is None],
        "has_pairs": bool(pairs),
        "pair_titles": [pair.title for pair in pairs],
        "figure_groups": groups,
        "provenance": provenance_table(rows),
        "footer": "Written by search-r3 report. This file is complete: it loads nothing.",
        "css": (_FILES / "page.css").read_text(encoding="utf-8"),
        "script": (_FILES / "page.js").read_text(encoding="utf-8"),
    }


def _message_groups(evidence: Evidence) -> list[dict[str, Any]]:
    groups = []
    for level, title in (("error", "not usable"), ("warning", "used with care"), ("note", "to know")):
        items = [message for message in evidence.messages if message.level == level]
        if items:
            groups.append({"title": f"{len(items)} {title}", "open": level != "note", "entries": items})
    return groups


def _pair_figures(pairs: Sequence[Pair]) -> list[Figure | LeftOut]:
    found: list[Figure | LeftOut | None] = []
    for number, pair in enumerate(pairs):
        differences = pair.differences()
        if differences:
            found.append(drawing.difference_figure(f"difference-{number}", differences))
        if pair.reason is not None and pair.reason.first.outcomes and pair.reason.first.mode != "direct":
            run = pair.reason.first
            found.append(drawing.length_figure(f"length-{number}", run.outcomes or {}, run.writes))
    return [figure for figure in found if figure is not None]


def _figure_groups(content: Content) -> list[FigureGroup]:
    rows = content.rows
    places: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in rows:
        places.setdefault(row.place[:3], []).append(row)
    cost: list[Figure | LeftOut | None] = []
    for number, mine in enumerate(places.values()):
        whole = [row for row in mine if row.first.hops is None]
        label = whole[0].first.task_label if whole else mine[0].first.task
        cost.append(drawing.time_figure(f"time-{number}", label, whole))
        cost.append(drawing.cost_figure(f"cost-{number}", label, whole))
        cost.append(drawing.hops_figure(f"hops-{number}", label, mine))
    cost.append(drawing.forced_figure("forced", rows))
    training = [figure for number, log in enumerate(content.evidence.logs) for figure in training_figures(log, number)]
    groups = [
        FigureGroup("cost", "Cost of reasoning", [figure for figure in cost if figure is not None]),
        FigureGroup("training", "Training runs", training, _TRAINING_TEXT),
        *content.extra_groups,
    ]
    return [group for group in groups if group.panels]


def _packed(figure: Figure | LeftOut) -> dict[str, Any]:
    if isinstance(figure, LeftOut):
        return {"title": figure.title, "caption": f"Not drawn: {figure.why}", "alt": "", "plot": None}
    return {"title": figure.title, "caption": figure.caption, "alt": figure.alt, "plot": figure.plot}


def _verdict(item: ReasoningDifference) -> str:
    """One sentence on a difference, with its interval."""
    run, result = item.reason.first, item.result
    budget = "" if run.max_reasoning_tokens is None else f" (at most {run.max_reasoning_tokens} tokens)"
    subject = f"{run.label} on {run.task_label}{budget}"
    if result is None:
        return f"{subject}: not tested, {item.why_untested}."
    effect = "changes nothing that can be told apart from chance" if not result.significant else None
    effect = effect or ("helps" if result.difference > 0 else "hurts")
    seeds, first, second = len(item.reason.runs), item.reason, item.direct
    rough = rough_time(
        (first.average("milliseconds"), second.average("milliseconds")), (first.first.queries, second.first.queries)
    )
    return (
        f"{subject}: reasoning {effect}: nDCG@10 {signed(result.difference)} "
        f"(95 % interval {signed(result.low)} to {signed(result.high)}, p = {p_value(result.p)}, "
        f"{_plural(result.queries, 'query', 'queries')}, {_plural(seeds, 'seed')}), {times_text(item.times)}{rough}."
    )


def _plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
