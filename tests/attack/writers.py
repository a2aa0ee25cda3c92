"""Four writers of one output: no row is lost, and nothing of one is taken for another's."""

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.lives import import_what_it_imports
from tests.attack.trials import Case, Outcome, failure
from tests.train.forking import forked, wait

_WRITERS = 4


def together(actions: list[Any]) -> list[int]:
    """Exit codes of one process for each action, all at once."""
    children = [forked(action) for action in actions]
    return [wait(child) for child in children]


@dataclass
class SharedOutput:
    """Four processes evaluate models of their own in one output; every row must be there."""

    counts: dict[str, int]
    name: str = "writers/summary rows"
    rows: int = 100

    def absent(self) -> str:
        return "" if os.name == "posix" else "processes cannot be forked here"

    def prepare(self, folder: Path) -> None:
        import_what_it_imports(lambda: self._evaluate(folder / "first", ["first=bm25"]), folder)

    def draw(self, rng: random.Random) -> Case:
        return {}

    def attempt(self, case: Case, place: Path) -> Outcome:
        part = self.rows // _WRITERS
        names = [[f"p{writer}-{row}=bm25" for row in range(part)] for writer in range(_WRITERS)]
        codes = together([lambda mine=mine: self._evaluate(place / "out", mine) for mine in names])
        kept = json.loads((place / "out/summary.json").read_text())
        wanted = {name.partition("=")[0] for mine in names for name in mine}
        found = {row["model"] for row in kept}
        if any(codes) or found != wanted or len(kept) != len(wanted):
            return failure("rows lost", f"{len(found & wanted)} of {len(wanted)} rows, exit codes {codes}")
        if len({row["ndcg_at_10"] for row in kept}) != 1:
            return failure("different", "the same model has several scores")
        return Outcome(f"{len(found)} of {len(wanted)} rows")

    def _evaluate(self, output: Path, models: list[str]) -> None:
        from search_r3_mteb.evaluation.evaluate import evaluate
        from tests.evaluation.test_shared_output import tiny

        evaluate(models, [tiny()], output=output)


@dataclass
class SharedStore:
    """Four processes fill one store with overlapping texts, in orders of their own."""

    counts: dict[str, int]
    name: str = "writers/store"
    texts: list[str] = field(default_factory=lambda: [f"text {number}" for number in range(60)])

    def absent(self) -> str:
        return "" if os.name == "posix" else "processes cannot be forked here"

    def prepare(self, folder: Path) -> None:
        import_what_it_imports(lambda: self._fill(folder / "first", 0), folder)

    def draw(self, rng: random.Random) -> Case:
        return {"seeds": [rng.randrange(1 << 30) for _ in range(_WRITERS)]}

    def attempt(self, case: Case, place: Path) -> Outcome:
        codes = together([lambda seed=seed: self._fill(place, seed) for seed in case["seeds"]])
        if any(codes):
            return failure("refused", f"exit codes {codes}")
        kept = self._opened(place)
        if kept.missing(self.texts):
            return failure("rows lost", f"{len(kept.missing(self.texts))} of {len(self.texts)}")
        same = np.array_equal(kept.lookup(self.texts), self._vectors(self.texts))
        return Outcome("same") if same else failure("different", "vectors")

    def _opened(self, place: Path) -> Any:
        from search_r3_mteb.encoder.store import Store

        return Store(place / "store", "ab" * 32, "document", 4)

    def _vectors(self, texts: list[str]) -> Any:
        return np.array([np.random.default_rng(int(text.split()[1])).normal(size=4) for text in texts], np.float32)

    def _fill(self, place: Path, seed: int) -> None:
        order = random.Random(seed).sample(self.texts, len(self.texts))
        kept = self._opened(place)
        for start in range(0, len(order), 7):
            part = order[start : start + 7]
            part = [part[position] for position in kept.missing(part)]
            kept.append(part, self._vectors(part))
