"""Markdown and JSON of the generated pages of this folder."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
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


def up_to_date(texts: Mapping[Path, str], command: str, *, check: bool) -> int:
    """Write each file that differs from its text; with `check` only say which do, and return 1 where one does."""
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        names = ", ".join(path.name for path in stale)
        print(f"{names}: not what the data say. Run {command}", file=sys.stderr)
    for path in () if check else stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return int(check and bool(stale))
