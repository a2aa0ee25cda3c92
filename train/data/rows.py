"""Training rows, their reader from records with columns of the user's naming, and the interface of a source of rows."""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from search_r3_mteb.disk import naming
from search_r3_mteb.encoder.documents import join_title
from train.config.data import ColumnSettings
from train.data.order import choose
from train.formats.records import KNOWN, FormatError, columns_of

_ID_KEYS = ("id", "_id", "docid", "doc_id")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A query with a relevant document, as texts; a document's title precedes its text, as the encoder joins them."""

    query: str
    positive: str
    positive_id: str | None = None
    negatives: tuple[str, ...] = ()
    reasoning: str | None = None
    source: str = ""
    query_id: str | None = None
    relevant: tuple[tuple[str, int], ...] = ()
    """(document id, relevance) of every document that the row's own judgements call relevant; see `text_id`."""
    positives: tuple[tuple[str | None, str], ...] = ()
    """(id, text) of every relevant document where the record holds several; `positive` is this epoch's."""
    hops: int | None = None
    """Length of the chain, hopworld only."""
    given: str | None = None
    """Reasoning that precedes `reasoning` as if it had been said: it is read, not learned."""


class JudgedPair(NamedTuple):
    """A document that is relevant to a query, as texts; relevance is above 0. `number` is the row's, from 1."""

    query: str
    document_id: str
    document: str
    relevance: int
    number: int | None = None


def text_id(text: str) -> str:
    """The id of a document that has none: a hash of its text."""
    return f"text-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def positives_of(row: TrainingRow) -> tuple[tuple[str | None, str], ...]:
    """(id, text) of every relevant document that the row holds."""
    return row.positives or ((row.positive_id, row.positive),)


class BadRowError(ValueError):
    """A row that cannot be trained on: where it stands, and why."""

    def __init__(self, place: str, line: int, reason: str) -> None:
        self.place, self.line, self.reason = place, line, reason
        super().__init__(
            f'{place}, line {line}: {reason}. Correct the row, or set data.on_bad_row = "skip" to leave such rows out.'
        )


class RowReader:
    """Records (dicts) of one file or dataset -> TrainingRow, by the user's column names."""

    def __init__(self, columns: ColumnSettings, label: str, place: str | Path) -> None:
        self.columns, self.label, self.place = columns, label, str(place)

    def read(self, record: Any, line: int, epoch: int = 0) -> TrainingRow:
        """The row in `record`. Of several positives each epoch takes the next. Raises BadRowError."""
        try:
            return self._read(record, epoch)
        except _Reason as reason:
            raise BadRowError(self.place, line, str(reason)) from None

    def _read(self, record: Any, epoch: int) -> TrainingRow:
        if not isinstance(record, Mapping):
            raise _Reason(f"a row is one JSON object, got {type(record).__name__}")
        try:
            names = columns_of(self.columns, record)
        except FormatError as error:
            raise _Reason(str(error)) from None
        positives = _documents(record, names.positive, required=True)
        if names.positive_title is not None:
            positives = [(id_, join_title(_title(record, names.positive_title), text)) for id_, text in positives]
        chosen_id, positive = positives[epoch % len(positives)]
        own_id = _id(record.get(names.positive_id))
        if own_id is not None and len(positives) > 1:
            raise _Reason(f"{names.positive_id!r} is one id, but {names.positive!r} holds {len(positives)} documents")
        if own_id is not None:
            positives = [(own_id, positive)]
        negatives = [text for name in names.negatives for _, text in _documents(record, name, required=False)]
        if any(text in negatives for _, text in positives):
            raise _Reason("the positive is also among the negatives, so the row contradicts itself")
        return TrainingRow(
            query=_checked(_value(record, names.query), names.query),
            positive=positive,
            positive_id=own_id or chosen_id,
            negatives=tuple(negatives),
            reasoning=_optional_text(record, names.reasoning),
            given=_optional_text(record, names.given),
            source=self.label,
            query_id=_id(record.get(names.query_id)),
            relevant=tuple(dict.fromkeys((id_ or text_id(text), 1) for id_, text in positives)),
            positives=tuple(positives) if len(positives) > 1 else (),
        )


