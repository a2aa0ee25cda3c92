"""Markdown and JSON of the generated pages of this folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Whose reasoning a query is given, as the keys of diagnose.json name it.
REASONINGS = {"own": "its own", "other": "another query's", "shuffled": "its own words shuffled", "none": "none"}


def table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a Markdown table, and an empty line."""
    lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, ""]


def with_interval(value: float, interval: tuple[float, float], form: str = ".3f") -> str:
    """A value with its interval, all in one format: "0.500 (0.400 to 0.600)"."""
    low, high = interval
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
