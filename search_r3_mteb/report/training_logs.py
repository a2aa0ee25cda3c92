"""Training logs: the `log.jsonl` that sft and rl runs write, one JSON object per event."""

from __future__ import annotations

import math
from typing import Any

from search_r3_mteb.report.records import TrainingLog
from search_r3_mteb.report.run_file import RunFile

_EVENTS = {"step": 0, "evaluate": 1, "audit": 2}


def read_log(file: RunFile) -> TrainingLog | None:
    """The log's events by kind; None with a message where it holds none. Values that are not finite become None."""
    events: tuple[list[dict[str, Any]], ...] = ([], [], [])
    infinite: dict[str, int] = {}
    stepless = 0
    for row in file.json_lines():
        kind = _EVENTS.get(str(row.get("event")))
        if kind is None:
            continue  # start, stop, checkpoint and other events carry nothing to draw
        if isinstance(row.get("step"), bool) or not isinstance(row.get("step"), int):
            stepless += 1
            continue
        events[kind].append(_clean(row, infinite))
    if stepless:
        file.warn(f"{stepless} events have no whole-numbered step: left out.")
    for key, step in infinite.items():
        file.warn(f"{key} is not a finite number from step {step} on (first time): gaps in its curve.")
    steps, evaluations, audits = events
    if not steps and not evaluations and not audits:
        file.error("holds no step, evaluate or audit event: nothing to draw.")
        return None
    repeated = len(steps) - len({row["step"] for row in steps})
    if repeated:
        file.note(f"{repeated} steps were logged twice (a resumed run): the later of each is shown.")
    rewarded = any(key.startswith("reward") for row in steps for key in row) or bool(audits)
    return TrainingLog(
        name=file.path.parent.name or file.path.stem,
        source=file.where,
        kind="rl" if rewarded else "sft",
        steps=_latest(steps, ()),
        evaluations=_latest(evaluations, ("mode", "hops", "task")),
        audits=_latest(audits, ()),
    )


def _clean(row: dict[str, Any], infinite: dict[str, int]) -> dict[str, Any]:
    """The row with None for NaN and infinity; `infinite` gets the first such step of each key."""
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            infinite.setdefault(key, row["step"])
            row[key] = None
    return row


def _latest(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The last row of every step (and value of the keys), in order of steps."""
    kept = {(row["step"], *(str(row.get(key)) for key in keys)): row for row in rows}
    return sorted(kept.values(), key=lambda row: row["step"])
