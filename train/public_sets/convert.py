"""Records of a repository -> records of our files, one at a time, with counts of what was changed or left out.

A conversion carries a small state (`state`, JSON), so that it goes on in another process where it stopped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from train.public_sets.source import OTHERWISE, RepositoryError
from train.public_sets.table import RowLayout

Record = dict[str, Any]


class Conversion:
    """One file's conversion. `place` names the records in errors; `counts` are of this file."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.counts: Counter[str] = Counter()

    def feed(self, record: Mapping[str, Any], number: int) -> Iterator[Record]:
        """What record `number` (from 1) completes. Raises RepositoryError for a value of a wrong type."""
        raise NotImplementedError

    def finish(self) -> Iterator[Record]:
        """What is left after the last record."""
        return iter(())

    @property
    def state(self) -> Any:
        """What was read and not yet given out."""
        return None

    @state.setter
    def state(self, value: Any) -> None:
        pass

    def _text(self, record: Mapping[str, Any], column: str, number: int) -> str:
        """The text of a column, "" for null."""
        value = record[column]
        if value is not None and not isinstance(value, str):
            raise RepositoryError(
                f"{self.place}, record {number}: {column!r} must be text, got {type(value).__name__} ({value!r:.80}). "
                f"{OTHERWISE}"
            )
        return value or ""


class BeirTexts(Conversion):
    """A corpus ({"_id", "title", "text"}) or, without titles, queries ({"_id", "text"}) of a BEIR folder."""

    def __init__(self, place: str, id_column: str, *, titles: bool) -> None:
        super().__init__(place)
        self._id, self._titles = id_column, titles

    def feed(self, record: Mapping[str, Any], number: int) -> Iterator[Record]:
        """One document or query; what has no text is kept and counted."""
        text = self._text(record, "text", number)
        self.counts["texts"] += 1
        self.counts["without text"] += not text.strip()
        converted = {"_id": identifier(record[self._id], f"{self.place}, record {number}, {self._id!r}")}
        if self._titles:
            converted["title"] = self._text(record, "title", number) if "title" in record else ""
        yield converted | {"text": text}


class Pairs(Conversion):
    """Training rows {"query", "positive", "negatives"?}; "positive" is a list where a query has several.

    With `grouped`, records with the same query that follow one another become one row. A record without a query or a
    positive is left out; so are negatives without text, and those that are a positive of the same query.
    """

    def __init__(self, place: str, layout: RowLayout) -> None:
        super().__init__(place)
        self._layout = layout
        self._open: dict[str, Any] | None = None

    def feed(self, record: Mapping[str, Any], number: int) -> Iterator[Record]:
        """The row that ended before this record."""
        layout = self._layout
        query, positive = (self._text(record, column, number) for column in (layout.query, layout.positive))
        negatives = [self._text(record, column, number) for column in layout.negatives]
        self.counts["records"] += 1
        if not query.strip() or not positive.strip():
            self.counts["records without a query or a positive, left out"] += 1
            return
        if self._open is None or not layout.grouped or query != self._open["query"]:
            yield from self.finish()
            self._open = {"query": query, "positives": [], "negatives": []}
        self._open["positives"].append(positive)
        self.counts["negatives without text, left out"] += sum(not text.strip() for text in negatives)
        self._open["negatives"] += [text for text in negatives if text.strip()]

    def finish(self) -> Iterator[Record]:
        """The row that is still open."""
        if self._open is None:
            return
        positives, negatives = (list(dict.fromkeys(self._open[name])) for name in ("positives", "negatives"))
        wrong = set(positives) & set(negatives)
        row = {"query": self._open["query"], "positive": positives if len(positives) > 1 else positives[0]}
        kept = [text for text in negatives if text not in wrong]
        self._open = None
        self.counts["rows"] += 1
        self.counts["rows with several positives"] += len(positives) > 1
        self.counts["negatives that are positives of the same query, left out"] += len(wrong)
        self.counts["negatives"] += len(kept)
        yield row | ({"negatives": kept} if kept else {})

    @property
    def state(self) -> Any:
        """The open row."""
        return self._open

    @state.setter
    def state(self, value: Any) -> None:
        self._open = value


def identifier(value: Any, place: str) -> str:
    """An id as text; whole numbers are ids in many repositories. Raises RepositoryError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or any(sign in value for sign in "\t\r\n"):
        raise RepositoryError(f"{place}: an id must be text without tabs and line ends, or a whole number: {value!r}.")
    return value


def judgements(
    records: Iterable[Mapping[str, Any]], place: str, queries: set[str], documents: set[str]
) -> tuple[list[tuple[str, str, int]], Counter[str]]:
    """(query, document, relevance) of one split whose query and document are there, and the counts.

    Judgements of absent texts are left out and counted, since a trainer stops at them; where that is more than one in a
    hundred, the ids of the files are not the same ids, and RepositoryError says so. So do two grades for one pair, and
    a relevance that is not a whole number.
    """
    rows: dict[tuple[str, str], int] = {}
    counts: Counter[str] = Counter()
    missing = ""
    for number, record in enumerate(records, start=1):
        where = f"{place}, record {number}"
        query = identifier(record["query-id"], f"{where}, 'query-id'")
        document = identifier(record["corpus-id"], f"{where}, 'corpus-id'")
        grade = _grade(record["score"], where)
        counts["judgements"] += 1
        if query not in queries or document not in documents:
            missing = missing or (f"query {query!r}" if query not in queries else f"document {document!r}")
            counts["judgements of absent texts, left out"] += 1
        elif rows.setdefault((query, document), grade) != grade:
            raise RepositoryError(f"{where}: {query!r}, {document!r} is {grade}, an earlier record says otherwise.")
    if counts["judgements of absent texts, left out"] * 100 > counts["judgements"]:
        raise RepositoryError(
            f"{place}: {counts['judgements of absent texts, left out']} of {counts['judgements']} judgements name "
            f"texts that are not there, the first one {missing}. These judgements do not belong to these texts."
        )
    counts["queries"] = len({query for query, _ in rows})
    counts["queries with several relevant documents"] = sum(
        count > 1 for count in Counter(query for (query, _), grade in rows.items() if grade > 0).values()
    )
    return [(query, document, grade) for (query, document), grade in rows.items()], counts


def _grade(value: Any, place: str) -> int:
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise RepositoryError(f"{place}: 'score' must be a whole number, got {value!r}.")
    return int(value)
