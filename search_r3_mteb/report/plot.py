"""One figure of the report: plotly's JSON, the words around it, and the parts that all figures share.

A figure is data, not a drawing: plotly.js draws it in the reader's browser. Text and grid have no colours of their own:
the page sets those for light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Distinguishable with the common colour blindnesses, readable on white and on black.
HELPED, HURT, NEUTRAL = "#2f8fd0", "#e07b1a", "#8a93a0"
PALETTE = (HELPED, HURT, "#1fa187", "#a06bd0", "#d0558b", "#b59a1f", NEUTRAL)
MOST_POINTS = 1_500  # of one trace: more would slow a browser down and show nothing more


@dataclass(frozen=True)
class Figure:
    """One figure: its plotly JSON, the sentence above it, and the words that stand in for it when it is not seen."""

    name: str
    title: str
    caption: str
    alt: str
    plot: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A figure that would show nothing, a single value for example; `why` is the sentence in its place."""

    name: str
    title: str
    why: str


@dataclass(frozen=True)
class FigureGroup:
    """The figures of one section of the page; `text` stands above them, the sentences on those left out below."""

    id: str
    title: str
    panels: Sequence[Figure | LeftOut]
    text: str = ""

    @property
    def figures(self) -> list[Figure]:
        """Those that are drawn."""
        return [each for each in self.panels if isinstance(each, Figure)]

    @property
    def left_out(self) -> list[LeftOut]:
        """Those that are not."""
        return [each for each in self.panels if isinstance(each, LeftOut)]


def blank_plot(x: str, y: str) -> go.Figure:
    """A plot without traces whose axes bear these titles."""
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


def plot_json(plot: go.Figure) -> dict[str, Any]:
    """The plot as plain JSON values."""
    import json

    result: dict[str, Any] = json.loads(plot.to_json())
    return result


def all_equal(values: Iterable[float | None]) -> bool:
    """Whether the values that are there are one value; also where there are none."""
    return len({round(value, 9) for value in values if value is not None}) < 2


def error_bars(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> dict[str, Any]:
    """Bars from each value to the ends of its interval, of length 0 where it has none."""
    pairs = [(value, bounds or (value, value)) for value, bounds in zip(values, intervals, strict=True)]
    return {
        "array": [max(0.0, high - value) for value, (_, high) in pairs],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in pairs],
        "symmetric": False,
        "thickness": 1,
        "width": 3,
    }


def line_colour(number: int) -> str:
    """The colour of the n-th line of a plot."""
    return PALETTE[number % len(PALETTE)]


def plain_label(text: str) -> str:
    """The text for a label: plotly reads a subset of HTML there, and names must not become markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
