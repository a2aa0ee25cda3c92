"""One file of a run, which may be half written: what cannot be used becomes a message, never a crash."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.json_files import NotJsonError, parse_json
from search_r3_mteb.report.records import Evidence


@dataclass(frozen=True)
class RunFile:
    """The file at `path`; messages about it go to `evidence` and name it, and its `entry` where one is set."""

    path: Path
    evidence: Evidence
    entry: int | None = None

    @property
    def where(self) -> str:
        """The path as the user gave it, with the number of the entry: what messages name."""
        return str(self.path) if self.entry is None else f"{self.path} entry {self.entry}"

    def error(self, text: str) -> None:
        """Record that something could not be used."""
        self.evidence.error(self.where, text)

    def warn(self, text: str) -> None:
        """Record that something was used, but not as it stands."""
        self.evidence.warn(self.where, text)

    def note(self, text: str) -> None:
        """Record what a reader should know and need not act on."""
        self.evidence.note(self.where, text)

    def json(self) -> Any:
        """The parsed content, or None with an error message when it cannot be read or parsed."""
        text = self._text()
        if text is None:
            return None
        if not text.strip():
            self.error("is empty: the run was probably stopped before it was written. Run that evaluation again.")
            return None
        try:
            return parse_json(text, self.path, integer=_integer)
        except NotJsonError as problem:
            place = f"line {problem.line}: {problem.reason}"
            self.error(f"is not valid JSON ({place}): probably half written. Left out; run that evaluation again.")
            return None

    def json_lines(self) -> list[dict[str, Any]]:
        """The objects of the readable lines; one message counts the other lines and names the first."""
        text = self._text()
        rows: list[dict[str, Any]] = []
        unreadable: list[int] = []
        lines = [(number, line) for number, line in enumerate((text or "").split("\n"), start=1) if line.strip()]
        for number, line in lines:
            try:
                row = parse_json(line, self.path, number, integer=_integer)
            except NotJsonError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                unreadable.append(number)
        if unreadable:
            half = " (half written: the run stopped there)" if unreadable == [lines[-1][0]] else ""
            self.warn(
                f"{len(unreadable)} of {len(lines)} lines cannot be read, the first is line {unreadable[0]}{half}. "
                f"The other {len(rows)} are used."
            )
        if text is not None and not lines:
            self.warn("is empty.")
        return rows

    def number(self, record: Mapping[str, Any], key: str) -> float | None:
        """A number of the record: None where it is absent, NaN kept, None with a message where it is something else."""
        value = record.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.warn(f"{key} is {value!r} instead of a number: left out.")
            return None
        if not math.isfinite(value):
            self.evidence.not_numbers.setdefault(self.where, []).append(key)
            return math.nan
        return float(value)

    def whole(self, record: Mapping[str, Any], key: str) -> int | None:
        """A whole number of the record, or None (with a message where it is there but not whole)."""
        value = self.number(record, key)
        if value is None or math.isnan(value):
            return None
        if value != int(value):
            self.warn(f"{key} is {value} instead of a whole number: left out.")
            return None
        return int(value)

    def _text(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as problem:
            self.error(f"cannot be read ({problem.strerror or problem}). Left out.")
            return None


def _integer(text: str) -> int | float:
    """An integer, or infinity where no float holds it: as Python reads 1e999, and reported like any that is not one."""
    value = int(text)
    return value if -sys.float_info.max <= value <= sys.float_info.max else math.inf


def string(record: Mapping[str, Any], key: str) -> str | None:
    """A text of the record, None where it is absent; other types are shown as text."""
    value = record.get(key)
    return None if value is None else str(value)
