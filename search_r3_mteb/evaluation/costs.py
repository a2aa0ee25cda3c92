"""What a system costs beside what it reaches: pairs of systems on one task, and one sentence about each.

    SciFact, mini: reasoning +0.012 (+0.001 to +0.023) at 21 times the time per query.

The difference is paired over queries (`significance.compare`). The time is what the model worked on the queries, on the
machine of each run, with the search for feedback where a system needs one; what came from a store counts with the time
that computing it took.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.evaluation.significance import Difference, align, compare
from search_r3_mteb.evaluation.summary import SummaryRow, identity, milliseconds
from search_r3_mteb.json_files import parse_json

_ENOUGH_QUERIES, _ENOUGH_SECONDS = 50, 0.5


@dataclass(frozen=True)
class SystemScores:
    """One system on one task: its mean quality, nDCG@10 by query id, and its milliseconds per query.

    `by_query` is None where the mean is not one over queries (a task of several subsets), `milliseconds` where no time
    was measured. `tokens` are generated per query; `budget` tells several runs of one model apart, and holds for each
    of the `samples` texts of a query.
    """

    name: str
    mode: str
    mean: float
    by_query: Mapping[str, float] | None
    milliseconds: float | None
    tokens: float | None = None
    budget: int | None = None
    samples: int = 1
    queries: int | None = None

    @property
    def label(self) -> str:
        """Name and mode, and the budget where one is named."""
        return f"{self.name} ({self.mode}{self.most})"

    @property
    def most(self) -> str:
        """The budget in words, empty where none is named."""
        if self.budget is None:
            return ""
        return f", at most {f'{self.samples} texts of ' * (self.samples > 1)}{self.budget} tokens"


@dataclass(frozen=True)
class SystemPair:
    """The first system against the second one; `result` is None where the queries of one side are not known."""

    first: SystemScores
    second: SystemScores
    result: Difference | None

    @property
    def difference(self) -> float:
        """The first mean minus the second, over the queries of both where they are known."""
        return self.first.mean - self.second.mean if self.result is None else self.result.difference

    @property
    def same_model(self) -> bool:
        """True for one model with and without reasoning."""
        return self.first.name == self.second.name and self.second.mode == "direct" != self.first.mode

    @property
    def times(self) -> float | None:
        """The first system's time per query in units of the second's; None where one was not measured."""
        return time_ratio(self.first.milliseconds, self.second.milliseconds)

    @property
    def rough(self) -> str:
        """What to know of the ratio of times where little was timed, else nothing."""
        return rough_time(
            (self.first.milliseconds, self.second.milliseconds), (self.first.queries, self.second.queries)
        )

    def sentence(self, task: str, *, timed: bool = True) -> str:
        """The pair in one sentence: difference of nDCG@10, its 95 % interval, ratio of the times if `timed`."""
        words = {
            "reason": "reasoning",
            "if-unsure": "reasoning if unsure",
            "given": "given reasoning, whose writing is not timed,",
        }
        said = words.get(self.first.mode, self.first.mode)
        what = f"{task}, {self.first.name}: {said}{self.first.most}" if self.same_model else ""
        what = what or f"{task}: {self.first.label} against {self.second.label}"
        found = self.result
        interval = "no interval" if found is None else f"{found.low:+z.3f} to {found.high:+z.3f}"
        times = f" {times_text(self.times)}{self.rough}" if timed else ""
        return f"{what} {self.difference:+z.3f} ({interval}){times}."


def time_ratio(first: float | None, second: float | None) -> float | None:
    """The ratio of two times per query, None where one was not measured."""
    return first / second if first is not None and second else None


def times_text(ratio: float | None) -> str:
    """A ratio of times per query in words."""
    if ratio is None:
        return "at a time per query that was not measured"
    return f"at {ratio_text(ratio)} times the time per query"


def rough_time(milliseconds: Sequence[float | None], queries: Sequence[int | None]) -> str:
    """A note in brackets on the ratio of two times per query where one of them is of few queries, or of a moment.

    Each was taken once, on a machine that may have done other work meanwhile: the same work measured twice over 8
    queries has been seen 1.7 times apart. From 50 queries and half a second on (our choice) nothing is said.
    """
    known = [(each, many) for each, many in zip(milliseconds, queries, strict=True) if each is not None and many]
    if len(known) < len(milliseconds):
        return ""
    fewest, seconds = min(many for _, many in known), min(each * many / 1000 for each, many in known)
    if fewest >= _ENOUGH_QUERIES and seconds >= _ENOUGH_SECONDS:
        return ""
    return f" (roughly: {fewest} queries, {seconds:.2g} s, timed once)"


def ratio_text(ratio: float) -> str:
    """A ratio to about two digits."""
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2g}"


def compared(first: SystemScores, second: SystemScores) -> SystemPair:
    """The pair with its paired bootstrap over the queries of both."""
    if first.by_query is None or second.by_query is None:
        return SystemPair(first, second, None)
    ids, (a, b) = align([first.by_query], [second.by_query])
    return SystemPair(first, second, compare(a, b) if ids else None)


def pairs(systems: Sequence[SystemScores]) -> list[SystemPair]:
    """Each model's reasoning against its own direct vectors, then every other system against the first model's.

    The baseline is the first model, without reasoning where it was run so.
    """
    direct = {each.name: each for each in reversed(systems) if each.mode == "direct"}
    found = [compared(each, direct[each.name]) for each in systems if each.mode != "direct" and each.name in direct]
    if not systems:
        return found
    baseline = direct.get(systems[0].name, systems[0])
    return found + [compared(each, baseline) for each in systems if each.name != baseline.name]


def cost_sentences(rows: Sequence[SummaryRow], output: Path) -> list[str]:
    """One sentence for each pair of systems of every task, from rows of `evaluate` and the per-query files there."""
    tasks: dict[tuple[str, str], list[SystemScores]] = {}
    for row in whole_rows(rows):
        tasks.setdefault((row["task"], row["split"]), []).append(scores_of(row, output))
    return [
        pair.sentence(task if split == "test" else f"{task} ({split})")
        for (task, split), systems in tasks.items()
        for pair in pairs(systems)
    ]


def whole_rows(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """The rows without those of single hop counts, each unit once."""
    return list({identity(row): row for row in rows if "hops" not in row}.values())


def scores_of(row: SummaryRow, output: Path) -> SystemScores:
    """A row's system with the quality of every query, from its per-query file below `output`."""
    by_query = None
    if "interval" in row:  # else the mean is one over subsets
        by_query = {each["query_id"]: float(each["ndcg_at_10"]) for each in query_rows(output / row["queries_file"])}
    return SystemScores(
        name=row["model"],
        mode=row["mode"],
        mean=row["ndcg_at_10"],
        by_query=by_query,
        milliseconds=milliseconds(row),
        tokens=row["reasoning_tokens_per_query"],
        samples=row.get("samples") or 1,
        queries=row.get("queries"),
    )


def query_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a per-query file."""
    return [parse_json(line, path, n) for n, line in enumerate(path.read_bytes().splitlines(), start=1)]
