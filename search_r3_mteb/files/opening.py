"""Inputs of texts: a path, or "-" for standard input, as unpacked bytes, lines of text, and the kind of format.

A name that ends in .jsonl, .ndjson or .jl means one JSON object per line, .json an array of objects or one per line,
.csv, .tsv, .tab and .psv a table, .parquet Parquet, anything else one text per line; upper case and a .gz behind it
change nothing. What is known to hold something else, by its name or by its content (`file_kinds.py`), is refused: its
rows would otherwise be embedded as they stand in the file. Standard input and pipes have no name, so that their
content decides: Parquet, JSON, a table whose header is known, or else lines.
"""

import codecs
import csv
import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from search_r3_mteb.file_kinds import byte_lines, decode, split_lines
from search_r3_mteb.files.columns import usual
from search_r3_mteb.json_files import NotJsonError, parse_json

STANDARD_INPUT = "-"
JSON_LINES = (".jsonl", ".ndjson", ".jl")
_JSON = ".json"
JSON_ENDINGS = (*JSON_LINES, _JSON)
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
PARQUET = ".parquet"
RECORD_ENDINGS = (*JSON_ENDINGS, *TABLES, PARQUET)  # of files in which a record has named parts
_FOREIGN = (
    ".feather",
    ".arrow",
    ".xls",
    ".xlsx",
    ".ods",
    ".npy",
    ".npz",
    ".pkl",
    ".pickle",
    ".pdf",
    ".docx",
    ".rtf",
    ".epub",
    ".htm",
    ".html",
    ".xhtml",
    ".xml",
    ".sgml",
    ".yaml",
    ".yml",
    ".toml",
    ".ipynb",
    ".srt",
    ".vtt",
)
_PACKED = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z")
_GZIP = b"\x1f\x8b"
_HEAD = 1 << 18  # bytes that are looked at
_LONGEST_NAME = 40  # characters of a column's name
_CONVERT = (
    'Write it as .csv with a header row, as .jsonl, one {"id": ..., "title": ..., "text": ...} per line, or as .txt, '
    "one text per line"
)
Format: TypeAlias = Literal["json", "json lines", "table", "parquet", "lines"]


def name_of(source: str | Path) -> str:
    """What messages call a source."""
    return "standard input" if str(source) == STANDARD_INPUT else str(source)


