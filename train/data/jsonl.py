"""JSONL files of any size, plain or .gz: read in order, and plain files also at random.

A plain file is indexed once by the byte offset of every 32nd line: ten million lines take 2.5 MB, and a line is found
by reading at most 31 others. A .gz can only be read in order.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from search_r3_mteb.atomic import write_jsonl
from train.data.rows import BadRowError, TrainingRow

_STRIDE = 32  # lines per entry of the index
_CHUNK = 1 << 20  # bytes read at a time while indexing
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line as it stands in the file, with its number from 1."""

    number: int
    raw: bytes


class JsonlFile:
    """A JSONL file. `count` is None for .gz, which cannot be indexed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no file {str(path)!r} with one JSON object per line (.jsonl or .jsonl.gz)."
            )
        self.packed = self.path.suffix == ".gz"
        self.count: int | None = None
        self._stream: BinaryIO | None = None
        if not self.packed:
            self.count, self._offsets = _index(self.path)

    def at(self, index: int) -> Line:
        """The line with that index, from 0; plain files only."""
        if self.count is None:
            raise ValueError(
                f"{self.path.name} is packed and can only be read in order. Unpack it to read it at random."
            )
        if not 0 <= index < self.count:
            raise IndexError(f"{self.path.name} has {self.count} lines, not {index + 1}.")
        if self._stream is None:
            self._stream = self.path.open("rb")
        self._stream.seek(int(self._offsets[index // _STRIDE]))
        for _ in range(index % _STRIDE):
            self._stream.readline()
        return Line(index + 1, self._stream.readline())

    def lines(self, start: int = 0) -> Iterator[Line]:
        """The lines from index `start` on, in order. ValueError (file, line) where a .gz is damaged or cut off."""
        number = 0
        with cast("BinaryIO", gzip.open(self.path, "rb")) if self.packed else self.path.open("rb") as stream:
            if self.count and start:
                number = min(start, self.count - 1) // _STRIDE * _STRIDE
                stream.seek(int(self._offsets[number // _STRIDE]))
            try:
                for raw in stream:
                    number += 1
                    if number > start:
                        yield Line(number, raw)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{self.path}, after line {number}: damaged or truncated gzip file ({error}). Copy it again."
                ) from error

    def record(self, line: Line) -> Any:
        """The JSON value of a line, None for a blank line. Raises BadRowError."""
        raw = line.raw.removeprefix(_BYTE_ORDER_MARK) if line.number == 1 else line.raw
        if not raw.strip():
            return None
        try:
            return json.loads(raw)
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 ({error.reason} at byte {error.start})"
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg} at column {error.colno})"
        except RecursionError:
            reason = "not JSON that can be read (nested too deeply)"
        raise BadRowError(str(self.path), line.number, reason)


def write_rows(rows: Sequence[TrainingRow], path: str | Path) -> None:
    """Write rows as JSONL that a source of kind "jsonl" reads without a column mapping; complete or not at all."""
    names = ("query", "positive", "positive_id", "negatives", "reasoning", "query_id")
    records = [{name: value for name in names if (value := getattr(row, name)) not in (None, ())} for row in rows]
    for row, record in zip(rows, records, strict=True):
        if row.positives:  # each document has its own id, or none
            record.pop("positive_id", None)
            record["positive"] = [{"text": text} | ({"id": id_} if id_ else {}) for id_, text in row.positives]
    write_jsonl(Path(path), records)


def _index(path: Path) -> tuple[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """The number of lines, and the offset of every 32nd."""
    offsets = [np.zeros(1, dtype=np.int64)]
    lines, position, last = 0, 0, b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == 10)  # newlines
            numbers = np.arange(lines + 1, lines + len(ends) + 1)  # index of the line that begins after each
            offsets.append(ends[numbers % _STRIDE == 0] + position + 1)
            lines, position, last = lines + len(ends), position + len(chunk), chunk[-1:]
    return lines + (last != b"\n"), np.concatenate(offsets)
