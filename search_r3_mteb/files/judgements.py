"""Judgements of any kind of table: which document is relevant for which query, by the names of the columns."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from search_r3_mteb.files.columns import logger, shown
from search_r3_mteb.files.opening import (
    DELIMITERS,
    RECORD_ENDINGS,
    check_source,
    ending_of,
    format_of,
    lines_of,
    name_of,
    opened,
    records_of,
)
from search_r3_mteb.files.parquet import read_parquet
from search_r3_mteb.json_files import kind as json_kind
from search_r3_mteb.tasks.beir_folder import JUDGEMENT_COLUMNS, Judgement, is_relevance, splits

_ROLES = ("query id", "document id", "relevance")
_STEMS = ("qrels", "judgements", "judgments")
_TEST = "test"
IdColumns: TypeAlias = tuple[str | None, str | None]  # names of the columns of a query's and of a document's id


def judgement_files(folder: Path) -> dict[str, Path]:
    """The files of judgements in a folder by split: qrels/SPLIT.tsv, .csv, ..., or one qrels.csv and so on, as "test".

    Raises ValueError for several of one split.
    """
    found: dict[str, Path] = {}
    places = [(_split(path), path) for path in sorted((folder / "qrels").glob("*"))]
    places += [(_TEST, path) for stem in _STEMS for path in sorted(folder.glob(f"{stem}.*"))]
    for split, path in places:
        if ending_of(path) not in RECORD_ENDINGS or not path.is_file():
            continue
        if split in found:
            raise ValueError(f"{folder} holds both {found[split].name} and {path.name}, each for the split {split!r}.")
        found[split] = path
    return found


def _split(path: Path) -> str:
    """The name of a file without what tells its format."""
    name = path.name[: -len(".gz")] if path.suffix.lower() == ".gz" else path.name
    return name[: len(name) - len(ending_of(path))]


def has_tables(folder: Path) -> bool:
    """Whether a folder holds corpus, queries or judgements in other files than a BEIR folder's own."""
    names = [path.name for stem in ("corpus", "queries") for path in folder.glob(f"{stem}.*")]
    other = any(not name.removesuffix(".gz").endswith(".jsonl") for name in names if ending_of(Path(name)))
    return other or set(judgement_files(folder)) != set(splits(folder))


def iter_judgements(source: str | Path, ids: IdColumns = (None, None)) -> Iterator[Judgement]:
    """Stream the judgements of a .csv, .tsv, .jsonl, .json, .parquet or standard input, whose columns have usual names.

    `ids` are the columns of the queries' and of the documents' own ids: where no column has a usual name, the one of
    that name is taken, aloud. A table without a column of grades calls every pair relevant (1), and says so.

    Raises FileNotFoundError, and ValueError, with file and line, for columns that are not known, a grade that is not a
    whole number and a pair that is judged twice with different grades.
    """
    check_source(source)
    place = name_of(source)
    seen: dict[tuple[str, str], int] = {}
    chosen: list[str | None] | None = None
    for where, record in _records(source, place, ids):
        if chosen is None:
            chosen = _columns(list(record), f"{place}, {where}", ids)
            if chosen != _found(list(record)):
                logger.info("%s: the query id is in %r, the document id in %r.", place, *chosen[:2])
            if chosen[2] is None:
                logger.info("%s: no column of grades, so every row counts as relevant (1).", place)
        query, document, grade = _values(record, chosen, f"{place}, {where}")
        first = seen.setdefault((query, document), grade)
        if first != grade:
            raise ValueError(
                f"{place}, {where}: judges {query!r}, {document!r} {grade}, an earlier row judged it {first}."
            )
        yield Judgement(query, document, grade)
    if chosen is None:
        raise ValueError(f"{place} holds no judgement.")


def _records(source: str | Path, place: str, ids: IdColumns) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with opened(source) as stream:
        format_, delimiter = format_of(source, stream)
        if format_ in ("json", "json lines"):
            for what, number, record in records_of(stream, place, format_):
                if not isinstance(record, dict):
                    raise ValueError(f"{place}, {what} {number}: a JSON object is needed, got {json_kind(record)}.")
                yield f"{what} {number}", record
        elif format_ == "parquet":
            names, rows = read_parquet(stream, place, seekable=False, fractions=True)
            wanted = [name for name in _columns(names, place, ids) if name is not None]
            yield from ((f"row {number}", row) for number, row in enumerate(rows(wanted), start=1))
        else:
            yield from _table(lines_of(stream, place), place, delimiter or "\t", ids)


def _table(lines: Iterator[str], place: str, delimiter: str, ids: IdColumns) -> Iterator[tuple[str, Mapping[str, Any]]]:
    first = next(lines, "")
    names: list[str] = []
    for parting in (delimiter, *(each for each in DELIMITERS if each != delimiter)):
        names = next(csv.reader([first], delimiter=parting), [])
        if None not in _found(names, ids)[:2]:
            delimiter = parting
            break
    else:
        _columns(next(csv.reader([first], delimiter=delimiter), []), f"{place}, line 1", ids)  # raises
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            where = f"line {reader.line_num + 1}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise ValueError(f"{place}, {where}: {len(cells)} cells for {len(names)} columns.")
            yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{place}, line {reader.line_num + 1}: not a row of cells ({error}).") from error


def _found(names: Sequence[str], ids: IdColumns = (None, None)) -> list[str | None]:
    plain = [re.sub(r"[^a-z]", "", name.lower()) for name in names]
    found = [
        next((name for name, letters in zip(names, plain, strict=True) if letters in usual), None)
        for usual in JUDGEMENT_COLUMNS
    ]
    named = [None, None] if ids[0] == ids[1] else list(ids)  # one name cannot tell queries from documents
    for role, name in enumerate(named):
        if found[role] is None and name in names and name not in found:
            found[role] = name
    return found


def _columns(names: Sequence[str], place: str, ids: IdColumns) -> list[str | None]:
    found = _found(names, ids)
    for role, name in list(zip(_ROLES, found, strict=True))[:2]:
        if name is None:
            raise ValueError(
                f"{place}: none of the columns {shown(names)} is known to hold the {role}. Judgements have a header "
                "row, or keys, such as query-id, corpus-id, score, or the names that --query-id and --id give; rename "
                "yours."
            )
    return found


def _values(record: Mapping[str, Any], chosen: Sequence[str | None], place: str) -> tuple[str, str, int]:
    values = []
    for role, name in list(zip(_ROLES, chosen, strict=True))[:2]:
        value = record.get(name or "")
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(f"{place}: the {role} ({name!r}) must be a string that is not empty, got {value!r:.60}.")
        values.append(str(value))
    return values[0], values[1], 1 if chosen[2] is None else _grade(record.get(chosen[2]), place)


def _grade(value: Any, place: str) -> int:
    whole = str(int(value)) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, str | int) or not is_relevance(str(whole)):
        raise ValueError(f"{place}: the relevance must be a whole number, got {value!r:.60}.")
    return int(whole)