def ending_of(source: Path) -> str:
    """The suffix that tells the format, in lower case and without .gz."""
    suffixes = [suffix.lower() for suffix in source.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def check_source(source: str | Path) -> None:
    """Raise FileNotFoundError for a source that is not there, ValueError for a name of another format.

    Nothing is read, so that whoever names two inputs learns of both before any work.
    """
    if str(source) == STANDARD_INPUT:
        return
    path = Path(source)
    if path.is_dir():
        return
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    ending = ending_of(path)
    if ending in (*_FOREIGN, *_PACKED):
        raise ValueError(f"{path} is not a file of texts ({ending}). {_CONVERT}; each may be packed as .gz.")


@contextmanager
def opened(source: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a file, a pipe or standard input, unpacked where they are gzip by their first bytes or their name.

    Raises FileNotFoundError, and ValueError for a damaged .gz, also while the block reads.
    """
    check_source(source)
    standard = str(source) == STANDARD_INPUT
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and one file is needed.")
    stream: BinaryIO = sys.stdin.buffer if standard else path.open("rb")
    try:
        whole = _with_head(stream)
        if whole.peek(2)[:2] == _GZIP or (not standard and path.suffix.lower() == ".gz"):
            whole = _with_head(cast("BinaryIO", gzip.GzipFile(fileobj=whole)))
        yield cast("BinaryIO", whole)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name_of(source)} is a damaged or truncated gzip file ({error}). Copy it again.") from error
    finally:
        if not standard:
            stream.close()


def format_of(source: str | Path, stream: BinaryIO) -> tuple[Format, str]:
    """The format of an opened source, and for a table what parts its columns.

    Raises ValueError for bytes that are not text and not Parquet.
    """
    head = head_of(stream)
    path = Path(source)
    named = str(source) != STANDARD_INPUT and not stat.S_ISFIFO(path.stat().st_mode)
    ending = ending_of(path) if named else ""
    if ending in JSON_LINES:
        return "json lines", ""
    if ending in TABLES:
        return "table", TABLES[ending]
    if ending == PARQUET or (not named and head.startswith(b"PAR1") and b"\0" in head[:64]):
        return "parquet", ""
    if ending == _JSON or not named:
        start = _beginning(head, name_of(source))
        if start.lstrip().startswith("[") and (ending == _JSON or _is_json_array(start)):
            return "json", ""
        lines = [line for line in split_lines(start) if line.strip()]
        if ending == _JSON or (lines and _is_object(lines[0])):
            return "json lines", ""
        if lines and (delimiter := _of_header(lines[0])):
            return "table", delimiter
    return "lines", ""


def head_of(stream: BinaryIO) -> bytes:
    """The first bytes of an opened source, which stay to be read."""
    return cast("io.BufferedReader", stream).peek(_HEAD)


def lines_of(stream: BinaryIO, place: str | Path) -> Iterator[str]:
    r"""The lines of an opened source, decoded one by one, with their ends; \r ends one where there is no \n at all.

    Raises ValueError like `file_kinds.decode`.
    """
    lines = byte_lines(stream, head_of(stream), place)
    for first in lines:
        if "\r" in first and not first.endswith("\n"):
            yield from (f"{line}\n" for line in split_lines(first))
        else:
            yield first
        break
    yield from lines


def content(source: str | Path) -> str:
    """A source's text, unpacked. Raises FileNotFoundError, and ValueError for what is not text or a damaged .gz."""
    with opened(source) as stream:
        return decode(stream.read(), name_of(source))


def records_of(stream: BinaryIO, place: str, format_: Format) -> Iterator[tuple[str, int, Any]]:
    """`json_records` of an opened source of format "json" or "json lines"; the latter is streamed."""
    lines = lines_of(stream, place)
    return json_records(place, "".join(lines), _JSON) if format_ == "json" else json_lines(place, lines)


def json_records(source: Path | str, text: str, ending: str) -> Iterator[tuple[str, int, Any]]:
    """The JSON values of a file's text with the word for their places ("line", "row") and the number, from 1.

    Raises ValueError, with file and line, for what is not JSON.
    """
    if ending == _JSON and text.lstrip().startswith("["):
        return (("row", number, record) for number, record in enumerate(parse_json(text, source), start=1))
    return json_lines(source, split_lines(text))


def json_lines(source: Path | str, lines: Iterator[str] | list[str]) -> Iterator[tuple[str, int, Any]]:
    """The same of lines that hold one JSON value each; empty ones are skipped."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield "line", number, parse_json(line, source, number, _OBJECTS)


_OBJECTS = "One JSON object is read per line (or, in .json, an array of them)."


class _Replayed(io.RawIOBase):
    """A stream that gives its first bytes once more."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head, self._stream = head, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head[: len(buffer)] if self._head else self._stream.read(len(buffer))
        self._head = self._head[len(part) :] if self._head else b""
        buffer[: len(part)] = part
        return len(part)


def _with_head(stream: BinaryIO) -> io.BufferedReader:
    """A buffered stream of which `peek` shows the whole head: one of a pipe would show what has arrived."""
    found: Any = io.BufferedReader(_Replayed(stream.read(_HEAD), stream), _HEAD)
    found.peek(1)
    return cast("io.BufferedReader", found)


def _beginning(head: bytes, place: str) -> str:
    """The text of the head, without a last line that may have been cut."""
    if len(head) < _HEAD:
        return decode(head, place)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return head.decode("utf-16", errors="ignore")
    return decode(head[: head.rindex(b"\n") + 1] if b"\n" in head else head[:1], place)


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line, ""), dict)
    except NotJsonError:
        return False


def _of_header(line: str) -> str:
    """What parts a line that names at least two columns by usual names; "" for any other line."""
    for delimiter in DELIMITERS:
        names = next(csv.reader([line], delimiter=delimiter), [])
        if sum(map(usual, names)) > 1 and all(len(name) <= _LONGEST_NAME for name in names):
            return delimiter
    return ""


def _is_json_array(text: str) -> bool:
    """Whether a text that begins with a bracket is an array of objects, or the beginning of one."""
    return text.lstrip()[1:].lstrip().startswith("{")
