"""Training rows from a BEIR folder: its judgements, joined with the texts that they judge."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import (
    choose_split,
    header_fault,
    is_relevance,
    read_corpus,
    read_qrels,
    read_queries,
)
from train.config.data import SourceSettings
from train.data.jsonl import JsonlFile
from train.data.rows import BadRowError, JudgedPair, RowSource, Spill, TrainingRow

Unit = Literal["judgement", "query"]
"""One row per relevant document (supervised training), or one per query with all of them (prompts of stage 2)."""


class _Judged(NamedTuple):
    """One query with its relevant documents, by their places in the temporary file."""

    query_id: str
    query: int
    documents: tuple[tuple[str, int, int], ...]  # id, relevance, place


class BeirSource(RowSource):
    """Training judgements of a BEIR folder; relevance above 0 makes a positive.

    Only judged texts are copied to the temporary file, however large the corpus. A judgement of an unknown query or
    document is a malformed row.
    """

    def __init__(self, settings: SourceSettings, unit: Unit = "judgement", on_bad_row: str = "stop") -> None:
        self.label, self._folder = settings.label, Path(str(settings.path))
        self._rejected: list[str] = []
        reader = _BeirReader(self._folder, settings.split, self._rejected.append if on_bad_row == "skip" else None)
        self._spill = Spill()
        self._queries = self._join(reader)
        self._rows = [
            (query, document)
            for query, judged in enumerate(self._queries)
            for document in (range(len(judged.documents)) if unit == "judgement" else (-1,))
        ]
        self.count = len(self._rows)
        if not self.count:
            raise ValueError(
                f"{self._folder.name}: qrels/{settings.split}.tsv judges no document relevant, so there is nothing to "
                "train on. Name another split."
            )

    def at(self, position: int) -> tuple[int, int]:
        """(query, document) by their numbers; document -1 stands for all of the query's."""
        return self._rows[position]

    def iterate(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """The rows in the order of the judgements."""
        return iter(self._rows[start:])

    def parse(self, raw: tuple[int, int], epoch: int) -> TrainingRow:
        """The row; with one row per query each epoch takes the next of its most relevant documents."""
        query, document = raw
        judged = self._queries[query]
        highest = max(grade for _, grade, _ in judged.documents)
        best = [one for one in judged.documents if one[1] == highest]
        id_, _, place = judged.documents[document] if document >= 0 else best[epoch % len(best)]
        return TrainingRow(
            query=self._spill.get(judged.query),
            positive=self._spill.get(place),
            positive_id=id_,
            source=self.label,
            query_id=judged.query_id,
            relevant=tuple((name, grade) for name, grade, _ in judged.documents),
        )

    def judgements(self, on_bad_row: str = "stop") -> Iterator[JudgedPair]:
        """Every relevant document of every query; what was malformed has been found when the folder was opened."""
        for judged in self._queries:
            query = self._spill.get(judged.query)
            for id_, relevance, place in judged.documents:
                yield JudgedPair(query, id_, self._spill.get(place), relevance)

    def rejected(self) -> list[str]:
        """Rows left out while the folder was read."""
        return self._rejected

    def _join(self, reader: "_BeirReader") -> list[_Judged]:
        grades: dict[str, dict[str, int]] = {}
        for query_id, document_id, relevance in reader.judgements():
            if relevance > 0:
                grades.setdefault(query_id, {})[document_id] = relevance
        wanted = {document_id for judged in grades.values() for document_id in judged}
        queries = {id_: self._spill.add(text) for id_, text in reader.queries() if id_ in grades}
        documents = {
            id_: self._spill.add(join_title(title, text)) for id_, title, text in reader.documents() if id_ in wanted
        }
        reader.check(grades, queries, documents)
        known = ((query_id, judged) for query_id, judged in grades.items() if query_id in queries)
        joined = (
            _Judged(
                query_id, queries[query_id], tuple((d, g, documents[d]) for d, g in judged.items() if d in documents)
            )
            for query_id, judged in known
        )
        return [judged for judged in joined if judged.documents]


class _AllBut:
    """Every id but one."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __contains__(self, id_: object) -> bool:
        return id_ != self._missing


class _BeirReader:
    """The three files of a folder.

    Without `reject` the package's readers stop at the first fault; with it, faulty lines go to `reject` instead.
    """

    def __init__(self, folder: Path, split: str, reject: Callable[[str], None] | None) -> None:

        self._folder, self._split, self._reject = folder, choose_split(folder, split), reject

    def judgements(self) -> Iterable[tuple[str, str, int]]:
        """(query id, document id, relevance) in file order."""
        return read_qrels(self._folder, self._split) if self._reject is None else self._lenient_qrels(self._reject)

    def queries(self) -> Iterable[tuple[str, str]]:
        """(id, text) in file order."""
        if self._reject is None:
            return read_queries(self._folder)
        return ((id_, text) for id_, _, text in self._lenient("queries.jsonl", self._reject))

    def documents(self) -> Iterable[tuple[str, str, str]]:
        """(id, title, text) in file order."""
        return read_corpus(self._folder) if self._reject is None else self._lenient("corpus.jsonl", self._reject)

    def check(
        self, grades: Mapping[str, Mapping[str, int]], queries: Mapping[str, int], documents: Mapping[str, int]
    ) -> None:
        """Stop at, or reject, judgements of queries and documents that are not there."""
        for query_id, judged in grades.items():
            for document_id in judged:
                if query_id in queries and document_id in documents:
                    continue
                missing = query_id if query_id not in queries else document_id
                if self._reject is not None:
                    self._reject(f"qrels/{self._split}.tsv judges {missing!r}, which is not there")
                elif query_id not in queries:  # read once more, for an error that names the line
                    deque(read_qrels(self._folder, self._split, queries=_AllBut(missing)), maxlen=0)
                else:
                    deque(read_qrels(self._folder, self._split, documents=_AllBut(missing)), maxlen=0)

    def _lenient(self, name: str, reject: Callable[[str], None]) -> Iterator[tuple[str, str, str]]:
        file = JsonlFile(_plain_or_packed(self._folder / name))
        seen: set[str] = set()
        for line in file.lines():
            try:
                found = _beir_record(file.record(line), str(file.path), line.number)
            except BadRowError as error:
                reject(str(error))
                continue
            if found is not None and found[0] in seen:
                reject(f"{file.path}, line {line.number}: id {found[0]!r} was already used")
            elif found is not None:
                seen.add(found[0])
                yield found

    def _lenient_qrels(self, reject: Callable[[str], None]) -> Iterator[tuple[str, str, int]]:
        file = JsonlFile(_plain_or_packed(self._folder / "qrels" / f"{self._split}.tsv"))
        for line in file.lines():
            columns = line.raw.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
            if not line.raw.strip():
                continue
            if line.number == 1 and len(columns) == 3:
                if (wrong := header_fault(columns)) is not None:
                    raise ValueError(f"{file.path}, line 1: {wrong}.")
                continue
            if len(columns) == 3 and is_relevance(columns[2]):
                yield columns[0], columns[1], int(columns[2])
            else:
                reject(f"{file.path}, line {line.number}: not query-id, corpus-id and a whole number: {columns}")


def _beir_record(record: Any, place: str, line: int) -> tuple[str, str, str] | None:
    if record is None:
        return None
    if not isinstance(record, Mapping) or not isinstance(record.get("text"), str):
        raise BadRowError(place, line, "not an object with '_id' and 'text'")
    id_, title = record.get("_id"), record.get("title") or ""
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "" or not isinstance(title, str):
        raise BadRowError(place, line, "'_id' must be text that is not empty, 'title' text")
    return str(id_), title, record["text"]


def _plain_or_packed(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path
