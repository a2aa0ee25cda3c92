"""The diagrams of the pages: `python docs/diagrams.py` draws them into docs/images, `--check` only compares.

Every text stands in a filled box, and arrows are of a middle grey, so that one file can be read on light and dark
pages. Diagrams are narrow and run from top to bottom, since a telephone is 390 pixels wide.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

from results.pages import up_to_date

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH, MARGIN, GAP, LINE, SIZE = 480, 10, 30, 21, 15
REASONING = (  # of nano: docs/index.md prints it
    "Radix Dynamics was founded by Fabian Almqvist. Fabian Almqvist was taught by Bela Ullman. Bela Ullman was taught "
    "by Ilse Hagen."
)
INK = "#ffffff"
ARROW = "#7d8590"
FILLS = {
    "text": "#37474f",  # what is given: texts
    "model": "#3949ab",  # the model works
    "token": "#ad1457",  # the embed token, and what is read at it
    "good": "#1b6e3c",  # what was found, and is right
    "bad": "#9c3d10",  # what was found, and is wrong
    "data": "#5e35b1",  # what is kept
}


@dataclass(frozen=True)
class Box:
    """A filled box with lines of text; `bold` is the first of them."""

    kind: str
    bold: str
    lines: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """In pixels."""
        return LINE * (1 + len(self.lines)) + 18


Row = Sequence[Box]
"""Boxes that stand side by side."""


def drawn(title: str, rows: Sequence[Row]) -> str:
    """The SVG of rows of boxes, with an arrow from each row to the next."""
    shapes: list[str] = []
    top = MARGIN
    for number, row in enumerate(rows):
        height = max(box.height for box in row)
        width = (WIDTH - 2 * MARGIN - 12 * (len(row) - 1)) / len(row)
        for place, box in enumerate(row):
            shapes += _box(box, MARGIN + place * (width + 12), top, width, height)
        top += height
        if number < len(rows) - 1:
            columns = len(row) if len(row) == len(rows[number + 1]) else 1  # side by side, each goes on by itself
            for place in range(columns):
                middle = MARGIN + (WIDTH - 2 * MARGIN + 12) * (place + 0.5) / columns - 6
                shapes += _arrow(middle, top + 4, top + GAP - 4)
            top += GAP
    height = top + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="{SIZE}">',
            f"<title>{escape(title)}</title>",
            *shapes,
            "</svg>",
            "",
        ]
    )


def _box(box: Box, left: float, top: float, width: float, height: int) -> list[str]:
    middle = left + width / 2
    first = top + (height - LINE * (1 + len(box.lines))) / 2 + LINE * 0.72
    texts = [(box.bold, ' font-weight="600"'), *((line, "") for line in box.lines)]
    return [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="8" fill="{FILLS[box.kind]}"/>',
        *(
            f'<text x="{middle:.1f}" y="{first + LINE * number:.1f}" text-anchor="middle" fill="{INK}"{weight}>'
            f"{escape(text)}</text>"
            for number, (text, weight) in enumerate(texts)
        ),
    ]


def _arrow(x: float, top: float, bottom: float) -> list[str]:
    return [
        f'<path d="M{x:.1f} {top:.1f} V{bottom - 6:.1f}" stroke="{ARROW}" stroke-width="2.5"/>',
        f'<path d="M{x - 7:.1f} {bottom - 8:.1f} L{x + 7:.1f} {bottom - 8:.1f} L{x:.1f} {bottom:.1f} Z" '
        f'fill="{ARROW}"/>',
    ]


DIAGRAMS: dict[str, tuple[str, Sequence[Row]]] = {
    "query": (
        "One question of nano's world, read directly and after reasoning",
        [
            [Box("text", "Who is the teacher of the teacher", ("of the founder of Radix Dynamics?",))],
            [
                Box("model", "direct", ("the question is read",)),
                Box("model", "reasoning first", tuple(wrap(REASONING, 24))),
            ],
            [Box("token", "embed token", ("one vector",)), Box("token", "embed token", ("one vector",))],
            [
                Box("bad", "finds", ("Vera Weber was taught", "by Odette Strand.")),
                Box("good", "finds", ("Bela Ullman was taught", "by Ilse Hagen.")),
            ],
        ],
    ),
    "one_pass": (
        "One pass: prompt, reasoning, embed token, vector",
        [
            [Box("text", "prompt", ("system: reason about the input", "user: the query"))],
            [Box("model", "prefill, once", ("keys and values of the prompt are kept",))],
            [
                Box(
                    "model",
                    "decode",
                    (
                        "each step reads the last token and writes the next,",
                        "until the embed token, or the budget's end",
                    ),
                )
            ],
            [Box("token", "the step that reads the embed token", ("its last hidden state, after the final norm",))],
            [Box("data", "vector of length 1", ("nothing is read a second time",))],
        ],
    ),
    "row": (
        "Stage 1: what one training row becomes",
        [
            [Box("text", "a training row", ("query, relevant documents, negatives, trace",))],
            [
                Box("model", "direct query", ("query,", "token")),
                Box("model", "reasoned query", ("query, trace,", "token")),
                Box("model", "documents", ("text,", "token")),
            ],
            [Box("data", "vectors of the whole batch, of all processes")],
            [
                Box("token", "InfoNCE, triplet", ("right document nearer", "than all others")),
                Box("token", "reply, KL", ("write the trace,", "stay near the base")),
            ],
            [Box("good", "one gradient, of the sum")],
        ],
    ),
    "rollout": (
        "Stage 2: from sampled reasonings to a gradient",
        [
            [Box("text", "a query with judgements, without a trace")],
            [
                Box("model", "reasoning 1", ("vector 1",)),
                Box("model", "reasoning 2", ("vector 2",)),
                Box("model", "reasoning 8", ("vector 8",)),
            ],
            [
                Box(
                    "data",
                    "search in the corpus cache",
                    ("what was found is encoded again", "the rest is moved by a map"),
                )
            ],
            [Box("bad", "low reward"), Box("good", "high reward"), Box("bad", "low reward")],
            [
                Box(
                    "token",
                    "advantage = reward minus the group's mean",
                    ("each reasoning becomes more or less likely",),
                )
            ],
        ],
    ),
    "cache": (
        "The corpus cache: which vectors are made true again after a step",
        [
            [Box("model", "the weights changed: every vector is a little old")],
            [
                Box("good", "touched", ("relevant, retrieved,", "neighbours, oldest")),
                Box("data", "all other documents", ("most of the corpus", "")),
            ],
            [
                Box("good", "encoded again", ("within a budget", "of tokens")),
                Box("data", "moved", ("by a linear map, fitted", "on the touched ones")),
            ],
            [Box("token", "the second search", ("this ranking is rewarded",))],
        ],
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the diagrams, or compare them; returns 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    texts = {IMAGES / f"{name}.svg": drawn(title, rows) for name, (title, rows) in DIAGRAMS.items()}
    return up_to_date(texts, "python docs/diagrams.py", check=check)


if __name__ == "__main__":
    sys.exit(main())
