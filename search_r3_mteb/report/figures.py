"""The report's figures on evaluations: what reasoning changes per query, what it costs, and how often it is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_r3_mteb.evaluation.summary import condition
from search_r3_mteb.report.comparisons import ScoreRow
from search_r3_mteb.report.plot import (
    HELPED,
    HURT,
    NEUTRAL,
    Figure,
    LeftOut,
    blank_plot,
    error_bars,
    line_colour,
    plain_label,
    plot_json,
)
from search_r3_mteb.report.records import QueryOutcome

MOST_LABELS = 12  # of points in one figure: more would cover each other
LABELLED_AREA = (380.0, 230.0)  # pixels between the outermost points, at least: labels are kept apart for these


def difference_figure(name: str, differences: Sequence[tuple[str, float]]) -> Figure | LeftOut:
    """Per-query nDCG@10 with reasoning minus without, sorted. `differences` are (query id, difference)."""
    ordered = sorted(differences, key=lambda item: (-item[1], item[0]))
    values = np.round(np.array([value for _, value in ordered], dtype=np.float32), 4)
    rank = np.arange(1, len(values) + 1, dtype=np.int32)
    helped, hurt = int((values > 0).sum()), int((values < 0).sum())
    same = len(values) - helped - hurt
    title = "Difference for every query"
    if same == len(values):
        return LeftOut(name, title, f"nDCG@10 of all {len(values):,} queries is the same with and without reasoning.")
    plot = blank_plot("Queries, sorted by difference", "nDCG@10: reasoning minus direct")
    for label, part, colour in (("helped", values.clip(min=0), HELPED), ("hurt", values.clip(max=0), HURT)):
        plot.add_scatter(
            x=rank, y=part, name=label, mode="lines", fill="tozeroy", hoverinfo="skip",
            line={"shape": "hvh", "width": 1, "color": colour},
        )  # fmt: skip
    plot.add_scatter(
        x=rank, y=values, customdata=[key for key, _ in ordered], mode="lines", showlegend=False,
        line={"width": 0, "color": NEUTRAL}, hovertemplate="query %{customdata}: %{y:+.3f}<extra></extra>",
    )  # fmt: skip
    # The line without width is what the pointer finds; ten thousand markers would take a browser seconds to draw.
    plot.update_layout(hovermode="x")
    plot.update_xaxes(range=[0.5, len(values) + 0.5])
    plot.update_yaxes(zeroline=True)
    shares = (
        f"helped {_share(helped, len(values))}, unchanged {_share(same, len(values))}, hurt {_share(hurt, len(values))}"
    )
    return Figure(
        name,
        title,
        f"{len(values):,} queries: {shares}. Click a point to open its query below.",
        f"Sorted differences of nDCG@10 for {len(values)} queries: {shares}; "
        f"largest gain {values.max():+.2f}, largest loss {values.min():+.2f}.",
        plot_json(plot),
    )


def length_figure(name: str, outcomes: Mapping[str, QueryOutcome], writes: bool = False) -> Figure | LeftOut | None:
    """Histogram of reasoning lengths, forced rows apart. None where no query has a length.

    `writes`: they are a writer's texts, which were cut without an embed token.
    """
    known = [item for item in outcomes.values() if item.reasoning_tokens is not None]
    cut, how = ("cut", "") if writes else ("forced", " and the embed token appended")
    if not known:
        return None
    lengths = np.array([item.reasoning_tokens for item in known])
    forced = np.array([item.finished is False for item in known])
    title, share = "Length of the reasoning", _share(int(forced.sum()), len(known))
    if lengths.min() == lengths.max():
        why = f"all {len(known):,} reasonings have {lengths[0]} tokens; {share} {cut}."
        return LeftOut(name, title, why)
    step = max(1, math.ceil((int(lengths.max()) + 1) / 32))
    edges = np.arange(0, int(lengths.max()) + 1 + step, step)
    plot = blank_plot("Reasoning tokens", "Queries")
    for label, part, colour in (("finished by itself", lengths[~forced], HELPED), (cut, lengths[forced], HURT)):
        counts, _ = np.histogram(part, edges)
        plot.add_bar(
            x=edges[:-1] + step / 2, y=counts, width=step, name=label, marker_color=colour, customdata=edges[:-1],
            hovertemplate="from %{customdata} tokens: %{y} queries<extra></extra>",
        )  # fmt: skip
    plot.update_layout(barmode="stack", bargap=0.05)
    middle = float(np.median(lengths))
    return Figure(
        name,
        title,
        f"Median {middle:g} tokens, mean {lengths.mean():.1f}, longest {lengths.max()}; {share} {cut}: "
        f"the budget was spent{how}.",
        f"Histogram of reasoning lengths: median {middle:g} tokens, longest {lengths.max()}, {share} {cut}.",
        plot_json(plot),
    )


def cost_figure(name: str, task: str, rows: Sequence[ScoreRow]) -> Figure | None:
    """Quality over reasoning tokens per query: one line per model, one point per budget. None below two points."""
    points = _cost_points(rows)
    if sum(map(len, points.values())) < 2 or not any(
        row.first.mode == "reason" for p in points.values() for _, row in p
    ):
        return None
    plot = blank_plot("Reasoning tokens per query (mean)", "nDCG@10")
    for items in points.values():
        items.sort(key=lambda item: item[0])
    places = _labels([items for _, items in sorted(points.items())])
    for number, (model, items) in enumerate(sorted(points.items())):
        scores = [row.ndcg_at_10 or 0.0 for _, row in items]
        plot.add_scatter(
            x=[tokens for tokens, _ in items], y=scores, name=plain_label(model),
            line={"color": line_colour(number), "width": 2}, marker={"size": 9, "symbol": number % 6},
            error_y=error_bars(scores, [row.interval for _, row in items]),
            text=[_budget(row) for _, row in items], **places[number],
            hovertemplate="%{text}: %{x:.1f} tokens, nDCG@10 %{y:.3f}<extra>" + plain_label(model) + "</extra>",
        )  # fmt: skip
    plot.update_layout(showlegend=True)  # names the method where there is one only
    spoken = "; ".join(
        f"{model}: " + ", ".join(f"{row.ndcg_at_10:.3f} at {tokens:.0f} tokens" for tokens, row in items)
        for model, items in sorted(points.items())
    )
    return Figure(
        name,
        f"Quality against cost: {task}",
        "One point per budget; direct embedding is the point at zero. Bars are 95 % bootstrap intervals.",
        f"nDCG@10 over reasoning tokens per query on {task}. {spoken}.",
        plot_json(plot),
    )


def time_figure(name: str, task: str, rows: Sequence[ScoreRow]) -> Figure | None:
    """Quality over milliseconds per query, on a logarithmic axis: one point per method and budget.

    Rows whose time was not measured are left out, and so are given reasonings. None below two points.
    """
    own = [row for row in rows if row.first.mode != "given"]  # the writing of others was not timed
    points = [(time, row) for row in own if (time := row.average("milliseconds")) and _is_number(row.ndcg_at_10)]
    if len(points) < 2:
        return None
    plot = blank_plot("Time per query (ms, logarithmic)", "nDCG@10")
    lines: dict[str, list[tuple[float, ScoreRow]]] = {}
    for time, row in points:
        lines.setdefault(row.first.label, []).append((time, row))
    for items in lines.values():
        items.sort(key=lambda item: item[0])
    places = _labels([[(math.log(x), row) for x, row in items] for _, items in sorted(lines.items())])
    for number, (model, items) in enumerate(sorted(lines.items())):
        scores = [row.ndcg_at_10 or 0.0 for _, row in items]
        tokens = [row.average("reasoning_tokens_per_query") for _, row in items]
        plot.add_scatter(
            x=[time for time, _ in items], y=scores, name=plain_label(model),
            **places[number],
            line={"color": line_colour(number), "width": 1, "dash": "dot"}, marker={"size": 9, "symbol": number % 6},
            error_y=error_bars(scores, [row.interval for _, row in items]),
            text=[_budget(row) for _, row in items], customdata=[0.0 if each is None else each for each in tokens],
            hovertemplate="%{text}: %{x:.1f} ms and %{customdata:.0f} tokens per query, nDCG@10 %{y:.3f}<extra>"
            + plain_label(model) + "</extra>",
        )  # fmt: skip
    plot.update_xaxes(type="log")
    plot.update_layout(showlegend=True)  # names the method where there is one only
    plot.update_layout(height=320 + 20 * len(lines))  # the legend stands above the data, one line per model at worst
    spoken = "; ".join(
        f"{model}: " + ", ".join(f"{row.ndcg_at_10:.3f} at {time:.3g} ms ({_budget(row)})" for time, row in items)
        for model, items in sorted(lines.items())
    )
    caption = "One point per method and budget, on the machine of the runs. Bars are 95 % bootstrap intervals."
    return Figure(
        name,
        f"Quality against time per query: {task}",
        caption,
        f"nDCG@10 over milliseconds per query on {task}. {spoken}.",
        plot_json(plot),
    )


def _labels(lines: Sequence[Sequence[tuple[float, ScoreRow]]]) -> list[dict[str, Any]]:
    """How each line's points are drawn: with method and budget beside them, unless there are too many to be read.

    `lines` hold (place along the axis, row). A label stands towards the middle of the figure, and above a point that is
    higher than its line's mean, below another: there the line is not. Where it would cover an earlier label, as that of
    a point in the same place, it goes to another side of its point.
    """
    every = [place for items in lines for place, _ in items]
    if len(every) > MOST_LABELS:
        return [{"mode": "lines+markers"}] * len(lines)
    middle = (min(every) + max(every)) / 2
    ends = [end for items in lines for _, row in items for end in (row.interval or ()) or (row.ndcg_at_10 or 0.0,)]
    across, up = (max(values) - min(values) or 1.0 for values in (every, ends))
    taken: list[tuple[float, float, float, float]] = []
    found: list[dict[str, Any]] = []
    for items in lines:
        scores = [row.ndcg_at_10 or 0.0 for _, row in items]
        positions = []
        for (place, row), score in zip(items, scores, strict=True):
            at = (place / across * LABELLED_AREA[0], score / up * LABELLED_AREA[1])
            wanted = ("top" if score >= sum(scores) / len(scores) else "bottom", "right" if place <= middle else "left")
            boxes = {name: _label_box(at, name, len(_budget(row))) for name in _sides(*wanted)}
            position = min(boxes, key=lambda name: sum(_shared_area(boxes[name], other) for other in taken))
            taken.append(boxes[position])
            positions.append(position)
        drawn = {"mode": "lines+markers+text", "textposition": positions, "textfont": {"size": 11}}
        found.append(drawn | {"cliponaxis": False})
    return found


def _sides(up: str, across: str) -> list[str]:
    """The positions of a label, the wanted one first."""
    ups, acrosses = ([up, *({"top", "bottom"} - {up})], [across, *({"left", "right"} - {across})])
    return [f"{one} {other}" for other in acrosses for one in [*ups, "middle"]]


def _label_box(at: tuple[float, float], position: str, letters: int) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a label beside a point, in pixels."""
    (x, y), (width, height) = at, (6.5 * letters, 14.0)
    left = x if position.endswith("right") else x - width
    bottom = y + {"top": 5.0, "middle": -height / 2, "bottom": -5.0 - height}[position.split()[0]]
    return left, bottom, left + width, bottom + height


