"""The report's figures on training runs: losses, rewards, quality, and the age and error of the corpus cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from search_r3_mteb.report.plot import (
    MOST_POINTS,
    PALETTE,
    Figure,
    LeftOut,
    all_equal,
    blank_plot,
    line_colour,
    plain_label,
    plot_json,
)
from search_r3_mteb.report.records import TrainingLog

_DASHES = ("solid", "dash", "dot")


def training_figures(log: TrainingLog, number: int) -> list[Figure | LeftOut]:
    """Losses, rewards, retrieval quality, and the age and error of the corpus cache of one training run."""
    title = log.name if log.name == log.kind else f"{log.name} ({log.kind})"
    keys = _numeric_keys(log.steps)
    groups = [
        ("loss", "Loss", "Loss", [key for key in keys if key.startswith("loss")], log.steps),
        ("reward", "Reward", "Reward", [key for key in keys if "reward" in key], log.steps),
        (
            *("rollouts", "Rollouts", "Tokens per rollout"),
            [k for k in keys if k in ("reasoning_tokens", "response_tokens", "length_mean")],
            log.steps,
        ),
        ("forced", "Share forced", "Share of rollouts", [key for key in keys if "forced" in key], log.steps),
    ]
    audits = _numeric_keys(log.audits)
    age, error = "Age of the cached vectors (optimizer steps)", "Error of the cached vectors"
    groups += [
        ("age", age, "Optimizer steps", [key for key in audits if "age" in key], log.audits),
        ("error", error, "Error, or share found", [k for k in audits if "error" in k or "recall" in k], log.audits),
    ]
    figures = [
        _curves(f"train-{number}-{key}", f"{label}: {title}", names, rows, axis)
        for key, label, axis, names, rows in groups
    ]
    figures.append(_quality_curve(f"train-{number}-quality", title, log))
    return [figure for figure in figures if figure is not None]


def _quality_curve(name: str, title: str, log: TrainingLog) -> Figure | LeftOut | None:
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in log.evaluations:
        parts = [str(row[key]) for key in ("task", "mode") if row.get(key) is not None]
        hops = [f"{row['hops']} hops"] if row.get("hops") is not None else []
        hops += [f"{row['dim']} dimensions"] if row.get("dim") is not None else []
        lines.setdefault(", ".join(parts + hops) or "evaluation", []).append({
            "step": row["step"], ", ".join(parts + hops) or "evaluation": row.get("ndcg_at_10")
        })  # fmt: skip
    rows = [row for line in lines.values() for row in line]
    return _curves(name, f"Quality while training: {title}", list(lines), rows, "nDCG@10")


def _curves(
    name: str, title: str, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], axis: str
) -> Figure | LeftOut | None:
    plot = blank_plot("Optimizer step", axis)
    ends, thinned, drawn, most, flat = [], 0, 0, 0, True
    for number, key in enumerate(keys):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float) or _gap(row, key)]
        if not any(value is not None for _, value in points):
            continue
        most = max(most, len(points))
        flat = flat and all_equal(value for _, value in points)
        stride = max(1, math.ceil(len(points) / MOST_POINTS))
        thinned = max(thinned, stride)
        points = [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else [])]
        plot.add_scatter(
            x=[step for step, _ in points], y=[value for _, value in points], name=plain_label(key.replace("_", " ")),
            mode="lines+markers" if len(points) < 40 else "lines",
            line={"color": line_colour(drawn), "width": 2, "dash": _DASHES[number // len(PALETTE) % len(_DASHES)]},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + plain_label(key) + "</extra>",
        )  # fmt: skip
        drawn += 1
        last = next(value for _, value in reversed(points) if value is not None)
        ends.append(f"{key.replace('_', ' ')} ends at {last:.4g}")
    if not drawn:
        return None
    if flat:
        values = "; ".join(ends).replace(" ends at ", " is ")
        return LeftOut(
            name, title, f"{values} {'at the one step' if most == 1 else f'at each of the {most:,} steps'} logged."
        )
    plot.update_layout(showlegend=True)
    plot.update_xaxes(rangemode="tozero")
    if all("share" in key or "age" in key for key in keys):
        plot.update_yaxes(rangemode="tozero")
    caption = "; ".join(ends) + "." + (f" One step in {thinned} is drawn." if thinned > 1 else "")
    return Figure(name, title, caption, f"{title}: {caption}", plot_json(plot))


def _gap(row: Mapping[str, Any], key: str) -> bool:
    """Whether the curve has a gap here: the value was NaN, not absent."""
    return key in row and row[key] is None


def _numeric_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return sorted(keys - {"step", "seconds"})