class RowSource(ABC):
    """Rows of one place. `count` is None where rows can only be read in order."""

    label: str
    count: int | None = None
    local: bool = True
    """Whether all of its rows can be read before the run without downloading them."""

    @abstractmethod
    def iterate(self, start: int = 0) -> Iterator[Any]:
        """Raw rows from position `start` on, in file order."""

    @abstractmethod
    def parse(self, raw: Any, epoch: int) -> TrainingRow | None:
        """The row, None where there is none (a blank line). Raises BadRowError."""

    def judgements(self, on_bad_row: str = "stop") -> Iterator[JudgedPair]:
        """Every relevant document of every query, by one pass over all rows. Malformed rows stop, or are left out."""
        for number, row in self.numbered(on_bad_row):
            for id_, text in positives_of(row):
                yield JudgedPair(row.query, id_ or text_id(text), text, 1, number)

    def numbered(self, on_bad_row: str = "stop") -> Iterator[tuple[int, TrainingRow]]:
        """(number from 1, row) of every row once, in file order. Malformed rows stop, or are left out with "skip"."""
        for number, raw in enumerate(self.iterate(), start=1):
            try:
                row = self.parse(raw, 0)
            except BadRowError:
                if on_bad_row == "stop":
                    raise
                continue
            if row is not None:
                yield number, row

    def at(self, position: int) -> Any:
        """The raw row at a position; only where `count` is known."""
        raise TypeError(f"{self.label} can only be read in order.")

    def rejected(self) -> list[str]:
        """Malformed rows that were left out while the source was opened, as messages."""
        return []


class Spill:
    """JSON values in an anonymous temporary file, found by their offset. It vanishes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        self._place, self._end = Path(tempfile.gettempdir()), 0

    def add(self, value: Any) -> int:
        """Append a value; the offset to `get` it by."""
        place = self._end
        with naming(self._place):
            self._file.seek(place)
            self._end += self._file.write(json.dumps(value).encode("ascii") + b"\n")
        return place

    def get(self, place: int) -> Any:
        """The value at an offset."""
        with naming(self._place):  # what was added last may be written only now
            self._file.seek(place)
        return json.loads(self._file.readline())


def limit_negatives(row: TrainingRow, count: int, *parts: object) -> tuple[str, ...]:
    """At most `count` of the row's negatives, drawn by `parts` (seed, epoch, position)."""
    return tuple(row.negatives[i] for i in choose(count, len(row.negatives), *parts))


class _Reason(Exception):  # noqa: N818  never leaves this module
    """Why a record is not a row."""


def _value(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise _Reason(
            f"there is no {name!r}; the row has {', '.join(map(repr, record)) or 'no keys'}. Where these are not the "
            f'columns of {KNOWN}, say which is which: columns = {{ query = "...", positive = "..." }}'
        )
    return record[name]


def _optional_text(record: Mapping[str, Any], name: str) -> str | None:
    return None if record.get(name) is None else _checked(record[name], name)


def _title(record: Mapping[str, Any], name: str) -> str | None:
    title = _value(record, name)
    if title is not None and not isinstance(title, str):
        raise _Reason(f"{name!r} must be text, got {type(title).__name__}")
    return title


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Reason(f"{name!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise _Reason(f"{name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Reason(f"{name!r} holds a lone surrogate, which is not text") from None
    return value


def _documents(record: Mapping[str, Any], name: str, *, required: bool) -> list[tuple[str | None, str]]:
    """(id or None, text) of a text, a {title, text} object, or a list of either."""
    if record.get(name) is None and not required:
        return []
    value = _value(record, name)
    items = value if isinstance(value, list | tuple) else [value]
    if not items and required:
        raise _Reason(f"{name!r} is an empty list")
    return [_document(item, name) for item in items]


def _document(item: Any, name: str) -> tuple[str | None, str]:
    if not isinstance(item, Mapping):
        return None, _checked(item, name)
    if "text" not in item:
        raise _Reason(f"a document in {name!r} has no 'text'; it has {', '.join(map(repr, item)) or 'no keys'}")
    text = item["text"]
    if not isinstance(text, str):
        raise _Reason(f"'text' in {name!r} must be text, got {type(text).__name__}")
    joined = join_title(_title(item, "title") if "title" in item else None, text)
    ids = [_id(item[key]) for key in _ID_KEYS if key in item]
    return (ids[0] if ids else None), _checked(joined, name)


def _id(value: Any) -> str | None:
    """Ids may be JSON integers, as in many files."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _Reason(f"an id must be text or a whole number, got {value!r}")
