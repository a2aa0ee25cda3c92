"""Published nDCG@10 of comparable systems (`published.toml`): printed beside ours, never part of a test."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_r3_mteb.narrow_tables import NarrowTable

NOT_MEASURED = "published, not measured here"
_CERTAINTY = {"P": "[P] the authors' own words", "S": "[S] somebody else's table"}


@dataclass(frozen=True)
class PublishedScore:
    """A system's nDCG@10 (0 to 1) on a benchmark, and where it stands.

    `certainty`: "P" the authors' own words, "S" a table of somebody else. `setting` says what was searched with.
    """

    benchmark: str
    system: str
    setting: str
    ndcg_at_10: float
    certainty: str
    source: str
    address: str

    def __post_init__(self) -> None:
        if not 0 < self.ndcg_at_10 < 1:
            raise ValueError(f"{self.system} on {self.benchmark}: nDCG@10 lies between 0 and 1, got {self.ndcg_at_10}.")
        if self.certainty not in _CERTAINTY or not (self.source and self.address.startswith("https://")):
            raise ValueError(
                f"{self.system} on {self.benchmark}: a certainty (P or S), a source and an address are required."
            )


def published_scores(benchmarks: Sequence[str] = ("all",)) -> list[PublishedScore]:
    """The scores on these benchmarks, in the table's order. ValueError for a name that is not in the table."""
    text = (files("search_r3_mteb.evaluation") / "published.toml").read_text(encoding="utf-8")
    every = [PublishedScore(**row) for row in tomllib.loads(text)["rows"]]
    known = list(dict.fromkeys(score.benchmark for score in every))
    unknown = [name for name in benchmarks if name not in (*known, "all")]
    if unknown:
        raise ValueError(f"No published score is known for {', '.join(unknown)}; there is {', '.join(known)}, or all.")
    return [score for score in every if score.benchmark in benchmarks or "all" in benchmarks]


def known_benchmarks() -> tuple[str, ...]:
    """The benchmarks that the table holds scores on."""
    return tuple(dict.fromkeys(score.benchmark for score in published_scores()))


def published_table(scores: Sequence[PublishedScore]) -> "NarrowTable":
    """The scores as a table that fits its terminal, which says that none was measured here; sources stand below it."""
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    columns = [NarrowColumn(name, name=True) for name in ("benchmark", "system")]
    columns += [NarrowColumn("setting", name=True, leaves=1), NarrowColumn("nDCG@10"), NarrowColumn("source")]
    sources: dict[str, int] = {}
    made = NarrowTable(columns, title=NOT_MEASURED, complete="search-r3 reproduce --published all --json")
    for score in scores:
        source = f"[{score.certainty}] {score.source}, {score.address}"
        number = sources.setdefault(source, len(sources) + 1)
        made.add_row(score.benchmark, score.system, score.setting, f"{score.ndcg_at_10:.3f}", str(number))
    made.notes = [*(f"{number}: {source}" for source, number in sources.items()), "; ".join(_CERTAINTY.values())]
    return made
