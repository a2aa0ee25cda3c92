"""Per-query files of an evaluation: `queries/TASK__MODEL__MODE.jsonl`, one record per query."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_r3_mteb.report.records import QueryOutcome
from search_r3_mteb.report.run_file import RunFile


def plain(text: str) -> str:
    """The text in lower-case letters, digits and single dashes, as file names and model names are compared."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def split_name(path: Path) -> tuple[str, str, str] | None:
    """Task, model and mode of a per-query file; a model name may itself hold a double underscore."""
    parts = path.stem.split("__")
    return (parts[0], "__".join(parts[1:-1]), parts[-1]) if len(parts) >= 3 else None


def read_outcomes(file: RunFile, task: str) -> dict[str, QueryOutcome]:
    """The file's queries by id. Repeated ids, missing ids and values that are not numbers each give one message."""
    outcomes: dict[str, QueryOutcome] = {}
    nameless = repeated = broken = not_a_number = 0
    for row in file.json_lines():
        if row.get("query_id") is None:
            nameless += 1
            continue
        outcome, clean = _outcome(row, task, file.evidence.texts)
        broken += not clean
        not_a_number += outcome.ndcg_at_10 is not None and math.isnan(outcome.ndcg_at_10)
        repeated += outcome.query_id in outcomes
        outcomes[outcome.query_id] = outcome
    if nameless:
        file.warn(f"{nameless} records have no query_id: left out.")
    if repeated:
        file.warn(f"{repeated} records repeat a query_id: the last of each is used.")
    if broken:
        file.warn(f"{broken} records hold fields of an unexpected type: those fields are left out.")
    if not_a_number:
        file.warn(f"nDCG@10 is NaN for {not_a_number} of {len(outcomes)} queries: left out of comparisons.")
    return outcomes


def _outcome(row: Mapping[str, Any], task: str, texts: dict[tuple[str, str], str]) -> tuple[QueryOutcome, bool]:
    clean = True

    def real(value: Any) -> float | None:
        nonlocal clean
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            clean = False
            return None
        return float(value) if math.isfinite(value) else math.nan

    def documents(key: str) -> list[Mapping[str, Any]]:
        nonlocal clean
        value = row.get(key)
        if value is None:
            return []
        items: list[Mapping[str, Any]]
        items = [item for item in value if isinstance(item, dict) and "id" in item] if isinstance(value, list) else []
        clean = clean and isinstance(value, list) and len(items) == len(value)
        for item in items:
            if item.get("text"):
                texts.setdefault((task, str(item["id"])), str(item["text"]))
        return items

    top = tuple((str(item["id"]), real(item.get("score"))) for item in documents("top"))
    judged = {str(item["id"]): real(item.get("relevance")) or 0.0 for item in documents("judged")}
    for item in documents("top"):  # a file without "judged" still says what it knew about its top documents
        relevance = real(item.get("relevance"))
        if relevance:
            judged.setdefault(str(item["id"]), relevance)
    tokens, hops = real(row.get("reasoning_tokens")), real(row.get("hops"))
    finished = row.get("finished")
    outcome = QueryOutcome(
        query_id=str(row["query_id"]),
        text=str(row.get("query") or ""),
        reasoning=None if row.get("reasoning") is None else str(row["reasoning"]),
        reasoning_tokens=None if tokens is None or math.isnan(tokens) else int(tokens),
        finished=finished if isinstance(finished, bool) else None,
        ndcg_at_10=real(row.get("ndcg_at_10")),
        recall_at_10=real(row.get("recall_at_10")),
        hops=None if hops is None or math.isnan(hops) else int(hops),
        top=top,
        judged=tuple(judged.items()),
    )
    return outcome, clean
