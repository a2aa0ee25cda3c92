"""The figures of these pages: one style, and what a figure must have so that a reader without the text follows it.

    python results/figures.py        # draws every figure again, from the JSON files beside it

A figure that breaks a rule is not written: `faults` finds axes without a unit, a legend or a label over data, labels
that are cut off or cover each other, points outside of the axes, and lines that lie exactly on each other. The PNG
holds the checksums of the files it was drawn from, so that a test can tell a figure that is older than its numbers.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
# Okabe and Ito's colours, which people with any of the common colour blindnesses can tell apart.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6b7280"),
)
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dde3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "savefig.dpi": 120,
    "figure.dpi": 120,
}
SOURCES = "Sources"  # the PNG's entry with the checksums
_UNIT = re.compile(r"\([^()]*(\([^()]*\)[^()]*)*\)")  # "time (seconds)", "nDCG@10 (0 to 1)"
_SAME_LINE = 1.5  # pixels


@contextmanager
def drawn(
    path: Path, sources: Sequence[Path], size: tuple[float, float], panels: tuple[int, int] = (1, 1), **grid: Any
) -> Iterator[tuple[Any, Any]]:
    """The figure and its axes (an array, rows times columns) to draw on; it is written to `path` at the end.

    `size` is in inches, `sources` are the files that the numbers come from, `grid` goes to matplotlib's `subplots`.
    Raises ValueError, and writes nothing, where the figure breaks a rule.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        chart = Figure(figsize=size, layout="constrained")
        yield chart, chart.subplots(*panels, squeeze=False, **grid)
        found = faults(chart)
        if found:
            raise ValueError(f"{path.name} cannot be read without the text:\n" + "\n".join(found))
        chart.set_layout_engine("none")  # all has its place: what is written is what was examined
        chart.savefig(path, metadata={SOURCES: checksums(sources)})


def checksums(sources: Sequence[Path]) -> str:
    """The files by name, each with its sha256."""
    return ", ".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sources)


def legend_above(chart: Any, axes: Any, columns: int) -> None:
    """One legend for the whole figure, above the panels, with the entries of `axes`."""
    chart.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns)


def faults(chart: Any) -> list[str]:
    """Everything that keeps a reader from reading the figure, one line each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(chart).draw()
    found = []
    legends = [(chart, legend) for legend in chart.legends]
    for number, axes in enumerate(chart.axes, 1):
        where = f"panel {number}"
        found += [f"{where}: {text}" for text in [*_unnamed(axes), *_outside(axes), *_hidden(axes)]]
        if axes.get_legend() is not None:
            legends.append((axes, axes.get_legend()))
    found += _cut_off(chart) + _covering_each_other(chart)
    for place, legend in legends:
        box = legend.get_window_extent()
        for axes in [place] if place is not chart else chart.axes:
            if any(_inside(box, points) for points in _data(axes)):
                found.append(f"the legend ({legend.get_texts()[0].get_text()!r}, ...) covers data")
    for axes in chart.axes:
        for text in axes.texts:
            if any(_inside(text.get_window_extent(), points) for points in _lines(axes)):
                found.append(f"the label {text.get_text()!r} covers data")
    return found


def _unnamed(axes: Any) -> list[str]:
    """Axes without a name and a unit; one that lists names (of variants, for example) needs neither."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        shown = [tick.label1.get_text() for tick in axis.get_major_ticks() if tick.label1.get_visible()]
        if not any(shown) or any(_is_name(text) for text in shown):
            continue
        if not _UNIT.search(axis.get_label().get_text()):
            found.append(f"{axis.axis_name} is called {axis.get_label().get_text()!r}, without a unit in brackets")
    return found


def _is_name(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2}", text)) and "mathdefault" not in text


def _data(axes: Any) -> list[Any]:
    """Points of the lines (those between two points as well), bars and dots, in pixels."""
    boxes = [patch.get_window_extent() for patch in axes.patches]
    edges = [np.array([(x, y) for x in np.linspace(b.x0, b.x1, 50) for y in (b.y0, b.y1)]) for b in boxes]
    return [*_lines(axes), *edges]


