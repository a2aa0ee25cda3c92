"""The query explorer's data: every query's reasoning and its top documents without and with it, cut to fit one page.

Documents stand once in a shared list and are referred to by number. Texts are shortened, and as a last resort queries
are thinned, until the compressed data fits; `Payload.notes` says what was cut.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_r3_mteb.report.comparisons import ScoreRow
from search_r3_mteb.report.records import QueryOutcome, mean


@dataclass(frozen=True)
class Pair:
    """One model on one task: its direct row, its reasoning row (largest budget), or only one of the two.

    A model without a direct row of its own stands beside that of its baseline, where there is one.
    """

    direct: ScoreRow | None
    reason: ScoreRow | None
    against: bool = False  # `direct` is another model's: the baseline of `reason`

    @property
    def names(self) -> tuple[str, str]:
        """What the two rows are called."""
        if self.against and self.direct is not None:
            return self.direct.first.label, self.row.first.label
        return "without reasoning", "with reasoning"

    @property
    def row(self) -> ScoreRow:
        """The row that names model and task."""
        row = self.reason or self.direct
        if row is None:
            raise ValueError("a pair needs at least one row.")
        return row

    @property
    def title(self) -> str:
        """Task, model and what is compared."""
        run = self.row.first
        if self.against and self.direct is not None:
            return f"{run.task_label} · {run.label} against {self.direct.first.label}"
        modes = "reasoning against direct" if self.reason and self.direct else f"{run.mode} only"
        return f"{run.task_label} · {run.label} · {modes}"

    def differences(self) -> list[tuple[str, float]]:
        """(query id, reasoning minus direct), means over seeds, for the queries with a value on both sides."""
        if not (self.direct and self.reason):
            return []
        before, after = _query_means(self.direct), _query_means(self.reason)
        return [(key, after[key] - before[key]) for key in after if key in before]


@dataclass(frozen=True)
class Limits:
    """How much of each text and ranking goes into the page; None means all."""

    reasoning: int | None
    document: int | None
    top: int
    queries: int | None = None


@dataclass(frozen=True)
class Payload:
    """The data as plain JSON values, the sentences about what was cut, and the compressed form in base64."""

    data: dict[str, Any]
    notes: tuple[str, ...]
    encoded: str


# From everything to almost nothing: the first that fits is used.
LADDER = (
    Limits(None, None, 10),
    Limits(1000, 200, 10),
    Limits(500, 140, 10),
    Limits(280, 100, 10),
    Limits(200, 80, 5),
    Limits(120, 60, 5, 10_000),
    Limits(120, 60, 5, 3_000),
    Limits(80, 40, 3, 500),
    Limits(80, 40, 3, 100),
)


def find_pairs(
    rows: Sequence[ScoreRow], baselines: Mapping[str, str] | None = None, controls: Collection[str] = ()
) -> list[Pair]:
    """One pair for each model and task with per-query results, the first of which a page shows first.

    Those with both rows come before the others, models before their `controls` (names), and those whose two rows are
    their own before those that stand beside another model.
    `baselines`: for a model's label that of the model that it is compared with; unless it is there, a writer's encoder.
    """
    usable = [row for row in rows if row.first.hops is None and row.first.outcomes]
    direct = {(row.place, row.first.label): row for row in usable if row.first.mode == "direct"}
    alone = {(row.place, row.first.fingerprint): row for row in direct.values() if row.first.fingerprint}

    def beside(row: ScoreRow) -> ScoreRow | None:
        named = direct.get((row.place, (baselines or {}).get(row.first.label, "")))
        return named or alone.get((row.place, row.first.encoder_fingerprint or ""))

    reason: dict[tuple[Any, ...], ScoreRow] = {}
    for row in usable:
        if row.first.mode == "reason":
            key = (row.place, row.first.label)
            if key not in reason or row.budget > reason[key].budget:
                reason[key] = row
    pairs, used = [], set()
    for key, row in reason.items():
        own = direct.get(key) or direct.get((row.place, row.first.model))
        partner = own or beside(row)
        pairs.append(Pair(partner, row, against=own is None and partner is not None))
        if partner is not None:
            used.add((partner.place, partner.first.label))
    for key, row in direct.items():
        base = beside(row)
        if base is not None and base is not row and key not in used:
            pairs.append(Pair(base, row, against=True))
            used |= {key, (base.place, base.first.label)}
    pairs += [Pair(row, None) for key, row in direct.items() if key not in used]
    others = [row for row in usable if row.first.mode not in ("direct", "reason")]
    pairs += [Pair(row, None) for row in others]
    return sorted(
        pairs,
        key=lambda pair: (not (pair.direct and pair.reason), pair.row.first.model in controls, pair.against),
    )


def build_payload(
    pairs: Sequence[Pair], texts: Mapping[tuple[str, str], str], figures: Mapping[str, Any], room: int
) -> Payload:
    """Explorer data and figures in at most `room` bytes of base64.

    Raises ValueError where even the smallest form is larger (hundreds of models): report fewer runs at once.
    """
    payload = None
    for limits in LADDER:
        data = {"figures": dict(figures), **_explorer(pairs, texts, limits)}
        encoded = compress(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
        payload = Payload(data, tuple(_notes(limits, pairs)), encoded)
        if len(encoded) <= room:
            return payload
    size = len(payload.encoded) if payload else 0
    raise ValueError(
        f"the page would hold {size:,} bytes of data and there is room for {room:,}: "
        f"{len(pairs)} models and tasks are too many for one page below 5 MB. Report fewer runs at once."
    )


def compress(text: str) -> str:
    """Text as gzip in base64, the same bytes for the same text; the page unpacks it with DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode("ascii")


