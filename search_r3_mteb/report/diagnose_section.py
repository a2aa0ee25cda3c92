"""The report's sections on `search-r3 diagnose`: the verdict and the figures behind it, one section per diagnosis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_r3_mteb.report.plot import (
    HELPED,
    HURT,
    MOST_POINTS,
    NEUTRAL,
    PALETTE,
    Figure,
    FigureGroup,
    LeftOut,
    all_equal,
    blank_plot,
    error_bars,
    line_colour,
    plain_label,
    plot_json,
)
from search_r3_mteb.report.records import Evidence

_VERSION_READ = 1
_ADVICE = "Run search-r3 diagnose again."
_CONTROL_LABELS = {
    "own": "own reasoning",
    "other": "another query's",
    "shuffled": "own, words shuffled",
    "none": "empty reasoning",
    "direct": "direct template",
}
JsonObject = Mapping[str, Any]


def diagnose_groups(evidence: Evidence) -> list[FigureGroup]:
    """One group of figures for each diagnose.json; a message in `evidence` for each that cannot be used."""
    groups = []
    for number, data in enumerate(evidence.diagnoses):
        where = str(data.get("source"))
        if data.get("version") != _VERSION_READ:
            problem = f"is not a diagnosis of version {_VERSION_READ} (its version is {data.get('version')!r})"
            evidence.error(where, f"{problem}: left out. {_ADVICE}")
            continue
        try:
            groups.append(_group(data, number))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            problem = f"lacks a part of a diagnosis ({type(error).__name__}: {error})"
            evidence.error(where, f"{problem}: left out. {_ADVICE}")
    return groups


def _group(data: JsonObject, number: int) -> FigureGroup:
    first, name = data["groups"][0], f"diagnose-{number}"
    drawn = len(data["per_query"]["query_id"])
    origin = f"{drawn:,} of {data['queries_in_task']:,} judged queries, commit {data['commit'][:12]}."
    skipped = "; ".join(f"budget {each['max_reasoning_tokens']}: {each['why']}" for each in data["skipped"])
    return FigureGroup(
        name,
        f"Does the reasoning matter? {data['model']} on {data['task']}",
        [
            _controls_figure(f"{name}-controls", data["groups"]),
            _cosine_figure(f"{name}-cosines", data["per_query"], first["movement"]),
            _spread_figure(f"{name}-spread", data["per_query"], first["movement"]),
            _budget_figure(f"{name}-budgets", data["groups"]),
            _pooling_figure(f"{name}-pooling", first),
            _length_figure(f"{name}-lengths", first["lengths"]),
        ],
        f"{data['verdict']['text']} {origin}" + (f" Not measured: {skipped}." if skipped else ""),
    )


def _controls_figure(name: str, groups: Sequence[JsonObject]) -> Figure | LeftOut:
    title = "The same queries after another reasoning"
    means = [group["controls"][key]["ndcg_at_10"]["mean"] for group in groups for key in _CONTROL_LABELS]
    if all_equal(means):
        return LeftOut(name, title, f"nDCG@10 is {means[0]:.3f} with every reasoning.")
    plot = blank_plot("", "nDCG@10")
    labels = [_label(group) for group in groups]
    colours = (HELPED, HURT, *PALETTE[2:4], NEUTRAL)
    for (key, label), colour in zip(_CONTROL_LABELS.items(), colours, strict=True):
        qualities = [group["controls"][key]["ndcg_at_10"] for group in groups]
        plot.add_bar(
            x=labels, **_means(qualities), name=label, marker_color=colour,
            hovertemplate="%{x}: %{y:.3f}<extra>" + label + "</extra>",
        )  # fmt: skip
    plot.update_layout(barmode="group", bargap=0.2)
    controls = groups[0]["controls"]
    said = "; ".join(
        f"{_CONTROL_LABELS[key]} {_shown(controls[key]['own_minus_this'])}" for key in list(_CONTROL_LABELS)[1:]
    )
    caption = f"All queries, own reasoning minus: {said}. Bars are 95 % bootstrap intervals."
    return Figure(name, title, caption, caption, plot_json(plot))


def _cosine_figure(name: str, columns: JsonObject, movement: JsonObject) -> Figure | LeftOut:
    same, different = (np.array(columns[key], dtype=float) for key in ("cosine_same", "cosine_different"))
    title, lowest = "Does the vector move with the reasoning?", min(float(same.min()), float(different.min()))
    if all_equal([*same.tolist(), *different.tolist()]):
        return LeftOut(name, title, f"the cosine of any two vectors is {lowest:.3f}.")
    edges = np.linspace(math.floor(lowest * 20) / 20, 1.0, 41)
    plot = blank_plot("Mean cosine", "Queries")
    pairs = (("the same query, other rollouts", same, HELPED), ("other queries", different, NEUTRAL))
    for label, values, colour in pairs:
        counts, _ = np.histogram(values.clip(max=1.0), edges)
        plot.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=counts, width=edges[1] - edges[0], name=label, marker_color=colour,
            opacity=0.75, hovertemplate="%{x:.3f}: %{y} queries<extra>" + label + "</extra>",
        )  # fmt: skip
    plot.update_layout(barmode="overlay", bargap=0)
    reworded = movement["same_query_other_words"]
    between = "" if reworded is None else f", {reworded['mean']:.3f} where the words differ"
    ratio = movement["distance_ratio"]
    moved = f" Rollouts of one query lie {ratio['mean']:.0%} as far apart as different queries do." if ratio else ""
    caption = (
        f"Mean cosine {movement['same_query']['mean']:.3f} between {movement['rollouts']} rollouts of one query"
        f"{between}, {movement['different_queries']['mean']:.3f} between queries; "
        f"{movement['distinct_reasonings']['mean']:.1f} different reasonings per query.{moved}"
    )
    return Figure(name, title, caption, caption, plot_json(plot))


def _spread_figure(name: str, columns: JsonObject, movement: JsonObject) -> Figure | LeftOut:
    points = list(zip(columns["query_id"], columns["cosine_same"], columns["ndcg_spread"], strict=True))
    title = "What different rollouts are worth"
    if all_equal(spread for *_, spread in points):
        return LeftOut(name, title, f"the spread of nDCG@10 between rollouts is {points[0][2]:.3f} for every query.")
    stride = max(1, math.ceil(len(points) / MOST_POINTS))
    points = points[::stride]
    plot = blank_plot("Cosine between rollouts of the query", "Standard deviation of nDCG@10")
    plot.add_scatter(
        x=[x for _, x, _ in points], y=[y for *_, y in points], customdata=[plain_label(key) for key, *_ in points],
        mode="markers", marker={"color": HELPED, "size": 6, "opacity": 0.5}, showlegend=False,
        hovertemplate="%{customdata}: cosine %{x:.3f}, spread %{y:.3f}<extra></extra>",
    )  # fmt: skip
    share = movement["variance_within_queries"]
    within = "" if share is None else f" {share:.0%} of the variance of nDCG@10 lies within queries."
    rank = movement["correlation_movement_margin_spread"]
    related = "" if rank is None else f" Movement and spread of the margin: rank correlation {rank:+.2f}."
    thinned = f" One query in {stride} is drawn." if stride > 1 else ""
    caption = (
        f"Best rollout {movement['best_rollout']['mean']:.3f}, mean {movement['ndcg_at_10']['mean']:.3f}, "
        f"worst {movement['worst_rollout']['mean']:.3f}; "
        f"quality varies in {movement['queries_with_spread']['mean']:.0%} of the queries.{within}{related}{thinned}"
    )
    return Figure(name, title, caption, caption, plot_json(plot))


def _budget_figure(name: str, groups: Sequence[JsonObject]) -> Figure | LeftOut:
    title, measured = "Quality by budget", [run for group in groups for run in group["budgets"]]
    if len({run["max_reasoning_tokens"] for run in measured}) < 2:
        only = measured[0]
        quality = f"nDCG@10 {only['ndcg_at_10']['mean']:.3f}, {only['forced']['mean']:.0%} forced"
        return LeftOut(name, title, f"one budget was measured, {only['max_reasoning_tokens']} tokens ({quality}).")
    plot = blank_plot("Budget (reasoning tokens)", "nDCG@10")
    for number, group in enumerate(groups):
        runs = group["budgets"]
        qualities = [run["ndcg_at_10"] for run in runs]
        plot.add_scatter(
            x=[str(run["max_reasoning_tokens"]) for run in runs], **_means(qualities),
            name=_label(group), mode="lines+markers",
            line={"color": line_colour(number), "width": 2},
            marker={"size": 8, "symbol": number % 6},
            text=[f"{run['reasoning_tokens']['mean']:.1f} tokens, {run['forced']['mean']:.0%} forced" for run in runs],
            hovertemplate="budget %{x}: %{y:.3f}, %{text}<extra></extra>",
        )  # fmt: skip
    plot.update_xaxes(type="category")
    plot.update_layout(showlegend=True)
    said = "; ".join(
        f"{run['max_reasoning_tokens']}: {run['ndcg_at_10']['mean']:.3f} ({run['forced']['mean']:.0%} forced)"
        for run in groups[0]["budgets"]
    )
    caption = f"All queries, nDCG@10 by budget: {said}. Bars are 95 % bootstrap intervals."
    return Figure(name, title, caption, caption, plot_json(plot))


def _pooling_figure(name: str, group: JsonObject) -> Figure | LeftOut:
    title, runs = "What averaging rollouts gains", group["pooling"]
    if len(runs) < 2:
        found = "; ".join(f"{run['ndcg_at_10']['mean']:.3f} with {run['rollouts']}" for run in runs)
        return LeftOut(name, title, f"one number of rollouts was measured ({found}).")
    qualities, own = [run["ndcg_at_10"] for run in runs], group["controls"]["own"]["ndcg_at_10"]
    plot = blank_plot("Rollouts whose vectors are averaged", "nDCG@10")
    plot.add_scatter(
        x=[str(run["rollouts"]) for run in runs], name="mean of sampled rollouts", **_means(qualities),
        mode="lines+markers", line={"color": HELPED, "width": 2}, marker={"size": 9},
        hovertemplate="%{x} rollouts: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    plot.add_hline(y=own["mean"], line={"color": NEUTRAL, "dash": "dot"})
    plot.update_xaxes(type="category")
    gains = "; ".join(
        f"{run['rollouts']} over one {_shown(run['minus_single'])}" for run in runs if "minus_single" in run
    )
    caption = (f"Gain of {gains}. " if gains else "") + f"Dotted: the query's own reasoning, {own['mean']:.3f}."
    return Figure(name, title, caption, caption, plot_json(plot))


def _length_figure(name: str, bins: Sequence[JsonObject]) -> Figure | LeftOut:
    title = "Quality by length of the reasoning"
    if len(bins) < 2:
        lengths = "; ".join(
            f"{_length(each)} tokens, own minus direct {_shown(each['own_minus_direct'])}" for each in bins
        )
        return LeftOut(name, title, f"all reasonings are of one length ({lengths}).")
    plot = blank_plot("Reasoning tokens", "nDCG@10")
    labels = [_length(each) for each in bins]
    for key, label, colour in (("ndcg_at_10", "own reasoning", HELPED), ("direct", "direct template", NEUTRAL)):
        qualities = [each[key] for each in bins]
        plot.add_bar(
            x=labels, **_means(qualities), name=label, marker_color=colour,
            text=[f"{each['queries']} queries" for each in qualities], textposition="none",
            hovertemplate="%{x} tokens: %{y:.3f}, %{text}<extra>" + label + "</extra>",
        )  # fmt: skip
    plot.update_layout(barmode="group", bargap=0.2)
    plot.update_xaxes(type="category")
    said = "; ".join(f"{_length(each)}: {_shown(each['own_minus_direct'])}" for each in bins)
    caption = f"Own reasoning minus direct on the same queries, by tokens: {said}. Bars are 95 % bootstrap intervals."
    return Figure(name, title, caption, caption, plot_json(plot))


def _length(each: JsonObject) -> str:
    low, high = each["tokens"]
    return (str(low) if low == high else f"{low} to {high}") + (" (forced)" if each["forced"] else "")


def _label(group: JsonObject) -> str:
    hops = group["hops"]
    return "all queries" if hops is None else f"{hops} hop" if hops == 1 else f"{hops} hops"


def _means(qualities: Sequence[JsonObject]) -> dict[str, Any]:
    """The height of each mark, and its interval."""
    means = [each["mean"] for each in qualities]
    return {"y": means, "error_y": error_bars(means, [each["interval"] for each in qualities])}


def _shown(record: JsonObject) -> str:
    low, high = record["interval"]
    mark = "" if record["significant"] else ", not significant"
    return f"{record['difference']:+z.3f} [{low:+z.3f}, {high:+z.3f}{mark}]"
