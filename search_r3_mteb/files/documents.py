"""Documents and queries of any input that is known, one at a time: BEIR folders, JSON, tables, Parquet, lines."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.file_kinds import check_lines
from search_r3_mteb.files.columns import ColumnNames, Columns, Kind, choose, logger, usual
from search_r3_mteb.files.delimited import read_table
from search_r3_mteb.files.opening import (
    RECORD_ENDINGS,
    STANDARD_INPUT,
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
from search_r3_mteb.tasks.beir_folder import Document, Query

_SAMPLE = 1000  # lines of a text file that are looked at together
_FILES = {"document": "corpus", "query": "queries"}
READABLE = (
    "a BEIR folder, .jsonl (.ndjson, .jl), .json, .csv, .tsv, .psv, .parquet, or a file of one text per line; .gz "
    "too; - is standard input"
)


class _Entry(NamedTuple):
    """One record of an input: its number from 1, its place for messages, and what it holds."""

    number: int
    place: str
    id: str | None
    title: str
    text: str


def iter_documents(
    source: str | Path, columns: Columns | None = None, *, keep_empty: bool = False
) -> Iterator[Document]:
    """Stream the documents (id, title, text) of a BEIR folder, a file, a pipe, or standard input ("-").

    Which column holds what is logged (INFO, logger "search_r3_mteb.files"), and so is every document that is known by
    its number, for want of an id, or left out, for want of title and text (WARNING); `keep_empty` keeps the latter.
    Ids are kept in memory, texts only of a .json array and of Parquet on standard input.

    Raises FileNotFoundError at once; ImportError without pyarrow where it is needed; and ValueError, with file and
    line, for what is malformed or not known, for an id that comes twice, and for an input without a document.
    """
    check_source(source)
    entries = _entries(source, columns or Columns(), "document")
    return (Document(*each) for each in _kept(entries, name_of(source), "document", keep_empty))


def iter_queries(source: str | Path, columns: Columns | None = None) -> Iterator[Query]:
    """Stream the queries (id, text) of what `iter_documents` reads; a folder's are in queries.jsonl, .csv and so on.

    Raises like `iter_documents`.
    """
    check_source(source)
    entries = _entries(source, columns or Columns(), "query")
    return (Query(id_, text) for id_, _, text in _kept(entries, name_of(source), "query", False))


def file_in(folder: Path, kind: Kind) -> Path:
    """The one file of a folder that holds its documents or queries: corpus.jsonl, corpus.csv, corpus.parquet, ...

    Raises FileNotFoundError where there is none, ValueError where there are several.
    """
    stem = _FILES[kind]
    found = [path for path in sorted(folder.glob(f"{stem}.*")) if ending_of(path) in RECORD_ENDINGS and path.is_file()]
    if not found:
        texts = [path.name for path in sorted(folder.iterdir()) if ending_of(path) in (".txt", ".md")]
        remedy = (
            f" It holds {len(texts)} text files such as {texts[0]}: one document per file is not read. Write them as "
            '.jsonl, one {"id": ..., "text": ...} per line.'
            if texts
            else ""
        )
        raise FileNotFoundError(
            f"BEIR folder {str(folder)!r}: neither {stem}.jsonl nor {stem}.jsonl.gz is there, nor {stem} in .csv, "
            f".tsv or .parquet.{remedy}"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"BEIR folder {str(folder)!r} holds both {names}; remove one of them.")
    return found[0]


def _entries(source: str | Path, columns: Columns, kind: Kind) -> Iterator[_Entry]:
    if str(source) != STANDARD_INPUT and Path(source).is_dir():
        file = file_in(Path(source), kind)
        for entry in _entries(file, columns, kind):
            if entry.id is None:
                raise ValueError(f"{file}, {entry.place}: no id, by which a BEIR folder's judgements name a {kind}.")
            yield entry
        return
    place = name_of(source)
    with opened(source) as stream:
        format_, delimiter = format_of(source, stream)
        if format_ == "lines":
            yield from _lines(lines_of(stream, place), place, columns)
        elif format_ == "table":
            yield from _table(lines_of(stream, place), place, delimiter, columns, kind)
        elif format_ == "parquet":
            yield from _parquet(source, stream, columns, kind)
        else:
            yield from _json(records_of(stream, place, format_), place, columns, kind)


def _lines(lines: Iterator[str], place: str, columns: Columns) -> Iterator[_Entry]:
    if columns != Columns():
        raise ValueError(f"{place} is read as one text per line, which has no columns to name. Leave the options out.")
    bare = (line.removesuffix("\n").removesuffix("\r") for line in lines)
    sample = list(islice(bare, _SAMPLE))
    check_lines(sample, place)
    if sample and usual(sample[0]) and not sample[0].startswith("#"):  # "# Title" is a heading of Markdown
        logger.warning(
            "%s: the first line, %r, may be the header of a table with one column, and counts as a text. If it is one, "
            "name the file .csv.",
            place,
            sample[0],
        )
    for number, line in enumerate(chain(sample, bare), start=1):
        if "\r" in line:
            check_lines(["", line], place)
        yield _Entry(number, f"line {number}", None, "", line)


def _table(lines: Iterator[str], place: str, delimiter: str, columns: Columns, kind: Kind) -> Iterator[_Entry]:
    names, rows = read_table(lines, place, delimiter, columns, kind)
    chosen = choose(names, columns, kind, place)
    logger.info("%s: %s.", place, chosen.said(names))
    positions = [None if name is None else names.index(name) for name in chosen]
    for row in rows:
        id_, title, text = (None if position is None else row.values[position] for position in positions)
        yield _Entry(row.number, f"line {row.line}", (id_ or "").strip() or None, title or "", text or "")


def _parquet(source: str | Path, stream: BinaryIO, columns: Columns, kind: Kind) -> Iterator[_Entry]:
    place = name_of(source)
    plain = str(source) != STANDARD_INPUT and Path(source).is_file() and Path(source).suffix.lower() != ".gz"
    if plain:
        with Path(source).open("rb") as file:
            yield from _parquet_rows(*read_parquet(file, place, seekable=True), place, columns, kind)
    else:
        yield from _parquet_rows(*read_parquet(stream, place, seekable=False), place, columns, kind)


def _parquet_rows(names: list[str], rows: Any, place: str, columns: Columns, kind: Kind) -> Iterator[_Entry]:
    chosen = choose(names, columns, kind, place)
    logger.info("%s: %s.", place, chosen.said(names))
    for number, row in enumerate(rows([name for name in chosen if name is not None]), start=1):
        yield _entry(row, chosen, number, f"row {number}", place)


def _json(records: Iterable[tuple[str, int, Any]], place: str, columns: Columns, kind: Kind) -> Iterator[_Entry]:
    chosen: ColumnNames | None = None
    for what, number, record in records:
        where = f"{what} {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}, {where}: a JSON object with a text is needed, got {json_kind(record)}.")
        if chosen is None:
            chosen = choose(list(record), columns, kind, f"{place}, {where}")
            logger.info("%s: %s.", place, chosen.said(list(record)))
        elif chosen.id is None or chosen.title is None or chosen.text not in record:
            # The first record need not have all that later ones have.
            found = choose(list(record), columns, kind, f"{place}, {where}")
            if found.text != chosen.text:
                raise ValueError(f"{place}, {where}: no {chosen.text!r}, which holds the text in earlier records.")
            chosen = ColumnNames(chosen.id or found.id, chosen.title or found.title, chosen.text)
        yield _entry(record, chosen, number, where, place)


def _entry(record: Mapping[str, Any], chosen: ColumnNames, number: int, where: str, place: str) -> _Entry:
    """The entry of a record of JSON or Parquet, checked."""
    values = {}
    for role, name in zip(chosen._fields, chosen, strict=True):
        value = None if name is None else record.get(name)
        if role == "id":
            if isinstance(value, bool) or not isinstance(value, str | int | None) or value == "":
                raise ValueError(f'{place}, {where}: "{name}" must be a string that is not empty, got {value!r:.60}.')
            value = None if value is None else str(value)
        elif not isinstance(value, str | None):
            raise ValueError(f"{place}, {where}: the {role} ({name!r}) is {json_kind(value)}, not a string.")
        values[role] = value
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place}, {where}: the {role} holds a lone surrogate, which is not text. Remove the escape."
            ) from error
    title, text, body = values["title"] or "", values["text"] or "", record.get("body")
    if isinstance(body, str) and title and text == join_title(title, body):
        text = body  # MTEB's form: the title is in the text already
    return _Entry(number, where, values["id"], title, text)


def _kept(entries: Iterator[_Entry], place: str, kind: Kind, keep_empty: bool) -> Iterator[tuple[str, str, str]]:
    """Id, title and text of the entries that are not blanks; what was numbered or left out is logged at the end."""
    seen: dict[str, int] = {}
    several = {"document": "documents", "query": "queries"}[kind]

    def named(count: int) -> str:
        return f"{count:,} {kind if count == 1 else several}"

    blank, numbered = _Counted(), _Counted()
    for entry in entries:
        if not (entry.text.strip() or entry.title.strip()) and not (keep_empty and entry.id):
            blank.add(entry)
            continue
        if entry.id is None:
            numbered.add(entry)
        id_ = str(entry.number) if entry.id is None else entry.id
        earlier = seen.setdefault(id_, entry.number)
        if earlier != entry.number:
            raise ValueError(
                f"{place}, {entry.place}: two {several} have the id {id_!r:.80}, the first is number {earlier}. "
                f"Give each its own, or say that there are none: --id ''."
            )
        yield id_, entry.title, entry.text
    if blank.count:
        logger.warning("%s: %s without any text left out, the first in %s.", place, named(blank.count), blank.first)
    if not seen:
        raise ValueError(f"{place} holds no {several}: nothing can be read from it.")
    if numbered.count:
        logger.info(
            "%s: %s without an id, known by number, the first in %s.", place, named(numbered.count), numbered.first
        )


@dataclass
class _Counted:
    """A number of entries, and the place of the first."""

    count: int = 0
    first: str = ""

    def add(self, entry: _Entry) -> None:
        self.count += 1
        self.first = self.first or entry.place
