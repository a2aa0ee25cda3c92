"""Sources of training rows: JSONL files, BEIR folders with training judgements, Hugging Face datasets, hopworld.

A source hands out raw rows by position (`at`) where it can, else only in order (`iterate`), and turns one into a
`TrainingRow` (`parse`). None holds its texts in memory: JSONL files are read in place; rows that must be joined or
generated first (BEIR judgements, hopworld) go to an anonymous temporary file in TMPDIR.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import read_corpus
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.data import JudgedSetSettings, SourceSettings
from train.data.beir_source import BeirSource, Unit
from train.data.jsonl import JsonlFile, Line
from train.data.order import uniform
from train.data.rows import BadRowError, RowReader, RowSource, Spill, TrainingRow
from train.formats.files import is_table, refuse_folder, triple
from train.formats.records import FormatError


class JsonlSource(RowSource):
    """Pairs or triples, one JSON object per line, or MS MARCO's text triples; .gz is read in order."""

    def __init__(self, settings: SourceSettings) -> None:
        self.label = settings.label
        self._file = JsonlFile(str(settings.path))
        self.count = self._file.count
        if self.count == 0:
            raise ValueError(
                f"{settings.path} is empty: there is nothing to train on. Remove the source or fill the file."
            )
        first = next((line for line in self._file.lines() if line.raw.strip()), None)
        self._table = first is not None and is_table(self._file.path, first.raw)
        self._reader = RowReader(settings.columns, self.label, self._file.path)

    def at(self, position: int) -> Line:
        """The line at a position."""
        return self._file.at(position)

    def iterate(self, start: int = 0) -> Iterator[Line]:
        """The lines in order."""
        return self._file.lines(start)

    def parse(self, raw: Line, epoch: int) -> TrainingRow | None:
        """The row of one line."""
        record = self._row_of_table(raw) if self._table else self._file.record(raw)
        return None if record is None else self._reader.read(record, raw.number, epoch)

    def _row_of_table(self, raw: Line) -> dict[str, str] | None:
        try:
            return triple(raw.raw)
        except FormatError as error:
            raise BadRowError(str(self._file.path), raw.number, str(error)) from None


class HubSource(RowSource):
    """A Hugging Face dataset, streamed: nothing is downloaded beyond what is read. A local folder works as well."""

    def __init__(self, settings: SourceSettings) -> None:
        from datasets import load_dataset

        self.label, self.local = settings.label, Path(str(settings.path)).exists()
        self._rows = load_dataset(
            str(settings.path),
            settings.configuration,
            split=settings.split,
            revision=settings.revision,
            streaming=True,
        )
        self._reader = RowReader(settings.columns, self.label, f"{settings.path}[{settings.split}]")

    def iterate(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """(row number from 1, record) in order; the rows before `start` are passed over without being decoded."""
        rows = self._rows.skip(start) if start else self._rows
        return ((number, record) for number, record in enumerate(rows, start=start + 1))

    def parse(self, raw: tuple[int, Mapping[str, Any]], epoch: int) -> TrainingRow:
        """The row of one record."""
        number, record = raw
        return self._reader.read(record, number, epoch)


class HopWorldSource(RowSource):
    """Training queries of the generated world, in a temporary file so that a large world is shuffled as a whole."""

    def __init__(self, settings: SourceSettings) -> None:
        self.label, self._continued = settings.label, settings.continued
        world = HopWorld(settings.documents, settings.world_seed)
        self._spill = Spill()
        self._offsets = np.fromiter(
            (self._spill.add(row) for row in world.training_rows(settings.hops, settings.traces)), dtype=np.int64
        )
        self.count = len(self._offsets)

    def at(self, position: int) -> dict[str, Any]:
        """The generated row at a position."""
        row: dict[str, Any] = self._spill.get(int(self._offsets[position]))
        return row

    def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The generated rows in order."""
        return (self.at(position) for position in range(start, len(self._offsets)))

    def parse(self, raw: dict[str, Any], epoch: int) -> TrainingRow:
        """The row, with the world's own ids."""
        given, reasoning = self._trace(raw, epoch)
        return TrainingRow(
            query=raw["query"],
            positive=raw["positive"],
            positive_id=raw["positive_id"],
            negatives=tuple(raw.get("negatives", ())),
            reasoning=reasoning,
            given=given,
            source=self.label,
            query_id=raw["query_id"],
            relevant=((raw["positive_id"], 1),),
            hops=raw["hops"],
        )

    def _trace(self, raw: dict[str, Any], epoch: int) -> tuple[str | None, str | None]:
        """The given part of the trace, and the part to be said; draws depend on the query and the epoch alone."""
        trace: str | None = raw.get("reasoning")
        draw = partial(uniform, "continued", raw["query_id"], epoch)
        if trace is None or raw["hops"] == 1 or draw("row") >= self._continued:
            return None, trace
        sentences = [f"{sentence}." for sentence in trace.rstrip(".").split(". ")]
        last = int(draw("last") * len(sentences))
        said: list[str] = []
        for place in range(last + 1):
            # Only the last sentence says where the chain is; how many stand before it must not matter.
            if place == last or draw("keep", place) < 0.5:
                said += [sentences[place]] * (2 if draw("double", place) < 0.25 else 1)
        return " ".join(said), " ".join(sentences[last + 1 :])


def open_source(settings: SourceSettings, *, unit: Unit = "judgement", on_bad_row: str = "stop") -> RowSource:
    """The source that `settings` describe. Raises FileNotFoundError or ValueError where it cannot be read."""
    if settings.kind == "jsonl":
        return JsonlSource(settings)
    if settings.kind == "hub":
        return HubSource(settings)
    if settings.kind == "hopworld":
        return HopWorldSource(settings)
    refuse_folder(Path(str(settings.path)))
    return BeirSource(settings, unit, on_bad_row)


def documents_of(place: SourceSettings | JudgedSetSettings) -> Iterator[tuple[str, str]]:
    """(id, text) of every document of a BEIR folder or a hopworld, titles before the texts."""
    if place.kind == "hopworld":
        corpus = HopWorld(place.documents, place.world_seed).corpus
        return ((id_, join_title(document["title"], document["text"])) for id_, document in corpus.items())
    return ((id_, join_title(title, text)) for id_, title, text in read_corpus(str(place.path)))


def all_rows(source: RowSource, on_bad_row: str = "stop") -> Iterator[TrainingRow]:
    """The rows of `RowSource.numbered`: for mining and for reports."""
    return (row for _, row in source.numbered(on_bad_row))
