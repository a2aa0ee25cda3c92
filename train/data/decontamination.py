"""Decontamination: training rows that repeat evaluation texts are found, dropped and counted.

A row is dropped when its query or its positive equals an evaluation text, or nearly (the package's near_duplicates.py).
Evaluation texts are the queries that a split judges, and the documents that it judges relevant for them, not the whole
corpus. Each source says which of them count (`decontaminate`). The default is queries and documents for pairs; queries
alone for BEIR folders, whose training and test judgements share one corpus by design; nothing for hopworld, whose
splits share their phrasing by design and no entity: "the city that saw the birth of Karin Hagen" and "... of Karin
Stark" have a Jaccard of 0.82 and are two questions.

    python train/data/decontamination.py --config train/configs/X.toml --output report.json

reads every source once and writes the report without training. Departure from Lee et al. 2022 (arXiv 2107.06499):
shingles of 3 words instead of 5, since queries are short.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from search_r3_mteb.atomic import write_json
from search_r3_mteb.near_duplicates import DuplicateIndex, Signer, Twin
from search_r3_mteb.tasks.beir_folder import read_qrels, read_queries
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.data import DataSettings, DecontaminationSettings, JudgedSetSettings, SourceSettings
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.data.rows import TrainingRow
from train.data.sources import all_rows, documents_of, open_source

Role = Literal["queries", "documents"]
_SHOWN_CHARACTERS = 200  # of a text in the report


@dataclass(frozen=True)
class Match:
    """A training row that repeats an evaluation text."""

    exact: bool
    similarity: float
    part: Literal["query", "positive"]
    """Which text of the row."""
    text: str
    evaluation: str
    role: Role
    id: str
    """The evaluation text's id in its set."""
    evaluation_text: str


