"""Reading JSON that another program may have left half written: what cannot be used becomes a message, never a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_r3_mteb.report.records import Evidence


def load_json(path: Path, where: str, evidence: Evidence) -> Any:
    """The parsed file, or None with an error message in `evidence` when it cannot be read or parsed."""
    text = _read(path, where, evidence)
    if text is None:
        return None
    if not text.strip():
        evidence.error(
            where, "is empty: the run was probably stopped before it was written. Run that evaluation again."
        )
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        evidence.error(
            where,
            f"is not valid JSON (line {problem.lineno}, column {problem.colno}: {problem.msg}): probably half written. "
            "Left out; run that evaluation again.",
        )
    except RecursionError:
        evidence.error(where, "is nested too deeply to be a result file. Left out.")
    return None


def load_json_lines(path: Path, where: str, evidence: Evidence) -> list[dict[str, Any]]:
    """The objects of the readable lines; one message names how many lines were not, and the first of them."""
    text = _read(path, where, evidence)
    rows: list[dict[str, Any]] = []
    unreadable: list[int] = []
    lines = (text or "").split("\n")
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unreadable.append(number)
    if unreadable:
        half = " (half written: the run stopped there)" if unreadable == [last] else ""
        evidence.warn(
            where,
            f"{len(unreadable)} of {len(rows) + len(unreadable)} lines cannot be read, the first is line {unreadable[0]}"
            f"{half}. The other {len(rows)} are used.",
        )
    if text is not None and not text.strip():
        evidence.warn(where, "is empty.")
    return rows


def number(record: Mapping[str, Any], key: str, where: str, evidence: Evidence) -> float | None:
    """A number of the record: None where it is absent, NaN kept (and said), None with a message where it is something else."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        evidence.warn(where, f"{key} is {value!r} instead of a number: left out.")
        return None
    if not math.isfinite(value):
        evidence.not_numbers.setdefault(where, []).append(key)
        return math.nan
    return float(value)


def whole(record: Mapping[str, Any], key: str, where: str, evidence: Evidence) -> int | None:
    """A whole number of the record, or None (with a message where it is there but not whole)."""
    value = number(record, key, where, evidence)
    if value is None or math.isnan(value):
        return None
    if value != int(value):
        evidence.warn(where, f"{key} is {value} instead of a whole number: left out.")
        return None
    return int(value)


def string(record: Mapping[str, Any], key: str) -> str | None:
    """A text of the record, None where it is absent; other types are shown as text."""
    value = record.get(key)
    return None if value is None else str(value)


def _read(path: Path, where: str, evidence: Evidence) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        evidence.error(where, f"cannot be read ({problem.strerror or problem}). Left out.")
        return None
