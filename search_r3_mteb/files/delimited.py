"""Tables in columns: .csv, .tsv and .psv, quoted or not, with a header row or columns by number.

Cells are quoted as spreadsheets and Python's csv write them (RFC 4180): a quoted cell may hold delimiters, line breaks
and doubled quotation marks. The delimiter is that of the name; where only another one parts the header into known
columns, that one is taken and said. A first row without a known name is refused, since it may be a header in other
words or a row: a name or numbers tell which.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from search_r3_mteb.files.columns import ColumnError, Columns, Kind, known, logger, shown, usual
from search_r3_mteb.files.opening import DELIMITERS

_LARGEST = 1 << 28  # characters of a cell; Python's own limit, 128 KiB, is less than many documents
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # the first line of a file that Excel has written


class Cells(NamedTuple):
    """One row of a table: its number from 1 without the header, and the line where it begins."""

    number: int
    line: int
    values: Sequence[str]


def read_table(
    lines: Iterator[str], place: str, delimiter: str, columns: Columns, kind: Kind
) -> tuple[list[str], Iterator[Cells]]:
    """The names of a table's columns ("1", "2", ... without a header) and its rows, streamed; blank ones are counted.

    Raises ValueError, with file and line, for a table whose first row is not known as a header where columns are not
    given by number, for rows of another width, and for quotation marks that do not match.
    """
    skipped, before = 0, ""
    for before in lines:
        found = _SEPARATOR.fullmatch(before)
        if before.strip() and not found:
            break
        if found:
            delimiter = found.group(1)
        skipped += 1
    else:
        raise ValueError(f"{place} holds no rows: it is empty.")
    parting = _delimiter(before, delimiter, columns, kind)
    if parting != delimiter:
        logger.info("%s: columns are separated by %s.", place, DELIMITERS[parting])
    csv.field_size_limit(_LARGEST)
    reader = csv.reader(
        itertools.chain([before], lines),
        delimiter=parting,
        quoting=csv.QUOTE_MINIMAL if columns.quotes else csv.QUOTE_NONE,
        strict=True,
    )
    rows = _rows(reader, place, skipped, parting)
    first = next(rows)
    if _is_header(first.values, columns, kind, place):
        return list(first.values), _numbered(rows, first.values, place)
    logger.info("%s: the first row, %s, is not a header that is known and counts as a row.", place, shown(first.values))
    names = [str(number) for number in range(1, len(first.values) + 1)]
    return names, _numbered(itertools.chain([first], rows), names, place)


def _delimiter(first: str, named: str, columns: Columns, kind: Kind) -> str:
    """What parts the first line's columns into known ones: as the name says, else another; else as the name says."""
    for delimiter in (named, *(each for each in DELIMITERS if each != named)):
        names = next(csv.reader([first], delimiter=delimiter), [])
        if known(names, columns, kind):
            return delimiter
    return named


def _is_header(cells: Sequence[str], columns: Columns, kind: Kind, place: str) -> bool:
    wanted = [name for name in (columns.id, columns.title, columns.text) if name]
    if wanted and all(name.isdecimal() for name in wanted):
        number = int(columns.text or 0)
        found = sum(map(usual, cells)) > 1 or (0 < number <= len(cells) and usual(cells[number - 1]))
        if found:
            logger.info("%s: the first row, %s, is a header and is left out.", place, shown(cells))
        return found
    if wanted or known(cells, columns, kind) or sum(map(usual, cells)) > 1:
        return True  # what is missing or meant twice is told by `choose`
    raise ColumnError(
        f"{place}: the first row, {shown(cells)}, names no column that is known to hold the text of a {kind}.",
        "text",
        remedy="If it is a header, name the column: --text NAME. If there is no header, give the columns' numbers: "
        "--id 1 --text 2.",
    )


def _rows(reader: Iterator[list[str]], place: str, skipped: int, delimiter: str) -> Iterator[Cells]:
    before, blank, first = 0, 0, 0
    try:
        for cells in reader:
            begin, before = skipped + before + 1, reader.line_num  # type: ignore[attr-defined]
            if any(cell.strip() for cell in cells):
                _check_quotes(cells, f"{place}, line {begin}", delimiter)
                yield Cells(0, begin, cells)
            else:
                blank, first = blank + 1, first or begin
    except csv.Error as error:
        raise ValueError(
            f"{place}, line {skipped + before + 1}: not a row of cells ({error}). A quotation mark within a quoted "
            "cell is doubled; where quotation marks are text like any other, give --no-quotes."
        ) from error
    if blank:
        logger.warning("%s: %d blank rows left out, the first in line %d.", place, blank, first)


def _check_quotes(cells: Sequence[str], place: str, delimiter: str) -> None:
    """ValueError for a quoted cell that runs over what look like rows: a mark that was text has opened it."""
    if delimiter == "\t" and any("\n" in cell and "\t" in cell for cell in cells):
        raise ValueError(
            f"{place}: a quoted cell goes on over several lines with tabs. Where quotation marks are text like any "
            "other, give --no-quotes; otherwise write the table as .csv."
        )


def _numbered(rows: Iterator[Cells], names: Sequence[str], place: str) -> Iterator[Cells]:
    for number, row in enumerate(rows, start=1):
        if len(row.values) != len(names):
            raise ValueError(
                f"{place}, line {row.line}: {len(row.values)} cells for {len(names)} columns. Quote cells that contain "
                "the separator."
            )
        yield row._replace(number=number)