@dataclass
class SourceCounts:
    """Duplicates found in one source. A row that is both exact and near counts as exact."""

    against: tuple[Role, ...] = ()
    """Which evaluation texts its rows were compared with; none is a choice that the report shows."""
    rows: int = 0
    exact: int = 0
    near: int = 0
    queries: int = 0
    """Dropped rows by the kind of text that they repeat, as `documents` is; one that repeats both counts once."""
    documents: int = 0
    examples: list[Match] = field(default_factory=list)

    def repeats(self) -> str:
        """How many dropped rows repeat queries and how many documents, in words."""
        return f"{self.queries} repeat judged queries, {self.documents} relevant documents"

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "SourceCounts":
        """The counts whose JSON values `to_saved` gave."""
        examples = [Match(**example) for example in saved["examples"]]
        return cls(**{**saved, "against": tuple(saved["against"]), "examples": examples})

    def to_saved(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def add(self, match: Match | None, keep_examples: int) -> None:
        """Count one row."""
        self.rows += 1
        if match is not None:
            self.exact += match.exact
            self.near += not match.exact
            self.queries += match.role == "queries"
            self.documents += match.role == "documents"
            if sum(example.exact == match.exact for example in self.examples) < keep_examples:
                self.examples.append(match)


@dataclass
class DecontaminationReport:
    """Counts per source, and the evaluation sets that the rows were compared with."""

    threshold: float
    shingle_words: int
    evaluations: dict[str, dict[Role, int]]
    """Set -> number of its queries and documents that rows were compared with."""
    sources: dict[str, SourceCounts] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Rows dropped in all sources."""
        return sum(counts.exact + counts.near for counts in self.sources.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "dropped": self.dropped}

    def write(self, path: str | Path) -> None:
        """Write the report as JSON."""
        write_json(Path(path), self.to_dict())

    def lines(self) -> Iterator[str]:
        """The report in words, one line per source."""
        if not self.evaluations:
            yield "decontamination: no evaluation set is named in data.evaluation or data.decontamination.against"
        for label, counts in self.sources.items():
            if not counts.against:
                yield f"decontamination: {label}: not compared with anything (decontaminate)"
                continue
            yield _line(label, counts)

    def dropped_lines(self) -> Iterator[str]:
        """One line for each source that lost rows."""
        return (_line(label, counts) for label, counts in self.sources.items() if counts.exact + counts.near)


def _line(label: str, counts: SourceCounts) -> str:
    share = (counts.exact + counts.near) / max(counts.rows, 1)
    return (
        f"decontamination: {label}: {counts.rows} rows, {counts.exact} exact and {counts.near} near duplicates "
        f"of evaluation texts dropped ({share:.2%}): {counts.repeats()}"
    )


class Decontaminator:
    """Compares rows with the texts of evaluation sets.

    `roles` are the kinds of texts that some source is compared with; others are not read.
    """

    def __init__(
        self, evaluations: Sequence[JudgedSetSettings], settings: DecontaminationSettings, roles: Iterable[Role]
    ) -> None:
        self.settings = settings
        self._signer = Signer(settings.shingle_words)
        self._indexes: dict[Role, DuplicateIndex] = {}
        self._texts: dict[Role, list[tuple[str, str, str]]] = {}  # set, id, beginning of the text
        self.evaluations: dict[str, dict[Role, int]] = {evaluation.label: {} for evaluation in evaluations}
        for role in sorted(set(roles)):
            self._texts[role] = []
            signatures = (self._signer.sign(text) for text in self._read(role, evaluations))
            self._indexes[role] = DuplicateIndex(signatures, settings.threshold)

    def find(self, row: TrainingRow, roles: Sequence[Role]) -> Match | None:
        """The evaluation text that the row's query or positive repeats: an equal one first, else the most similar."""
        best: Match | None = None
        if not roles:
            return None
        for part, text in (("query", row.query), ("positive", row.positive)):
            signature = self._signer.sign(text)
            for role in roles:
                twin = self._indexes[role].find(signature)
                if twin is not None and (best is None or (twin.exact, twin.similarity) > (best.exact, best.similarity)):
                    best = self._match(twin, role, part, text)  # type: ignore[arg-type]  # a loop over literals
        return best

    def _match(self, twin: Twin, role: Role, part: Literal["query", "positive"], text: str) -> Match:
        evaluation, id_, shown = self._texts[role][twin.number]
        similarity = round(twin.similarity, 4)
        return Match(twin.exact, similarity, part, text[:_SHOWN_CHARACTERS], evaluation, role, id_, shown)

    def _read(self, role: Role, evaluations: Sequence[JudgedSetSettings]) -> Iterator[str]:
        for evaluation in evaluations:
            count = 0
            for id_, text in evaluation_texts(evaluation, role):
                self._texts[role].append((evaluation.label, id_, text[:_SHOWN_CHARACTERS]))
                count += 1
                yield text
            counts = self.evaluations[evaluation.label]
            counts[role] = counts.get(role, 0) + count  # two sets may differ in their hops alone


def evaluation_texts(evaluation: JudgedSetSettings, role: Role) -> Iterator[tuple[str, str]]:
    """(id, text) of a split's judged queries, or of the documents that it judges relevant (hopworld: all)."""
    if evaluation.kind == "hopworld":
        if role == "documents":
            return documents_of(evaluation)
        world = HopWorld(evaluation.documents, evaluation.world_seed)
        return ((query.id, query.text) for query in world.iterate_queries(evaluation.split, evaluation.hops))
    folder = str(evaluation.path)
    judgements = read_qrels(folder, evaluation.split)
    if role == "documents":
        relevant = {judgement.document_id for judgement in judgements if judgement.relevance > 0}
        return ((id_, text) for id_, text in documents_of(evaluation) if id_ in relevant)
    judged = {judgement.query_id for judgement in judgements}
    return ((query.id, query.text) for query in read_queries(folder) if query.id in judged)


def roles_of(source: SourceSettings) -> tuple[Role, ...]:
    """Which evaluation texts a source's rows must not repeat."""
    if source.decontaminate is not None:
        return source.decontaminate
    defaults: dict[str, tuple[Role, ...]] = {"beir": ("queries",), "hopworld": ()}
    return defaults.get(source.kind, ("queries", "documents"))


def decontaminator_for(data: DataSettings) -> Decontaminator | None:
    """The decontaminator of a configuration; None where it is off, or no evaluation set is named."""
    evaluations = list(dict.fromkeys((*data.evaluation, *data.decontamination.against)))
    if not data.decontamination.enabled or not evaluations:
        return None
    return Decontaminator(evaluations, data.decontamination, {role for s in data.sources for role in roles_of(s)})


def scan(data: DataSettings) -> DecontaminationReport:
    """Read every source once and report what training on it would drop."""
    checker = decontaminator_for(data)
    if checker is None:
        return DecontaminationReport(data.decontamination.threshold, data.decontamination.shingle_words, {})
    report = DecontaminationReport(checker.settings.threshold, checker.settings.shingle_words, checker.evaluations)
    for settings in data.sources:
        counts = report.sources.setdefault(settings.label, SourceCounts(roles_of(settings)))
        for row in all_rows(open_source(settings, on_bad_row=data.on_bad_row), data.on_bad_row):
            counts.add(checker.find(row, counts.against), data.decontamination.examples)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Report which training rows repeat evaluation texts.")
    parser.add_argument("--config", required=True, help="a configuration of train/sft.py or train/rl.py")
    parser.add_argument("--stage", choices=("sft", "rl"), default="sft", help="which of the two it is")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--output", default="decontamination.json", help="the report")
    given = parser.parse_args(arguments)
    cls: type[RlConfig] | type[SftConfig] = RlConfig if given.stage == "rl" else SftConfig
    report = scan(load_config(given.config, given.set, cls).data)
    report.write(given.output)
    print(*report.lines(), sep="\n")


if __name__ == "__main__":
    main()
