"""Texts on a terminal: what a document, a name or a model says is shown, and never read as a command."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 and C1 but for line break and tab; marks that turn the direction of what follows, and so its meaning.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_SHOWN = 300  # characters


def visible(text: str) -> str:
    """The text with U+FFFD in place of each character that a terminal would act upon."""
    return _CONTROLS.sub("\ufffd", text)


def beginning(text: str) -> str:
    """The first 300 characters of what somebody else wrote, and "…" for the rest.

    A terminal needs no more, and rich takes minutes for one word of 100,000 characters.
    """
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class SafeConsole(Console):
    """rich's console, which shows control characters of texts as U+FFFD; its own styles and bars are as ever."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        # rich would write the text ":key:" as a picture, also in paths and names of tasks.
        super().__init__(*arguments, **{"emoji": False} | keywords)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, without control characters in their text."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(visible(segment.text), segment.style)
            else:
                yield segment

    def render_str(self, text: str, **keywords: Any) -> Any:
        """A text with markup as rich reads it, cleaned first: rich itself drops some control characters."""
        return super().render_str(visible(text), **keywords)
