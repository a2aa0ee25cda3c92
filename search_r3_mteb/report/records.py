"""Records of a report: evaluations, their queries, training logs, and messages about what could not be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Message:
    """One thing about the runs that a reader must know. `where` is the path as the user gave it."""

    level: Literal["error", "warning", "note"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.text}"


def summarised(messages: Sequence[Message], lines: int = 20) -> list[str]:
    """The messages for a terminal: one line for each level and file, errors first, and at most `lines` of them."""
    of_file: dict[tuple[str, str], list[Message]] = {}
    for message in sorted(messages, key=lambda each: ("error", "warning", "note").index(each.level)):
        file = message.where.partition(" entry ")[0]
        of_file.setdefault((message.level, file), []).append(message)
    shown = [
        str(found[0]) if len(found) == 1 else f"{level}: {file}: {len(found)} {level}s, the first: {found[0].text}"
        for (level, file), found in of_file.items()
    ]
    if len(shown) <= lines:
        return shown
    left = Counter(level for level, _ in list(of_file)[lines:])
    counts = " and ".join(f"{level}s of {count} more" for level, count in left.items())
    return [*shown[:lines], f"{counts} files or models: the page has them all."]


@dataclass(frozen=True, slots=True)
class QueryOutcome:
    """One query of one evaluation: its reasoning, its ranking, and their quality.

    `reasoning` is None in direct mode; `reasoning_tokens` counts generated tokens without the embed token; `finished`
    is False where the token was forced; metrics are None without judgements and NaN where the run wrote NaN.
    """

    query_id: str
    text: str
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    finished: bool | None = None
    ndcg_at_10: float | None = None
    recall_at_10: float | None = None
    hops: int | None = None
    top: tuple[tuple[str, float | None], ...] = ()
    judged: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class EvaluationRecord:
    """One model, mode, task split and seed, as one entry of a summary. Fields that a source does not give are None."""

    task: str
    model: str
    mode: str
    source: str
    origin: Literal["summary", "mteb", "queries", "predictions"]
    split: str = "test"
    subset: str | None = None
    hops: int | None = None
    max_reasoning_tokens: int | None = None
    samples: int | None = None
    anchor: float | None = None
    method: str | None = None  # of a writer with an encoder, which has no embed token
    seed: int = 0
    ndcg_at_10: float | None = None
    recall_at_10: float | None = None
    interval: tuple[float, float] | None = None
    queries: int | None = None
    documents: int | None = None
    reasoning_tokens_per_query: float | None = None
    forced_share: float | None = None
    seconds: float | None = None
    milliseconds_per_query: float | None = None
    queries_per_second: float | None = None
    documents_per_second: float | None = None
    commit: str | None = None
    command: str | None = None
    fingerprint: str | None = None
    encoder_fingerprint: str | None = None  # of a writer's encoder, evaluated by itself
    dataset_revision: str | None = None
    queries_file: str | None = None
    mark: str = ""  # the fingerprint that `evaluate` appends to the name of a second model or budget of that name
    variant: str = ""  # set where one name stands for two different results, so that both stay visible
    outcomes: dict[str, QueryOutcome] | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The model's name, with the run it came from where that is needed to tell two results apart."""
        return f"{self.model} ({self.variant})" if self.variant else self.model

    @property
    def writes(self) -> bool:
        """Whether a writer's texts were embedded: where one was cut, no embed token was forced."""
        return self.method is not None and self.mode != "direct"

    @property
    def task_label(self) -> str:
        """Task, split where it is not test, subset and hop count in one string."""
        parts = [self.task]
        if self.split != "test":
            parts.append(self.split)
        if self.subset is not None:
            parts.append(self.subset)
        if self.hops is not None:
            parts.append(f"{self.hops} hop" if self.hops == 1 else f"{self.hops} hops")
        return " · ".join(parts)

    @property
    def milliseconds(self) -> float | None:
        """Milliseconds per query; runs of older versions have only the rate."""
        if self.milliseconds_per_query is not None:
            return self.milliseconds_per_query
        return 1000 / self.queries_per_second if self.queries_per_second else None

    @property
    def condition(self) -> tuple[Any, ...]:
        """The fields that all seeds of one row of the table share."""
        return (
            self.task,
            self.split,
            self.subset,
            self.hops,
            self.label,
            self.mode,
            self.max_reasoning_tokens if self.mode != "direct" else None,
            self.samples,
            self.anchor,
        )

    def values(self) -> dict[str, float] | None:
        """Query id -> nDCG@10 for the queries that have one, or None where no per-query results exist."""
        if self.outcomes is None:
            return None
        found = {key: item.ndcg_at_10 for key, item in self.outcomes.items() if item.ndcg_at_10 is not None}
        return found or None


@dataclass(frozen=True)
class TrainingLog:
    """One log.jsonl: the events of a training run by kind, each list in order of steps."""

    name: str
    source: str
    kind: Literal["sft", "rl"]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    audits: list[dict[str, Any]]


@dataclass
class Evidence:
    """Everything that was read. `texts` maps (task, document id) to the document's text as far as the runs hold it."""

    evaluations: list[EvaluationRecord] = field(default_factory=list)
    logs: list[TrainingLog] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    not_numbers: dict[str, list[str]] = field(default_factory=dict)  # where -> fields that held NaN or infinity

    @property
    def size(self) -> int:
        """The number of things that were read or said."""
        return len(self.evaluations) + len(self.logs) + len(self.diagnoses) + len(self.messages)

    def error(self, where: str, text: str) -> None:
        """Record that something could not be used."""
        self.messages.append(Message("error", where, text))

    def warn(self, where: str, text: str) -> None:
        """Record that something was used, but not as it stands."""
        self.messages.append(Message("warning", where, text))

    def note(self, where: str, text: str) -> None:
        """Record what a reader should know and need not act on."""
        self.messages.append(Message("note", where, text))

    def name_not_numbers(self) -> None:
        """Turn the collected NaN fields into one warning for each place."""
        for where, keys in self.not_numbers.items():
            names = ", ".join(dict.fromkeys(keys))
            self.warn(where, f"NaN or infinity in {names}: shown as NaN, left out of every figure and comparison.")
        self.not_numbers.clear()


def finite(values: Iterable[float | None]) -> list[float]:
    """The finite numbers among the values."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, None where there is none: a missing measurement is not a zero."""
    kept = finite(values)
    return math.fsum(kept) / len(kept) if kept else None
