"""The first rows of a source, read as training reads them: what is wrong with a file is said before the first step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from train.config.data import DataSettings, SourceSettings
from train.config.stages import RlConfig, SftConfig
from train.data.decontamination import SourceCounts, decontaminator_for, roles_of
from train.data.rows import RowSource, TrainingRow
from train.data.sources import all_rows

FIRST = 100
MANY = 0.1  # share of the first rows whose loss a training warns of: our choice
_READ_AT_ONCE = 100_000_000  # bytes of a corpus beyond which a dry run does not look for its texts: seconds. Our choice


@dataclass(frozen=True)
class FirstRows:
    """Up to `FIRST` rows of a source; `count` are all of its raw rows, None where only reading to the end would say."""

    source: SourceSettings
    rows: tuple[TrainingRow, ...]
    count: int | None

    def line(self) -> str:
        """What was found, for people."""
        of = "" if self.count is None else f" of {self.count:,}"
        judged = sum(max(len(row.relevant), 1) for row in self.rows) / len(self.rows)
        negatives = sum(len(row.negatives) for row in self.rows) / len(self.rows)
        traces = sum(row.reasoning is not None for row in self.rows) / len(self.rows)
        return (
            f"source {self.source.label}: {len(self.rows)}{of} rows read; on average {judged:.1f} relevant documents "
            f"and {negatives:.1f} negatives, {traces:.0%} with reasoning"
        )


def read_first(opened: RowSource, source: SourceSettings, settings: DataSettings) -> FirstRows:
    """The first rows of an opened source. Raises BadRowError for a malformed one, ValueError where there is none."""
    rows = tuple(islice(all_rows(opened, settings.on_bad_row), FIRST))
    if not rows:
        raise ValueError(
            f"{source.label}: none of its rows can be trained on. Look at {source.path or 'its settings'}, or remove "
            "the source."
        )
    return FirstRows(source, rows, opened.count)


def warnings_of(first: Sequence[FirstRows], config: SftConfig | RlConfig) -> list[str]:
    """What the settings leave unused of the rows, and what the rows leave out that the settings measure."""
    loss = config.replay.loss if isinstance(config, RlConfig) else config.loss
    wanted = loss.hard_negatives and bool(loss.infonce or loss.triplet or loss.distill)
    found = []
    for one in first:
        holding = sum(bool(row.negatives) for row in one.rows)
        if holding and wanted and config.data.hard_negatives == 0 and one.source.kind != "hopworld":
            found.append(
                f"{one.source.label}: {holding} of the first {len(one.rows)} rows have negatives of their own, and "
                "data.hard_negatives = 0 leaves them out. Set data.hard_negatives to how many a row may use, or "
                "loss.hard_negatives = false to say that they are not wanted."
            )
    all_read = len(first) >= len(config.data.sources)  # a source that is not here may be the one with traces
    silent = all_read and not any(row.reasoning or row.given for one in first for row in one.rows)
    if isinstance(config, SftConfig) and silent and "reason" in config.evaluate.modes:
        found.append(
            "none of the first rows has a reasoning trace, so nothing teaches the model to reason and then say the "
            "token: with reasoning it will be cut at its budget, and stage 2 has nothing to reward. Add traces to some "
            'rows (data.sources.columns.reasoning), or set evaluate.modes = ["direct"].'
        )
    return found


def drops_of(first: Sequence[FirstRows], data: DataSettings, share: float = 0.0) -> Iterator[str]:
    """How many of the first rows repeat evaluation texts, by source; large corpora and sets not here are left out.

    Only sources of which at least `share` of these rows are dropped (0 to 1). Where documents are what repeats, the
    line says how to compare with the queries alone.
    """
    sets = (*data.evaluation, *data.decontamination.against)
    if not all(one.path is None or _is_small(Path(one.path) / "corpus.jsonl") for one in sets):
        return
    checker = decontaminator_for(data)
    if checker is None:
        return
    for one in first:
        counts = SourceCounts(roles_of(one.source))
        if counts.against and one.source in data.sources:
            for row in one.rows:
                counts.add(checker.find(row, counts.against), 0)
            dropped = counts.exact + counts.near
            if dropped and dropped >= share * counts.rows:
                by_design = ". Where training and evaluation share relevant documents by design, compare with the "
                by_design += 'queries alone: decontaminate = ["queries"] in the source'
                yield (
                    f"source {one.source.label}: {dropped} of its first {counts.rows} rows repeat evaluation texts and "
                    f"are left out ({counts.repeats()}){by_design if counts.documents else ''}"
                )


def _is_small(corpus: Path) -> bool:
    return corpus.is_file() and corpus.stat().st_size <= _READ_AT_ONCE
