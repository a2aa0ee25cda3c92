"""Tables for a terminal that keep their labels: names are shortened in the middle, and columns are left out in a stated
order, until a row fits the width; a line below says which are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

SHORTEST = 12
"""Characters of a name that stay."""
_GAPS = (2, 1)  # between two columns: one of the box, and where there is room one of padding


@dataclass(frozen=True)
class NarrowColumn:
    """A column. `name`: its cells are names, shortened where the width asks for it; others are numbers, never cut.

    `leaves`: its place in the order in which columns are left out, 1 first; 0 stays.
    """

    title: str
    name: bool = False
    leaves: int = 0

    @property
    def label(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ").replace(" /", "/").replace(" @", "@")


@dataclass
class NarrowTable:
    """A table as rich prints it. Cells are plain texts: nothing in them is markup. `complete` has what is left out."""

    columns: Sequence[NarrowColumn]
    title: str | None = None
    notes: Sequence[str] = ()
    complete: str = "--json"
    rows: list[list[str]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add_row(self, *cells: str) -> None:
        """One row, with a cell for each column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells were given for {len(self.columns)} columns.")
        self.rows.append(list(cells))

    def add_section(self) -> None:
        """A line below the rows so far."""
        self.sections.add(len(self.rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        kept, widths, gap = self._fitted(options.max_width)
        made = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False, title=self.title,
            title_justify="left",
        )  # fmt: skip
        for place in kept:
            column = self.columns[place]
            made.add_column(
                Text(column.title),
                justify="left" if column.name else "right",
                overflow="fold",
                no_wrap=not column.name,
            )
        for number, row in enumerate(self.rows):
            if number in self.sections:
                made.add_section()
            made.add_row(*(Text(shortened(row[place], widths[place])) for place in kept))
        yield made
        left = [column.label for place, column in enumerate(self.columns) if place not in kept]
        if left:
            yield Text(f"Left out at this width, {self.complete} has them: {', '.join(left)}", style="dim")
        yield from (Text(note, style="dim") for note in self.notes)

    def _fitted(self, width: int) -> tuple[list[int], list[int], int]:
        """The columns that stay, the width of each column, and the gap between two."""
        kept = list(range(len(self.columns)))
        leaving = sorted((place for place in kept if self.columns[place].leaves), key=lambda p: self.columns[p].leaves)
        widths = [self._natural(place) for place in kept]
        least = [self._shortest(place) if self.columns[place].name else widths[place] for place in kept]
        gap = next((each for each in _GAPS if _total(least, kept, each) <= width), _GAPS[-1])
        while leaving and _total(least, kept, gap) > width:
            kept.remove(leaving.pop(0))
        while (excess := _total(widths, kept, gap) - width) > 0:
            room = [place for place in kept if widths[place] > least[place]]
            if not room:
                break
            widest = max(room, key=lambda place: widths[place] - least[place])
            widths[widest] -= min(excess, widths[widest] - least[widest])
        return kept, widths, gap

    def _natural(self, place: int) -> int:
        title = max(map(len, self.columns[place].title.split("\n")))
        return max([title, *(len(row[place]) for row in self.rows)])

    def _shortest(self, place: int) -> int:
        """The least width at which different names are still different."""
        names = {row[place] for row in self.rows}
        title = max(map(len, self.columns[place].title.split("\n")))
        for width in range(min(SHORTEST, self._natural(place)), self._natural(place)):
            if width >= title and len({shortened(name, width) for name in names}) == len(names):
                return width
        return self._natural(place)


def shortened(text: str, width: int) -> str:
    """The text in at most `width` characters: its beginning and its end, with an ellipsis between."""
    if len(text) <= width or width < 3:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}\u2026{text[-end:]}"


def _total(widths: Sequence[int], kept: Sequence[int], gap: int) -> int:
    return sum(widths[place] for place in kept) + gap * (len(kept) - 1)
