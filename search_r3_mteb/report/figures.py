"""The report's figures as plotly figures, without colours of their own for text and grid: the page sets those for light and dark.

A figure is data, not a drawing: `Figure.plot` is the JSON that plotly.js draws in the reader's browser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_r3_mteb.report.comparisons import ScoreRow
from search_r3_mteb.report.records import QueryOutcome, TrainingLog

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Distinguishable with the common colour blindnesses, readable on white and on black.
HELPED, HURT, NEUTRAL = "#2f8fd0", "#e07b1a", "#8a93a0"
PALETTE = (HELPED, HURT, "#1fa187", "#a06bd0", "#d0558b", "#b59a1f", NEUTRAL)
_POINTS_PER_CURVE = 1_500


@dataclass(frozen=True)
class Figure:
    """One figure: its plotly JSON, the sentence above it, and the words that stand in for it when it is not seen."""

    name: str
    title: str
    caption: str
    alt: str
    plot: dict[str, Any]


def difference_figure(name: str, differences: Sequence[tuple[str, float]]) -> Figure:
    """Per-query nDCG@10 with reasoning minus without, sorted. `differences` are (query id, difference)."""
    import numpy as np
    import plotly.graph_objects as go

    ordered = sorted(differences, key=lambda item: (-item[1], item[0]))
    values = np.round(np.array([value for _, value in ordered], dtype=np.float32), 4)
    rank = np.arange(1, len(values) + 1, dtype=np.int32)
    helped, hurt = int((values > 0).sum()), int((values < 0).sum())
    same = len(values) - helped - hurt
    plot = _figure("Queries, sorted by difference", "nDCG@10: reasoning minus direct")
    for label, part, colour in (("helped", values.clip(min=0), HELPED), ("hurt", values.clip(max=0), HURT)):
        plot.add_trace(
            go.Scatter(
                x=rank, y=part, name=label, mode="lines", fill="tozeroy", line={"shape": "hvh", "width": 1, "color": colour},
                hoverinfo="skip",
            )
        )  # fmt: skip
    plot.add_trace(
        go.Scatter(
            x=rank, y=values, customdata=[key for key, _ in ordered], mode="lines", showlegend=False,
            line={"width": 0, "color": NEUTRAL}, hovertemplate="query %{customdata}: %{y:+.3f}<extra></extra>",
        )
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
        "Difference for every query",
        f"{len(values):,} queries: {shares}. Click a point to open its query below.",
        f"Sorted differences of nDCG@10 for {len(values)} queries: {shares}; "
        f"largest gain {values.max():+.2f}, largest loss {values.min():+.2f}.",
        _json(plot),
    )


def length_figure(name: str, outcomes: Mapping[str, QueryOutcome]) -> Figure | None:
    """Histogram of reasoning lengths, forced rows apart. None where no query has a length."""
    import numpy as np
    import plotly.graph_objects as go

    known = [item for item in outcomes.values() if item.reasoning_tokens is not None]
    if not known:
        return None
    lengths = np.array([item.reasoning_tokens for item in known])
    forced = np.array([item.finished is False for item in known])
    step = max(1, math.ceil((int(lengths.max()) + 1) / 32))
    edges = np.arange(0, int(lengths.max()) + 1 + step, step)
    plot = _figure("Reasoning tokens", "Queries")
    for label, part, colour in (("finished by itself", lengths[~forced], HELPED), ("forced", lengths[forced], HURT)):
        counts, _ = np.histogram(part, edges)
        plot.add_trace(
            go.Bar(
                x=edges[:-1] + step / 2, y=counts, width=step, name=label, marker_color=colour, customdata=edges[:-1],
                hovertemplate="from %{customdata} tokens: %{y} queries<extra></extra>",
            )
        )  # fmt: skip
    plot.update_layout(barmode="stack", bargap=0.05)
    middle, share = float(np.median(lengths)), _share(int(forced.sum()), len(known))
    return Figure(
        name,
        "Length of the reasoning",
        f"Median {middle:g} tokens, mean {lengths.mean():.1f}, longest {lengths.max()}; {share} forced: "
        "the budget was spent and the embed token appended.",
        f"Histogram of reasoning lengths: median {middle:g} tokens, longest {lengths.max()}, {share} forced.",
        _json(plot),
    )


def cost_figure(name: str, task: str, rows: Sequence[ScoreRow]) -> Figure | None:
    """Quality over reasoning tokens per query, one point a budget, one line a model. None with fewer than two points."""
    import plotly.graph_objects as go

    points = _cost_points(rows)
    if sum(map(len, points.values())) < 2 or not any(
        row.first.mode == "reason" for p in points.values() for _, row in p
    ):
        return None
    plot = _figure("Reasoning tokens per query (mean)", "nDCG@10")
    for number, (model, items) in enumerate(sorted(points.items())):
        items.sort(key=lambda item: item[0])
        scores = [row.ndcg_at_10 or 0.0 for _, row in items]
        high = [
            (row.interval[1] - value) if row.interval else 0.0 for (_, row), value in zip(items, scores, strict=True)
        ]
        low = [
            (value - row.interval[0]) if row.interval else 0.0 for (_, row), value in zip(items, scores, strict=True)
        ]
        plot.add_trace(
            go.Scatter(
                x=[tokens for tokens, _ in items], y=scores, name=_plain_text(model), mode="lines+markers",
                line={"color": _colour(number), "width": 2}, marker={"size": 9, "symbol": number % 6},
                error_y={"array": high, "arrayminus": low, "symmetric": False, "thickness": 1, "width": 3},
                text=[_budget(row) for _, row in items],
                hovertemplate="%{text}: %{x:.1f} tokens, nDCG@10 %{y:.3f}<extra>" + _plain_text(model) + "</extra>",
            )
        )  # fmt: skip
    spoken = "; ".join(
        f"{model}: " + ", ".join(f"{row.ndcg_at_10:.3f} at {tokens:.0f} tokens" for tokens, row in items)
        for model, items in sorted(points.items())
    )
    return Figure(
        name,
        f"Quality against cost: {task}",
        "One point a budget; direct embedding is the point at zero. Bars are 95 % bootstrap intervals.",
        f"nDCG@10 over reasoning tokens per query on {task}. {spoken}.",
        _json(plot),
    )


def _cost_points(rows: Sequence[ScoreRow]) -> dict[str, list[tuple[float, ScoreRow]]]:
    """(tokens, row) by model; a model shown in several variants shares the direct row that none of them has of its own."""
    points: dict[str, list[tuple[float, ScoreRow]]] = {}
    for row in rows:
        tokens = 0.0 if row.first.mode != "reason" else row.average("reasoning_tokens_per_query")
        if tokens is not None and not math.isnan(tokens) and _is_number(row.ndcg_at_10):
            points.setdefault(row.first.label, []).append((tokens, row))
    for items in points.values():
        shared = points.get(items[0][1].first.model, [])
        if shared is not items and not any(tokens == 0 for tokens, _ in items):
            items.extend(point for point in shared if point[0] == 0)
    return points


def hops_figure(name: str, task: str, rows: Sequence[ScoreRow]) -> Figure | None:
    """Quality by hop count, for each model direct and with its largest budget. None where no row has a hop count."""
    import plotly.graph_objects as go

    budgets: dict[str, float] = {}
    for row in rows:
        if row.first.mode == "reason":
            budgets[row.first.label] = max(budgets.get(row.first.label, -1.0), _tokens(row))
    lines: dict[str, list[ScoreRow]] = {}
    for row in rows:
        largest = row.first.mode != "reason" or _tokens(row) == budgets[row.first.label]
        if row.first.hops is not None and largest and _is_number(row.ndcg_at_10):
            lines.setdefault(f"{row.first.label}, {_budget(row)}", []).append(row)
    if not lines:
        return None
    plot = _figure("Hops", "nDCG@10")
    for number, (label, items) in enumerate(sorted(lines.items())):
        items.sort(key=lambda row: row.first.hops or 0)
        scores = [row.ndcg_at_10 or 0.0 for row in items]
        plot.add_trace(
            go.Scatter(
                x=[row.first.hops for row in items], y=scores, name=label, mode="lines+markers",
                line={"color": _colour(number), "width": 2, "dash": "dot" if items[0].first.mode == "direct" else "solid"},
                marker={"size": 8, "symbol": number % 6},
                error_y={
                    "array": [row.interval[1] - s if row.interval else 0.0 for row, s in zip(items, scores, strict=True)],
                    "arrayminus": [s - row.interval[0] if row.interval else 0.0 for row, s in zip(items, scores, strict=True)],
                    "symmetric": False, "thickness": 1, "width": 3,
                },
                hovertemplate="%{x} hops: nDCG@10 %{y:.3f}<extra>" + _plain_text(label) + "</extra>",
            )
        )  # fmt: skip
    plot.update_xaxes(dtick=1)
    plot.update_layout(height=280 + 20 * len(lines))  # room for the legend on a narrow screen
    spoken = "; ".join(
        f"{label}: " + ", ".join(f"{row.first.hops} hops {row.ndcg_at_10:.3f}" for row in items)
        for label, items in sorted(lines.items())
    )
    caption = "Reasoning at the largest budget; dotted: direct embedding. Bars are 95 % bootstrap intervals."
    return Figure(name, f"Quality by hop count: {task}", caption, f"nDCG@10 by hops on {task}. {spoken}.", _json(plot))


def forced_figure(name: str, rows: Sequence[ScoreRow]) -> Figure | None:
    """Share of queries whose reasoning was cut at the budget, with Wilson intervals. None where no row reasons."""
    import plotly.graph_objects as go
    from scipy.stats import binomtest

    shown = [
        (row, row.average("forced_share")) for row in rows if row.first.mode == "reason" and row.first.hops is None
    ]
    bars = [(row, share) for row, share in shown if share is not None and 0 <= share <= 1]
    if not bars:
        return None
    labels = [f"{row.first.task_label}<br>{_plain_text(row.first.label)}{_most(row)}" for row, _ in bars]
    bounds = []
    for row, share in bars:
        queries = (row.first.queries or 0) * len(row.runs)
        test = binomtest(round(share * queries), queries).proportion_ci(method="wilson") if queries else None
        bounds.append((test.low, test.high) if test else (share, share))
    plot = _figure("Share of queries", "")
    plot.add_trace(
        go.Bar(
            y=labels, x=[share for _, share in bars], orientation="h", marker_color=HURT, showlegend=False,
            error_x={
                "array": [max(0.0, high - share) for (_, share), (_, high) in zip(bars, bounds, strict=True)],
                "arrayminus": [max(0.0, share - low) for (_, share), (low, _) in zip(bars, bounds, strict=True)],
                "symmetric": False, "thickness": 1, "width": 3, "color": NEUTRAL,
            },
            hovertemplate="%{x:.1%} forced<extra></extra>",
        )
    )  # fmt: skip
    plot.update_xaxes(tickformat=".0%", range=[0, 1])
    plot.update_yaxes(autorange="reversed")
    plot.update_layout(height=110 + 46 * len(bars))
    spoken = "; ".join(
        f"{label.replace('<br>', ', ')}: {share:.1%}" for label, (_, share) in zip(labels, bars, strict=True)
    )
    caption = "The embed token was appended because the budget ended first. Bars are 95 % Wilson intervals."
    return Figure(name, "Share of forced rows", caption, f"Share of forced rows. {spoken}.", _json(plot))


def training_figures(log: TrainingLog, number: int) -> list[Figure]:
    """Losses, rewards, retrieval quality, and the age and error of the corpus cache of one training run."""
    title = log.name if log.name == log.kind else f"{log.name} ({log.kind})"
    keys = _numeric_keys(log.steps)
    groups = [
        ("loss", "Loss", [key for key in keys if key.startswith("loss")], log.steps),
        ("reward", "Reward", [key for key in keys if "reward" in key], log.steps),
        (
            "rollouts",
            "Rollouts",
            [k for k in keys if k in ("reasoning_tokens", "response_tokens", "length_mean")],
            log.steps,
        ),
        ("forced", "Share forced", [key for key in keys if "forced" in key], log.steps),
    ]
    audits = _numeric_keys(log.audits)
    groups += [
        ("age", "Age of the cached vectors (optimizer steps)", [key for key in audits if "age" in key], log.audits),
        ("error", "Error of the cached vectors", [k for k in audits if "error" in k or "recall" in k], log.audits),
    ]
    figures = [_curves(f"train-{number}-{key}", f"{label}: {title}", names, rows) for key, label, names, rows in groups]
    figures.append(_quality_curve(f"train-{number}-quality", title, log))
    return [figure for figure in figures if figure is not None]


def _quality_curve(name: str, title: str, log: TrainingLog) -> Figure | None:
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in log.evaluations:
        parts = [str(row[key]) for key in ("task", "mode") if row.get(key) is not None]
        hops = [f"{row['hops']} hops"] if row.get("hops") is not None else []
        lines.setdefault(", ".join(parts + hops) or "evaluation", []).append({
            "step": row["step"], ", ".join(parts + hops) or "evaluation": row.get("ndcg_at_10")
        })  # fmt: skip
    rows = [row for line in lines.values() for row in line]
    return _curves(name, f"Quality while training: {title}", list(lines), rows, "nDCG@10")


def _curves(
    name: str, title: str, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], axis: str = ""
) -> Figure | None:
    import plotly.graph_objects as go

    plot = _figure("Optimizer step", axis)
    ends, thinned, drawn = [], 0, 0
    for number, key in enumerate(keys):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float) or _gap(row, key)]
        if not any(value is not None for _, value in points):
            continue
        stride = max(1, math.ceil(len(points) / _POINTS_PER_CURVE))
        thinned = max(thinned, stride)
        points = [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else [])]
        plot.add_trace(
            go.Scatter(
                x=[step for step, _ in points], y=[value for _, value in points], name=_plain_text(key.replace("_", " ")),
                mode="lines+markers" if len(points) < 40 else "lines",
                line={"color": _colour(drawn), "width": 2, "dash": ("solid", "dash", "dot")[number // len(PALETTE) % 3]},
                hovertemplate="step %{x}: %{y:.4g}<extra>" + _plain_text(key) + "</extra>",
            )
        )  # fmt: skip
        drawn += 1
        last = next(value for _, value in reversed(points) if value is not None)
        ends.append(f"{key.replace('_', ' ')} ends at {last:.4g}")
    if not drawn:
        return None
    plot.update_layout(showlegend=True)
    if all("share" in key or "age" in key for key in keys):
        plot.update_yaxes(rangemode="tozero")
    caption = "; ".join(ends) + "." + (f" One step in {thinned} is drawn." if thinned > 1 else "")
    return Figure(name, title, caption, f"{title}: {caption}", _json(plot))


def _gap(row: Mapping[str, Any], key: str) -> bool:
    """A value that was NaN is a gap in the curve; a step that never had the key is not."""
    return key in row and row[key] is None


def _numeric_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return sorted(keys - {"step", "seconds"})


def _figure(x: str, y: str) -> go.Figure:
    import plotly.graph_objects as go

    plot = go.Figure(layout={"template": None})
    plot.update_layout(
        margin={"l": 56, "r": 12, "t": 8, "b": 48},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "traceorder": "normal"},
        height=320,
        hovermode="closest",
    )
    plot.update_xaxes(title_text=x, automargin=True, zeroline=False)
    plot.update_yaxes(title_text=y, automargin=True, zeroline=False)
    return plot


def _json(plot: go.Figure) -> dict[str, Any]:
    import json

    result: dict[str, Any] = json.loads(plot.to_json())
    return result


def _budget(row: ScoreRow) -> str:
    if row.first.mode != "reason":
        return row.first.mode
    tokens = row.first.max_reasoning_tokens
    return "reasoning" if tokens is None else f"reasoning ≤ {tokens}"


def _tokens(row: ScoreRow) -> float:
    tokens = row.first.max_reasoning_tokens
    return math.inf if tokens is None else tokens


def _most(row: ScoreRow) -> str:
    tokens = row.first.max_reasoning_tokens
    return "" if tokens is None else f" ≤ {tokens}"


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _plain_text(text: str) -> str:
    """Plotly reads a subset of HTML in labels: names must not become markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
