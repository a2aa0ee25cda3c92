"""Texts of files: one per line, JSON lines, or a JSON array of rows; told apart by the file's name and content.

A name ends in .jsonl, .ndjson or .jl (one JSON object per line), in .json (an array of objects, or one per line), or in
anything else (one text per line); upper case and a .gz behind it change nothing. Markdown, LaTeX and source code are
lines like any others, marks included. What is known to hold something else, by its name or by its content
(`file_kinds.py`), is refused: its rows would otherwise be embedded as they stand in the file, without a word.
"""

import gzip
import reprlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from search_r3_mteb.encoder.documents import document_text
from search_r3_mteb.file_kinds import check_lines, decode, split_lines
from search_r3_mteb.json_files import kind, parse_json

JSON_LINES = (".jsonl", ".ndjson", ".jl")
_JSON = ".json"
JSON_ENDINGS = (*JSON_LINES, _JSON)
_DELIMITED = (".csv", ".tsv", ".tab", ".psv")
_FOREIGN = (
    ".parquet",
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
_OBJECTS = "One JSON object is read per line (or, in .json, an array of them)."
_PACKED = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z")
_GZIP = b"\x1f\x8b"
_CONVERT = 'Write it as .jsonl, one {"text": ..., "title": ...} per line, or as .txt, one text per line'


class FileText(NamedTuple):
    """One text of a file; `number` is that of its line or row, from 1, `id` the "_id" of its JSON object."""

    number: int
    text: str
    id: str | None = None


def read_texts(source: Path) -> list[str]:
    """The texts of a file, see `read_rows`."""
    return [row.text for row in read_rows(source)]


def read_rows(source: Path) -> list[FileText]:
    """The texts of a file: its lines, or the documents ("text", perhaps "title" and "_id") of JSON lines or an array.

    Empty lines are texts of a plain file, and are skipped between JSON objects. Raises FileNotFoundError, and
    ValueError, with file and line, for other formats and for malformed rows.
    """
    ending = ending_of(source)
    if ending in _DELIMITED:
        raise ValueError(
            f"{source} is a table in columns ({ending}), which is not read: its rows would be embedded with their ids "
            f"and separators. {_CONVERT}."
        )
    if ending in (*_FOREIGN, *_PACKED):
        raise ValueError(f"{source} is not a file of texts ({ending}). {_CONVERT}; either may be packed as .gz.")
    text = content(source)
    if ending in JSON_ENDINGS:
        return [_row(source, *record) for record in json_records(source, text, ending)]
    lines = split_lines(text)
    check_lines(lines, source)
    return [FileText(number, line) for number, line in enumerate(lines, start=1)]


def ending_of(source: Path) -> str:
    """The suffix that tells the format, in lower case and without .gz."""
    suffixes = [suffix.lower() for suffix in source.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def json_records(source: Path, text: str, ending: str) -> Iterator[tuple[str, int, Any]]:
    """The JSON values of a file's text with the word for their places ("line", "row") and the number, from 1.

    Raises ValueError, with file and line, for what is not JSON.
    """
    if ending == _JSON and text.lstrip().startswith("["):
        return _array(source, text)
    return _objects(source, split_lines(text))


def content(path: Path) -> str:
    """A file's text, unpacked. Raises FileNotFoundError, and ValueError for what is no text or a damaged .gz."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    data = path.read_bytes()
    if data.startswith(_GZIP) or path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file ({error}). Copy it again.") from error
    return decode(data, path)


def _array(source: Path, text: str) -> Iterator[tuple[str, int, Any]]:
    for number, record in enumerate(parse_json(text, source), start=1):
        yield "row", number, record


def _objects(source: Path, lines: list[str]) -> Iterator[tuple[str, int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield "line", number, parse_json(line, source, number, _OBJECTS)


def _row(source: Path, what: str, number: int, record: Any) -> FileText:
    place = f"{source}, {what} {number}"
    if not isinstance(record, dict):
        raise ValueError(f"{place}: a JSON object with 'text' is needed, got {kind(record)}.")
    id_ = record.get("_id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None) or id_ == "":
        raise ValueError(f'{place}: "_id" must be a string that is not empty, got {reprlib.repr(id_)}.')
    try:
        text = document_text(record)
        text.encode("utf-8")
        return FileText(number, text, None if id_ is None else str(id_))
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the text holds a lone surrogate, which is not text. Remove the escape.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
