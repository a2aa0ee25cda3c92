"""Batches of training rows from several sources: mixed by weight, shuffled, cleaned, shared out, resumable.

    data = load_training_data(config.data, batch_size=64, seed=0)  # rank= and world_size= on several processes
    rows = data.next_batch()                                       # this process's share of the next global batch
    saved = data.state_dict()                                      # JSON values; load_state_dict continues exactly

The stream is endless and a function of (settings, seed, position). Every process walks through the same global stream
and keeps its own slice of each batch: the slices in the order of rank are the single process's batch, the state is the
same on all of them, and a run on two processes resumes on one. Reading the rows of other processes costs little beside
training. Sources of known length are shuffled as a whole by a computed permutation (order.py), others in blocks of
`shuffle_rows`. Each source has epochs of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from search_r3_mteb.keys import key_of
from train.config.data import DataSettings
from train.data.beir_source import Unit
from train.data.decontamination import (
    DecontaminationReport,
    Decontaminator,
    Role,
    SourceCounts,
    decontaminator_for,
    roles_of,
)
from train.data.order import permuted, uniform
from train.data.rows import BadRowError, JudgedPair, RowSource, TrainingRow, limit_negatives
from train.data.sources import open_source

_BAD_SHOWN = 5  # messages kept per source


@dataclass(frozen=True)
class DataStatistics:
    """Counts of one source so far. Bad and dropped rows are counted in its first epoch only, so each once."""

    label: str
    epoch: int
    position: int
    """Raw rows consumed in this epoch."""
    rows: int
    """Rows handed out."""
    bad: int
    bad_examples: tuple[str, ...]
    exact_duplicates: int
    near_duplicates: int


class SourceStream:
    """Endless shuffled rows of one source. Rows in which `checker` finds an evaluation text are left out."""

    def __init__(
        self,
        source: RowSource,
        settings: DataSettings,
        seed: int,
        checker: Decontaminator | None = None,
        roles: tuple[Role, ...] = (),
    ) -> None:
        self.source, self.label = source, source.label
        self._settings, self._checker, self._key = settings, checker, key_of("rows", seed, source.label)
        self._epoch = self._position = self._given = self._given_before_epoch = 0
        self._block: tuple[tuple[int, int], list[Any]] | None = None  # (epoch, number), rows
        self._stream: Iterator[Any] | None = None
        self._stream_position = 0
        self._bad_examples = source.rejected()[:_BAD_SHOWN]
        self._bad = len(source.rejected())
        self.counts = SourceCounts(roles if checker is not None else ())
        # Keys of the queries that are given, where only some are; a function of the starting model, and not saved here.
        self.kept: frozenset[int] | None = None

    def next(self) -> TrainingRow:
        """The next row that is sound and clean. Raises BadRowError unless bad rows are skipped."""
        while True:
            raw, epoch, place = self._advance()
            try:
                row = self.source.parse(raw, epoch)
            except BadRowError as error:
                if self._settings.on_bad_row == "stop":
                    raise
                self._count_bad(epoch, error)
                continue
            if row is None or self._is_left_out(row) or self._is_evaluation_text(row, epoch):
                continue
            self._given += 1
            limit = self._settings.hard_negatives
            return replace(row, negatives=limit_negatives(row, limit, self._key, epoch, place))

    def statistics(self) -> DataStatistics:
        """Counts for the log."""
        return DataStatistics(
            label=self.label,
            epoch=self._epoch,
            position=self._position,
            rows=self._given,
            bad=self._bad,
            bad_examples=tuple(self._bad_examples),
            exact_duplicates=self.counts.exact,
            near_duplicates=self.counts.near,
        )

    def state_dict(self) -> dict[str, Any]:
        """Position and counts as JSON values."""
        return {
            "count": self.source.count,
            "epoch": self._epoch,
            "position": self._position,
            "given": self._given,
            "given_before_epoch": self._given_before_epoch,
            "bad": self._bad,
            "bad_examples": list(self._bad_examples),
            "decontamination": self.counts.to_saved(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position. ValueError where the source has another length than it had."""
        if state["count"] != self.source.count:
            raise ValueError(
                f"{self.label} had {state['count']} rows when the checkpoint was written and has {self.source.count} "
                "now, so its position means another row. Restore the file, or start a new run."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._given, self._given_before_epoch = state["given"], state["given_before_epoch"]
        self._bad, self._bad_examples = state["bad"], list(state["bad_examples"])
        self.counts = SourceCounts.from_saved(state["decontamination"])
        self._block = self._stream = None

    def _advance(self) -> tuple[Any, int, int]:
        """The next raw row of the shuffled epoch, with its epoch and position."""
        raw = self._at(self._position)
        if raw is None:
            self._next_epoch()
            raw = self._at(0)
            if raw is None:
                raise ValueError(
                    f"{self.label} has no rows: there is nothing to train on. Remove the source or fill it."
                )
        self._position += 1
        return raw, self._epoch, self._position - 1

    def _next_epoch(self) -> None:
        if self._position and self._given == self._given_before_epoch:
            counts, advice = self.counts, "Name another source."
            if counts.documents:
                advice += (
                    ' Where it shares documents with the evaluation by design, set its decontaminate = ["queries"].'
                )
            raise ValueError(
                f"{self.label}: none of its {self._position} rows can be trained on: {self._bad} are malformed, "
                f"{counts.exact + counts.near} repeat evaluation texts ({counts.repeats()}). "
                + (f"The first: {self._bad_examples[0]}" if self._bad_examples else advice)
            )
        self._epoch, self._position, self._given_before_epoch = self._epoch + 1, 0, self._given

    def _at(self, position: int) -> Any:
        """The raw row at a position of the shuffled epoch, None after the last."""
        count = self.source.count
        if count is not None:
            return (
                self.source.at(permuted(position, count, key_of(self._key, self._epoch))) if position < count else None
            )
        number, offset = divmod(position, self._settings.shuffle_rows)
        if self._block is None or self._block[0] != (self._epoch, number):
            self._block = ((self._epoch, number), self._read_block(number))
        rows = self._block[1]
        return rows[permuted(offset, len(rows), key_of(self._key, self._epoch, number))] if offset < len(rows) else None

    def _read_block(self, number: int) -> list[Any]:
        """The next `shuffle_rows` raw rows; an open stream goes on where the previous block ended."""
        size, start = self._settings.shuffle_rows, number * self._settings.shuffle_rows
        if self._stream is None or self._stream_position != start:
            self._stream = self.source.iterate(start)
        rows = list(islice(self._stream, size))
        self._stream_position = start + len(rows)
        return rows

    def _count_bad(self, epoch: int, error: BadRowError) -> None:
        if epoch == 0:
            self._bad += 1
            if len(self._bad_examples) < _BAD_SHOWN:
                self._bad_examples.append(str(error))

    def _is_left_out(self, row: TrainingRow) -> bool:
        return self.kept is not None and key_of(row.query) not in self.kept

    def _is_evaluation_text(self, row: TrainingRow, epoch: int) -> bool:
        match = self._checker.find(row, self.counts.against) if self._checker is not None else None
        if epoch == 0:
            self.counts.add(match, self._settings.decontamination.examples)
        return match is not None


def check_shares(name: str, size: int, processes: int) -> None:
    """ValueError where `processes` cannot share the `size` rows of a step evenly; `name` is the setting's."""
    if size < 1 or size % processes:
        raise ValueError(
            f"{name} = {size} cannot be shared evenly by {processes} processes, and uneven shares would "
            f"weigh rows differently. Set {name} to a multiple of {processes}."
        )


class TrainingData:
    """The mixed stream in batches of `batch_size` rows over all processes; this one gets its share.

    Iterating never ends. Raises ValueError where the processes cannot share the batch evenly.
    """

    def __init__(
        self,
        streams: Sequence[SourceStream],
        settings: DataSettings,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        checker: Decontaminator | None = None,
    ) -> None:
        check_shares("batch_size", batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} is not one of {world_size} processes: ranks count from 0.")
        self.streams, self._settings, self._seed, self._checker = list(streams), settings, seed, checker
        self.batch_size, self._rank, self._world_size = batch_size, rank, world_size
        total = sum(source.weight for source in settings.sources)
        self._shares = [source.weight / total for source in settings.sources]
        self._batches = 0

    def next_batch(self) -> list[TrainingRow]:
        """The rows of this process in the next global batch: a contiguous slice, in the order of rank."""
        rows = self.next_global_batch()
        share = self.batch_size // self._world_size
        return rows[self._rank * share : (self._rank + 1) * share]

    def next_global_batch(self) -> list[TrainingRow]:
        """The rows of all processes."""
        rows = []
        for place in range(self.batch_size):
            by_batch = self._settings.mixing == "batches"
            rows.append(self.streams[self._draw(self._batches, 0 if by_batch else place)].next())
        self._batches += 1
        return rows

    def __iter__(self) -> Iterator[list[TrainingRow]]:
        while True:
            yield self.next_batch()

    @property
    def sources(self) -> dict[str, RowSource]:
        """The open sources by label."""
        return {stream.label: stream.source for stream in self.streams}

    def judgements(self) -> Iterator[JudgedPair]:
        """Every relevant document of every query of all sources that can be read ahead, dropped rows among them."""
        for stream in self.streams:
            if stream.source.local:
                yield from stream.source.judgements(self._settings.on_bad_row)

    def statistics(self) -> list[DataStatistics]:
        """Counts of every source, for the log."""
        return [stream.statistics() for stream in self.streams]

    def decontamination_report(self) -> DecontaminationReport:
        """Rows dropped so far, and the evaluation sets that they were compared with."""
        settings = self._settings.decontamination
        evaluations = self._checker.evaluations if self._checker is not None else {}
        report = DecontaminationReport(settings.threshold, settings.shingle_words, evaluations)
        report.sources.update({stream.label: stream.counts for stream in self.streams})
        return report

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON values, equal on every process."""
        return {
            "batches": self._batches,
            "batch_size": self.batch_size,
            "seed": self._seed,
            "sources": {stream.label: stream.state_dict() for stream in self.streams},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. ValueError where sources, seed or batch size are others."""
        mine = {"batch_size": self.batch_size, "seed": self._seed, "sources": [stream.label for stream in self.streams]}
        theirs = {"batch_size": state["batch_size"], "seed": state["seed"], "sources": list(state["sources"])}
        for name, value in mine.items():
            if theirs[name] != value:
                raise ValueError(
                    f"The checkpoint's data position is for {name} = {theirs[name]}, this run has {value}: other rows "
                    "would follow. Resume with the same data settings, or start a new run."
                )
        self._batches = state["batches"]
        for stream in self.streams:
            stream.load_state_dict(state["sources"][stream.label])

    def _draw(self, batch: int, place: int) -> int:
        """The source of one row, by its share; the same on every process."""
        point = uniform("mixing", self._seed, batch, place)
        for number, share in enumerate(self._shares):
            point -= share
            if point < 0:
                return number
        return len(self._shares) - 1  # the shares sum to 1 up to rounding


def load_training_data(
    settings: DataSettings,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    unit: Unit = "judgement",
) -> TrainingData:
    """The training data that the configuration describes, opened and cleaned of evaluation texts.

    `unit` "query" gives one row per query of a BEIR folder instead of one per judgement: prompts of stage 2. Raises
    FileNotFoundError or ValueError where a source cannot be read.
    """
    checker = decontaminator_for(settings)
    streams = []
    for source in settings.sources:
        opened = open_source(source, unit=unit, on_bad_row=settings.on_bad_row)
        streams.append(SourceStream(opened, settings, seed, checker, roles_of(source)))
    return TrainingData(
        streams, settings, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, checker=checker
    )