def _lines(axes: Any) -> list[Any]:
    found = []
    for line in axes.lines:
        points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        if len(points) > 1 and line.get_linestyle() != "None":
            steps = np.linspace(0, 1, 50)[:, None]
            points = np.concatenate([a + (b - a) * steps for a, b in pairwise(points)])
        found.append(points)
    dots = [
        each.get_offset_transform().transform(each.get_offsets())
        for each in axes.collections
        if len(each.get_offsets())
    ]
    return found + dots


def _inside(box: Any, points: Any) -> bool:
    x, y = points[:, 0], points[:, 1]
    return bool(((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)).any())


def _outside(axes: Any) -> list[str]:
    """Lines with a point beyond the limits of the axes, where it is not drawn."""
    box, found = axes.get_window_extent(), []
    for line in axes.lines:
        if line.get_transform() == axes.transData:
            points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
            if (points < [box.x0 - 1, box.y0 - 1]).any() or (points > [box.x1 + 1, box.y1 + 1]).any():
                found.append(f"{line.get_label()!r} has points outside of the axes")
    return found


def _hidden(axes: Any) -> list[str]:
    """Lines that lie on an earlier one everywhere; dots of another size show what is under them.

    Lines without a name (single seeds) may lie on each other: what has a name must be found in the figure.
    """
    found = []
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    lines = [line for line in named if line.get_transform() == axes.transData]
    for number, line in enumerate(lines):
        own = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        for other in lines[number + 1 :]:
            points = other.get_transform().transform(np.asarray(other.get_xydata(), dtype=float))
            same = own.shape == points.shape and bool((np.abs(own - points) < _SAME_LINE).all())
            dots = line.get_linestyle() == other.get_linestyle() == "None"
            if same and not (dots and abs(line.get_markersize() - other.get_markersize()) >= 2):
                found.append(f"{other.get_label()!r} hides {line.get_label()!r}")
    return found


def _texts(chart: Any) -> list[Any]:
    """Every text that is drawn: titles, names, numbers of the ticks, labels."""
    from matplotlib.text import Text

    absent = set()  # numbers of ticks beyond the limits, which matplotlib keeps and does not draw
    for axis in [axis for axes in chart.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (tick.get_visible() and low <= tick.get_loc() <= high):
                absent |= {tick.label1, tick.label2}
    texts = [each for each in chart.findobj(Text) if each not in absent]
    return [each for each in texts if each.get_visible() and each.get_text().strip()]


def _cut_off(chart: Any) -> list[str]:
    """Texts that leave the figure."""
    whole, found = chart.bbox, []
    for text in _texts(chart):
        box = text.get_window_extent()
        if box.x0 < whole.x0 - 1 or box.y0 < whole.y0 - 1 or box.x1 > whole.x1 + 1 or box.y1 > whole.y1 + 1:
            found.append(f"{text.get_text()!r} is cut off at the edge of the figure")
    return found


def _covering_each_other(chart: Any) -> list[str]:
    """Pairs of texts that overlap."""
    texts = [(text.get_text(), text.get_window_extent()) for text in _texts(chart)]
    return [
        f"{name!r} and {other!r} overlap"
        for number, (name, box) in enumerate(texts)
        for other, their in texts[number + 1 :]
        if min(box.x1, their.x1) - max(box.x0, their.x0) > 1 and min(box.y1, their.y1) - max(box.y0, their.y0) > 1
    ]


def main() -> None:
    """Draw every figure of the pages again."""
    for draw in all_figures().values():
        draw()


def all_figures() -> dict[Path, Any]:
    """For each PNG the function that draws it: with no argument there, with a path elsewhere."""
    from results.corpus_cache import bench
    from results.mini import page as mini
    from results.rl import page as rl
    from results.sft import ablation
    from results.speed import run as speed

    modules = (bench, mini, rl, ablation, speed)
    return {module.FIGURE: module.figure for module in modules}


if __name__ == "__main__":
    main()