def _shared_area(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)


def _cost_points(rows: Sequence[ScoreRow]) -> dict[str, list[tuple[float, ScoreRow]]]:
    """(tokens, row) by model; variants of a model without a direct row of their own share the model's."""
    points: dict[str, list[tuple[float, ScoreRow]]] = {}
    for row in rows:
        if row.first.mode == "given":  # its tokens were generated elsewhere
            continue
        tokens = 0.0 if row.first.mode == "direct" else row.average("reasoning_tokens_per_query")
        if tokens is not None and not math.isnan(tokens) and _is_number(row.ndcg_at_10):
            points.setdefault(row.first.label, []).append((tokens, row))
    for items in points.values():
        shared = points.get(items[0][1].first.model, [])
        if shared is not items and not any(tokens == 0 for tokens, _ in items):
            items.extend(point for point in shared if point[0] == 0)
    return points


def hops_figure(name: str, task: str, rows: Sequence[ScoreRow]) -> Figure | LeftOut | None:
    """Quality by hop count, for each model direct and with its largest budget. None where no row has a hop count."""
    budgets: dict[str, float] = {}
    for row in rows:
        if row.first.mode == "reason":
            budgets[row.first.label] = max(budgets.get(row.first.label, -1.0), row.budget)
    lines: dict[str, list[ScoreRow]] = {}
    for row in rows:
        largest = row.first.mode != "reason" or row.budget == budgets[row.first.label]
        if row.first.hops is not None and largest and _is_number(row.ndcg_at_10):
            lines.setdefault(f"{row.first.label}, {_budget(row)}", []).append(row)
    if not lines:
        return None
    title, shown = f"Quality by hop count: {task}", [row for items in lines.values() for row in items]
    if len({row.first.hops for row in shown}) < 2:
        return LeftOut(name, title, f"all queries have {shown[0].first.hops} hops.")
    plot = blank_plot("Hops", "nDCG@10")
    for number, (label, items) in enumerate(sorted(lines.items())):
        items.sort(key=lambda row: row.first.hops or 0)
        scores = [row.ndcg_at_10 or 0.0 for row in items]
        dash = "dot" if items[0].first.mode == "direct" else "solid"
        plot.add_scatter(
            x=[row.first.hops for row in items], y=scores, name=label, mode="lines+markers",
            line={"color": line_colour(number), "width": 2, "dash": dash}, marker={"size": 8, "symbol": number % 6},
            error_y=error_bars(scores, [row.interval for row in items]),
            hovertemplate="%{x} hops: nDCG@10 %{y:.3f}<extra>" + plain_label(label) + "</extra>",
        )  # fmt: skip
    plot.update_xaxes(dtick=1)
    plot.update_layout(height=280 + 20 * len(lines))  # room for the legend on a narrow screen
    spoken = "; ".join(
        f"{label}: " + ", ".join(f"{row.first.hops} hops {row.ndcg_at_10:.3f}" for row in items)
        for label, items in sorted(lines.items())
    )
    caption = "Reasoning at the largest budget; dotted: direct embedding. Bars are 95 % bootstrap intervals."
    return Figure(name, title, caption, f"nDCG@10 by hops on {task}. {spoken}.", plot_json(plot))


