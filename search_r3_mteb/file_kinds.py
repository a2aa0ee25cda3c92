"""What a file of texts really holds, by its content: bytes that are text in a known encoding, lines that are texts.

A name need not tell the truth. Read line by line, a table would be embedded with its ids and separators, JSON with its
keys, and a page with its tags; the vectors would look fine. The signs are our choice and conservative: what could be
prose is taken as prose. So a table without a header, separated by commas, semicolons or bars, is refused only where
every cell is quoted, or where it has three rows or more, all of one width, whose first cells are different ids or whose
last cells are numbers; others go through. JSON behind a line of another kind is refused where most lines are objects.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from search_r3_mteb.json_files import NotJsonError, parse_json

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAGIC = (
    (rb"PK[\x03\x05][\x04\x06]", "a ZIP archive (.docx, .xlsx and .npz are such)"),
    (rb"PAR1([\x00-\x1f]|.*PAR1\Z|\Z)", "Parquet"),  # PAR1 is also a gene, of which texts may speak
    (rb"ARROW1\0", "Arrow"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"%PDF-", "a PDF"),
    (rb"\{\\rtf", "RTF"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"\x89HDF", "HDF5"),
    (rb"Obj\x01", "Avro"),
    (rb"\xd0\xcf\x11\xe0", "an old file of Microsoft Office"),
    (rb"\x1f\x8b", "a gzip file that is packed twice"),
    (rb"BZh[1-9]1AY&SY", "a bzip2 file"),
    (rb"\xfd7zXZ", "an xz file"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (rb"7z\xbc\xaf", "a 7-Zip archive"),
)
_ISO_2022 = re.compile(rb"\x1b\$[@AB]|\x1b\([IJ]")
_JSON_START = re.compile(r"""\s*(\[\s*)?\{\s*("[^"]*"|'[^']*')\s*:|\s*\[\s*\n\s*["\[{]""")
_OPENING_TAG = re.compile(r"\s*<([A-Za-z][\w:.-]*)(\s[^<>]*)?>\s*")
_SETTINGS = re.compile(r"%YAML|- [\w-]+: .*\n  [\w-]+:\s|\[\[?[\w.-]+\]?\]\s*\n[\w-]+ ?= ?")
_SUBTITLES = re.compile(r"WEBVTT|\d+\s*\n[\d:]+[,.]\d{3} --> ")
_KEY = re.compile(r"[\w-]+:(\s|$)|- ")
_QUOTED = r'"([^"]|"")*"'
_LABEL = re.compile(r"\W*|\(?\w{1,4}[.)]|.{1,30}:")  # a bullet, a list's number, a speaker: a tab may follow in prose
_ID = re.compile(r"(?=.*\d)[\w.:/#-]{1,64}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
# Names of columns in the wild, in lower case, letters only.
_COLUMNS = frozenset(
    {
        "id",
        "ids",
        "docid",
        "documentid",
        "pid",
        "passageid",
        "qid",
        "queryid",
        "corpusid",
        "index",
        "url",
        "title",
        "text",
        "texts",
        "body",
        "content",
        "contents",
        "document",
        "documents",
        "passage",
        "passages",
        "query",
        "queries",
        "question",
        "questions",
        "answer",
        "answers",
        "sentence",
        "sentences",
        "abstract",
        "label",
        "labels",
        "score",
        "category",
        "source",
    }
)
_SAMPLE = 1000  # lines that are looked at for columns
_SAME = 0.95  # of the lines have the same number of columns: a text may hold a tab of its own


def decode(data: bytes, place: str | Path) -> str:
    """The text in `data`: UTF-8, or UTF-16 or UTF-32 where the first bytes say so.

    Raises ValueError for anything else: binary formats by their name, other encodings by the line of the first fault.
    """
    return "".join(byte_lines(io.BytesIO(data), data, place))


def byte_lines(stream: BinaryIO, head: bytes, place: str | Path) -> Iterator[str]:
    """The lines of a stream with their ends, decoded one by one; `head` are its first bytes. Raises like `decode`."""
    for magic, name in _MAGIC:
        if re.match(magic, head, re.DOTALL):
            raise ValueError(f"{place} is not a file of texts: it is {name}, by its first bytes.")
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if encoding is None:
        yield from _utf8_lines(stream, place)
        return
    try:
        yield from io.TextIOWrapper(stream, encoding, newline="\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}, line 1, is not {encoding} ({error.reason}). Convert the file to UTF-8.") from error


def _utf8_lines(stream: BinaryIO, place: str | Path) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if b"\0" in line:
            raise ValueError(
                f"{place}, line {number}, holds a NUL byte, so the file is UTF-16 without a mark, or no text at all. "
                "Convert it to UTF-8."
            )
        if _ISO_2022.search(line):
            raise ValueError(f"{place}, line {number}, is in ISO-2022. Convert the file to UTF-8.")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place}, line {number}, is not UTF-8 ({error.reason}). Convert the file to UTF-8."
            ) from error


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, ended by \n or \r\n, or by \r where the whole text has no \n."""
    end = "\r" if "\n" not in text else "\n"
    lines = text.split(end)  # not splitlines: U+2028 and others do not end a line
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def check_lines(lines: Sequence[str], place: str | Path) -> None:
    """ValueError where lines are not texts: JSON, a page in markup, YAML, a table in columns, or lines of two ends."""
    for number, line in enumerate(lines, start=1):
        if "\r" in line:
            raise ValueError(
                f"{place}, line {number}, holds a carriage return within it, beside lines that end in a line feed: it "
                "may be one text or several. Give all lines the same end."
            )
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    number, first = filled[0] if filled else (0, "")
    second = filled[1][1] if len(filled) > 1 else ""
    if (what := _json(first, second, lines)) is not None:
        raise ValueError(
            f"{place}, line {number}, is {what}, and would be embedded with its braces and keys. Rename the file to "
            '.jsonl (one object per line) or .json (an array) to embed its "text"; to embed the JSON itself, put it '
            'under "text" there.'
        )
    objects = [row for row, line in filled[:_SAMPLE] if _is_object(line)]
    if 2 * len(objects) > len(filled[:_SAMPLE]):
        raise ValueError(
            f"{place}, line {objects[0]}, is a JSON object, as most lines are, and would be embedded with its braces "
            f"and keys; line {number} is not. Remove the lines that are not JSON, and rename the file to .jsonl."
        )
    if (what := _markup(first, second, lines)) is not None:
        raise ValueError(f"{place}, line {number}, begins {what}, which is not one text per line. Extract its texts.")
    if (delimiter := _delimiter([line for _, line in filled[:_SAMPLE]])) is not None:
        raise ValueError(
            f"{place} is a table in columns (separated by {_DELIMITERS[delimiter]}), which is not read: its rows would "
            'be embedded with their ids and separators. Write it as .jsonl, one {"text": ..., "title": ...} per line.'
        )


def _json(first: str, second: str, lines: Sequence[str]) -> str | None:
    if not first.lstrip().startswith(("{", "[")):
        return None
    for text in (first, "\n".join(lines)):
        try:
            value = parse_json(text, "")
        except NotJsonError:
            continue
        if isinstance(value, dict):
            return "a JSON object"
        if text is not first or not all(isinstance(each, int | float) for each in value):
            return "a JSON array"
    return "the beginning of JSON" if _JSON_START.match(f"{first}\n{second}") else None


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return bool(parse_json(line, ""))
    except NotJsonError:
        return False


def _markup(first: str, second: str, lines: Sequence[str]) -> str | None:
    start = first.lstrip().lower()
    tag = _OPENING_TAG.fullmatch(first)
    if start.startswith("<!--"):  # a comment may stand before all else
        start = second.lstrip().lower()
    if start.startswith(("<?xml", "<!doctype", "<html")) or (
        tag is not None and any(f"</{tag.group(1)}>" in line for line in lines)
    ):
        return "a page in markup (HTML, XML or SGML)"
    # A second --- ends the head of a Markdown file, which is lines.
    document = start.rstrip() == "---" and _KEY.match(second) and sum(line.strip() == "---" for line in lines) == 1
    if document or _SETTINGS.match(f"{first}\n{second}"):
        return "YAML, TOML or INI"
    return "subtitles" if _SUBTITLES.match(f"{first}\n{second}") else None


def _delimiter(lines: Sequence[str]) -> str | None:
    """What parts the columns of a table; None where the lines may be texts."""
    for delimiter in _DELIMITERS:
        if 2 * sum(delimiter in line for line in lines) <= len(lines):
            continue
        try:
            quoted = delimiter != "\t" or lines[0].startswith('"')
            rows = list(csv.reader(lines, delimiter=delimiter)) if quoted else [line.split("\t") for line in lines]
        except csv.Error:  # a field of more than 128 KiB, or a quote that never ends
            continue
        if _has_header(rows) or (len(rows) > 1 and _is_table(rows, lines, delimiter)):
            return delimiter
    return None


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    names = [re.sub(r"[^a-z]", "", cell.lower()) for cell in rows[0]]
    known = sum(name in _COLUMNS for name in names)
    same = sum(len(row) == len(names) for row in rows)
    return known >= 2 and all(len(cell) <= 40 for cell in rows[0]) and 2 * same > len(rows)


def _is_table(rows: Sequence[Sequence[str]], lines: Sequence[str], delimiter: str) -> bool:
    """Whether rows without a header are those of a table."""
    if all(re.fullmatch(rf"{_QUOTED}({re.escape(delimiter)}{_QUOTED})+", line.strip()) for line in lines):
        return True
    width, count = Counter(map(len, rows)).most_common(1)[0]
    if width < 2 or count < _SAME * len(rows):
        return False
    rows = [row for row in rows if len(row) == width]
    if delimiter == "\t":  # which prose holds at the beginning of a line, if at all
        if 2 * sum(_LABEL.fullmatch(row[0].strip()) is not None for row in rows) > len(rows):
            return False
        filled = sum(2 * sum(bool(row[place].strip()) for row in rows) > len(rows) for place in range(width))
        return filled >= 2
    if count < len(lines) or count < 3 or any(cell[:1].isspace() for row in rows for cell in row[1:]):
        return False
    within_numbers = sum(row[0][-1:].isdigit() and row[1][:1].isdigit() for row in rows)
    if 2 * within_numbers >= count:  # 1,000 people; 1,2-dichloroethane
        return False
    ids = [row[0] for row in rows]
    return (len(set(ids)) == count and all(map(_ID.fullmatch, ids))) or all(
        _NUMBER.fullmatch(row[-1].strip()) for row in rows
    )