def _explorer(pairs: Sequence[Pair], texts: Mapping[tuple[str, str], str], limits: Limits) -> dict[str, Any]:
    numbers: dict[tuple[str, str], int] = {}
    described = [_pair(pair, numbers, limits) for pair in pairs]
    return {
        "pairs": described,
        "documents": {
            "ids": [document for _, document in numbers],
            "texts": [_cut(texts.get(key, ""), limits.document) for key in numbers],
        },
    }


def _pair(pair: Pair, numbers: dict[tuple[str, str], int], limits: Limits) -> dict[str, Any]:
    task = pair.row.first.task
    sides = {name: row for name, row in (("direct", pair.direct), ("reason", pair.reason)) if row is not None}
    means = {name: _query_means(row) for name, row in sides.items()}
    first: dict[str, Mapping[str, QueryOutcome]] = {name: row.first.outcomes or {} for name, row in sides.items()}
    ids = list(dict.fromkeys(key for outcomes in first.values() for key in outcomes))
    ids = _thin(ids, means, limits.queries)

    def number(document: str) -> int:
        return numbers.setdefault((task, document), len(numbers))

    known = [[outcomes[key] for outcomes in first.values() if key in outcomes] for key in ids]
    judged = [dict(entry for item in items for entry in item.judged) for items in known]
    result: dict[str, Any] = {
        "title": pair.title,
        "names": list(pair.names),
        "writes": pair.reason is not None and pair.reason.first.writes,
        "seeds": {name: [run.seed for run in row.runs] for name, row in sides.items()},
        "budget": pair.reason.first.max_reasoning_tokens if pair.reason else None,
        "total": len({key for outcomes in first.values() for key in outcomes}),
        "ids": ids,
        "texts": [next((item.text for item in items if item.text), "") for items in known],
        "judged": [[[number(key), _tidy(rel)] for key, rel in entries.items() if rel > 0] for entries in judged],
    }
    hops = [next((item.hops for item in items if item.hops is not None), None) for items in known]
    if any(value is not None for value in hops):
        result["hops"] = hops
    for name, outcomes in first.items():
        result[name] = _side([outcomes.get(key) for key in ids], [means[name].get(key) for key in ids], number, limits)
    return result


def _side(
    outcomes: Sequence[QueryOutcome | None], scores: Sequence[float | None], number: Any, limits: Limits
) -> dict[str, Any]:
    tops = [item.top[: limits.top] if item else () for item in outcomes]
    side: dict[str, Any] = {
        "ndcg": [None if value is None else round(value, 4) for value in scores],
        "top": [[number(document) for document, _ in top] for top in tops],
        "scores": [[_tidy(value) for _, value in top] for top in tops],
    }
    if any(item is not None and item.reasoning is not None for item in outcomes):
        side["reasoning"] = [_cut(item.reasoning or "", limits.reasoning) if item else "" for item in outcomes]
        side["tokens"] = [item.reasoning_tokens if item else None for item in outcomes]
        side["forced"] = [int(item is not None and item.finished is False) for item in outcomes]
    return side


def _thin(ids: list[str], means: Mapping[str, Mapping[str, float]], most: int | None) -> list[str]:
    """At most `most` ids, evenly spaced over the sorted differences, in their original order."""
    if most is None or len(ids) <= most:
        return ids
    before, after = means.get("direct", {}), means.get("reason", {})
    ranked = sorted(ids, key=lambda key: after.get(key, 0.0) - before.get(key, 0.0))
    kept = {ranked[(position * (len(ids) - 1)) // max(1, most - 1)] for position in range(most)}
    return [key for key in ids if key in kept]


def _notes(limits: Limits, pairs: Sequence[Pair]) -> list[str]:
    notes = []
    if limits.reasoning is not None:
        notes.append(
            f"To stay below 5 MB, reasoning is cut after {limits.reasoning} characters and documents after "
            f"{limits.document}; {limits.top} documents are shown for each query. The run folders hold the full texts."
        )
    if limits.queries is not None and any(len(pair.row.first.outcomes or {}) > limits.queries for pair in pairs):
        notes.append(
            f"Each model and task shows {limits.queries:,} queries, evenly spaced over the sorted differences."
        )
    return notes


def _query_means(row: ScoreRow) -> dict[str, float]:
    """Mean nDCG@10 of each query over the seeds that have it."""
    runs = [run.values() or {} for run in row.runs]
    keys = dict.fromkeys(key for run in runs for key in run)
    found = {key: mean(run.get(key) for run in runs) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def _tidy(value: float | None) -> float | int | None:
    """The value to three decimals, an int where it is whole, None where it is not a finite number."""
    if value is None or not math.isfinite(value):
        return None
    short = round(value, 3)
    return int(short) if short == int(short) else short