def forced_figure(name: str, rows: Sequence[ScoreRow]) -> Figure | LeftOut | None:
    """Share of queries whose reasoning was cut at the budget, with Wilson intervals. None where no row reasons."""
    from scipy.stats import binomtest

    shown = [
        (row, row.average("forced_share")) for row in rows if row.first.mode == "reason" and row.first.hops is None
    ]
    bars = [(row, share) for row, share in shown if share is not None and 0 <= share <= 1]
    if not bars:
        return None
    kinds = {not row.first.writes for row, _ in bars}
    title = "Share of forced rows" if True in kinds else "Share of queries with a text cut at the budget"
    if not any(share for _, share in bars):
        return LeftOut(name, title, f"no query was cut at its budget in any of the {len(bars)} rows that reason.")
    labels = [f"{row.first.task_label}<br>{plain_label(row.first.label)}{_most(row)}" for row, _ in bars]
    bounds = []
    for row, share in bars:
        queries = (row.first.queries or 0) * len(row.runs)
        test = binomtest(round(share * queries), queries).proportion_ci(method="wilson") if queries else None
        bounds.append((test.low, test.high) if test else (share, share))
    plot = blank_plot("Share of queries", "")
    plot.add_bar(
        y=labels, x=[share for _, share in bars], orientation="h", marker_color=HURT, showlegend=False,
        error_x=error_bars([share for _, share in bars], bounds) | {"color": NEUTRAL},
        hovertemplate="%{x:.1%}<extra></extra>",
    )  # fmt: skip
    plot.update_xaxes(tickformat=".0%", range=[0, 1])
    plot.update_yaxes(autorange="reversed")
    plot.update_layout(height=110 + 46 * len(bars))
    spoken = "; ".join(
        f"{label.replace('<br>', ', ')}: {share:.1%}" for label, (_, share) in zip(labels, bars, strict=True)
    )
    ours, theirs = (
        "The embed token was appended because the budget ended first",
        "a text was cut where its budget ended",
    )
    what = ours if kinds == {True} else f"{ours}; of a writer, {theirs}" if True in kinds else theirs.capitalize()
    return Figure(name, title, f"{what}. Bars are 95 % Wilson intervals.", f"{title}. {spoken}.", plot_json(plot))


def _budget(row: ScoreRow) -> str:
    return f"reasoning{_most(row)}" if row.first.mode == "reason" else row.first.mode


def _most(row: ScoreRow) -> str:
    return condition("", row.first.max_reasoning_tokens, row.first.samples, row.first.anchor)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
