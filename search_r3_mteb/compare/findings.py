"""Differences between the systems of a comparison, in three families, each with Holm's correction within its task.

reasoning   a system's reasoning minus its own direct vectors, at each budget
control     a system's reasoning minus each of its controls; a perceptron minus the direct vectors it stands on
baseline    every other system minus its baseline, without reasoning where the baseline was run so
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from search_r3_mteb.compare.run import ComparedRow
from search_r3_mteb.evaluation.costs import SystemPair, SystemScores, compared, scores_of
from search_r3_mteb.evaluation.perceptron import PERCEPTRON
from search_r3_mteb.evaluation.significance import holm
from search_r3_mteb.report.mteb_results import split_mark

Family: TypeAlias = Literal["reasoning", "control", "baseline"]
FAMILIES: dict[Family, str] = {
    "reasoning": "Reasoning against direct vectors",
    "control": "Reasoning against its controls",
    "baseline": "Every system against its baseline",
}


@dataclass(frozen=True)
class FamilyPair:
    """One pair of a task. `p_adjusted` is Holm's over the `size` tested pairs of its family; None: not tested."""

    task: str
    family: Family
    pair: SystemPair
    p_adjusted: float | None
    size: int

    @property
    def significant(self) -> bool:
        """Whether the adjusted p is below 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05

    def sentence(self) -> str:
        """Difference, interval, ratio of the times, and the adjusted p.

        A control reads a text that it need not write, so that the ratio of times would say nothing of it.
        """
        said = self.pair.sentence(self.task, timed=self.family != "control")
        if self.p_adjusted is None:
            return said
        within = f" after Holm's correction over {self.size} pairs" if self.size > 1 else ""
        return f"{said} p = {self.p_adjusted:.2g}{within}."

    def record(self) -> dict[str, Any]:
        """The pair as JSON values."""
        first, second, found = self.pair.first, self.pair.second, self.pair.result
        return {
            "task": self.task,
            "family": self.family,
            "first": first.label,
            "second": second.label,
            "difference": round(self.pair.difference, 6),
            "interval": None if found is None else [round(found.low, 6), round(found.high, 6)],
            "p": None if found is None else found.p,
            "p_adjusted": self.p_adjusted,
            "pairs_in_family": self.size,
            "queries": None if found is None else found.queries,
            "time_ratio": None if self.pair.times is None else round(self.pair.times, 6),
            "time_ratio_note": self.pair.rough.strip(" ()") or None,
            "sentence": self.sentence(),
        }


def family_pairs(rows: Sequence[ComparedRow], output: Path, baselines: Mapping[str, str]) -> list[FamilyPair]:
    """The pairs of all tasks, from the rows and their per-query files; `baselines`: of each system's name a name."""
    found: list[FamilyPair] = []
    for place in dict.fromkeys(each.place for each in rows):
        mine = [(each, _scores(each, rows, output)) for each in rows if each.place == place]
        task = place[0] if place[1] == "test" else f"{place[0]} ({place[1]})"
        for family, chosen in _chosen(mine, baselines).items():
            pairs = [compared(first, second) for first, second in chosen]
            adjusted = iter(holm([each.result.p for each in pairs if each.result is not None]))
            tested = sum(each.result is not None for each in pairs)
            found += [
                FamilyPair(task, family, each, None if each.result is None else next(adjusted), tested)
                for each in pairs
            ]
    return found


def _chosen(
    mine: Sequence[tuple[ComparedRow, SystemScores]], baselines: Mapping[str, str]
) -> dict[Family, list[tuple[SystemScores, SystemScores]]]:
    plain = [(row, scores) for row, scores in mine if row.control is None]
    direct = {row.system: scores for row, scores in plain if row.row["mode"] == "direct"}
    own = {(row.system, row.budget): scores for row, scores in plain if row.row["mode"] != "direct"}
    first = {row.system: scores for row, scores in reversed(plain)}
    pairs: dict[Family, list[tuple[SystemScores, SystemScores]]] = {"reasoning": [], "control": [], "baseline": []}
    for row, scores in mine:
        reasons = row.row["mode"] != "direct"
        if row.control is None and reasons and row.system in direct:
            pairs["reasoning"].append((scores, direct[row.system]))
        elif row.control == PERCEPTRON and row.system in direct:
            pairs["control"].append((scores, direct[row.system]))
            pairs["control"] += [(each, scores) for (system, _), each in own.items() if system == row.system]
        elif row.control is not None and (row.system, row.budget) in own:
            pairs["control"].append((own[row.system, row.budget], scores))
        baseline = baselines[row.system]
        base = direct.get(baseline, first.get(baseline))
        if row.control is None and base is not None and row.system != baseline:
            pairs["baseline"].append((scores, base))
    return pairs


def _scores(row: ComparedRow, rows: Sequence[ComparedRow], output: Path) -> SystemScores:
    """The row's scores under the name that tells it apart."""
    scores = scores_of(row.row, output)
    several = len({each.budget for each in rows if each.system == row.system and each.budget is not None}) > 1
    budget = row.budget if several and row.budget is not None else None
    return replace(scores, name=split_mark(row.row["model"])[0], budget=budget)
