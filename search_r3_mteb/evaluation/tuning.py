"""The anchor and the abstention margin, chosen on a task's development split; with both, what they cost and bring.

    for each anchor of the grid:   nDCG@10 of normalise(direct + anchor x reasoned), against the direct vectors
    for each share of the queries: nDCG@10 when only so many reason, those whose direct ranking is least sure

Every row is computed from one run of the model: each query's direct vector and the one after its reasoning. Chosen are
the anchor, then the margin, of the highest mean nDCG@10; of equal ones the smaller anchor, and the margin with which
fewer queries reason. Margin 0 means that nothing helped: no query reasons.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_r3_mteb.atomic import write_json, write_text
from search_r3_mteb.encoder.anchoring import anchored, check_anchor
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, check_files, write_manifest
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from search_r3_mteb.evaluation.abstaining import is_unsure
from search_r3_mteb.evaluation.diagnosis_runs import again
from search_r3_mteb.evaluation.movement import PerQuery
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.significance import compare
from search_r3_mteb.evaluation.systems import kind_of, short_name, split_label
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_task

if TYPE_CHECKING:
    from rich.table import Table

    from search_r3_mteb.encoder.checkpoints import Checkpoint

TuningRecord = dict[str, Any]
FILE = "tune.json"
_DIGITS = 6
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuningPlan:
    """The grids, both our choice: weights of the reasoned vector, and shares of the queries that reason."""

    anchors: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    max_queries: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for anchor in self.anchors:
            check_anchor("anchors", anchor)
        wrong = [share for share in self.shares if not 0 < share < 1]
        if wrong:
            raise ValueError(
                f"shares={wrong[0]!r}: a share of the queries lies between 0 and 1, which are shown anyway."
            )


def tune(
    model: "str | Path | Checkpoint",
    task: TaskSpec,
    split: str,
    output: Path | str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    plan: TuningPlan | None = None,
    command: str | None = None,
) -> TuningRecord:
    """The table of anchors and margins, and the chosen ones; written to OUTPUT/tune.json.

    `settings` are those of SearchR3Encoder, but for `mode` and `anchor`. What is computed is kept in OUTPUT/store, so
    that a killed run goes on. Raises ValueError for a model that does not reason, and for a split that does not exist.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    plan, settings = plan or TuningPlan(), dict(settings or {})
    for name in {"mode", "anchor"} & set(settings):
        raise ValueError(f"{name}={settings[name]!r}: what is tuned decides that itself. Leave it out.")
    resolved = resolve_task(task, split)
    label, spec = split_label(model) if isinstance(model, str | Path) else (None, model)
    if isinstance(spec, str | Path) and kind_of(spec) != "search-r3":
        raise ValueError(f"{spec} is not a Search-R3 checkpoint, so it has no reasoned vector to weigh.")
    encoder = SearchR3Encoder(spec, **settings, mode="reason", anchor=None)
    name = label or short_name(encoder.name)
    folder = (
        Path("runs/tune", f"{resolved.metadata.name}__{name.replace('/', '__')}") if output is None else Path(output)
    )
    store = folder / "store"
    direct = again(encoder, store, mode="direct", anchor=None)
    reason = again(encoder, store, anchor=None)
    scorer = QueryScorer(resolved, direct, plan.max_queries, plan.seed)
    _log.info("%d queries of %d: direct, then with reasoning", len(scorer), scorer.queries_in_task)
    first = direct.encode_query(scorer.texts, instruction=scorer.instructions)
    thoughts = reason.think(scorer.texts, instruction=scorer.instructions)
    second = np.stack([thought.vector for thought in thoughts])
    tokens = np.array([len(thought.token_ids) for thought in thoughts])
    base = scorer.quality(first).ndcg_at_10
    cost = _Cost(
        tokens,
        1000 * direct.statistics.query_seconds / len(scorer),
        1000 * reason.statistics.query_seconds / len(scorer),
    )
    rows, scores = [], []
    for anchor in (*sorted(set(plan.anchors)), None):
        vectors = second if anchor is None else encoder.unit(anchored(first, second, anchor), scorer.texts)
        scores.append(scorer.quality(vectors).ndcg_at_10)
        rows.append({"anchor": anchor, **_against(scores[-1], base), **cost.of(np.ones(len(scorer), bool), anchor)})
    best = _best([score.mean() for score in scores])
    found: TuningRecord = {
        "task": resolved.metadata.name,
        "split": scorer.split,
        "model": name,
        "queries": len(scorer),
        "documents": scorer.documents,
        "settings": encoder.settings,
        "fingerprint": encoder.fingerprint,
        "direct": {"ndcg_at_10": round(float(base.mean()), _DIGITS), **cost.of(np.zeros(len(scorer), bool), 0.0)},
        "anchors": rows,
        "margins": _margins(plan, scorer.top_margins(first), scores[best], base, cost, rows[best]["anchor"]),
        "commit": commit(),
    }
    chosen = _best([row["ndcg_at_10"] for row in found["margins"]])
    found["chosen"] = {
        "anchor": rows[best]["anchor"],
        "abstain_margin": found["margins"][chosen]["abstain_margin"],
    }
    if command is not None:
        found["command"] = command
    write_json(folder / FILE, found)
    return {**found, "file": str(folder / FILE)}


@dataclass(frozen=True)
class _Cost:
    """Tokens of each query's reasoning, and milliseconds per query without it and of it."""

    tokens: PerQuery
    direct: float
    reasoned: float

    def of(self, unsure: Any, anchor: float | None) -> dict[str, float]:
        """Tokens and milliseconds per query when these queries reason; all of them alone need no direct vector."""
        needs_direct = anchor is not None or not unsure.all()
        return {
            "tokens_per_query": round(float((self.tokens * unsure).mean()), 3),
            "milliseconds_per_query": round(self.direct * needs_direct + self.reasoned * float(unsure.mean()), 3),
        }


def _margins(
    plan: TuningPlan, margins: PerQuery, reasoned: PerQuery, base: PerQuery, cost: _Cost, anchor: float | None
) -> list[TuningRecord]:
    """From none to all: the queries of the smallest margins reason; None is no bound."""
    order, many = np.sort(margins), len(margins)
    bounds = sorted({0.0, *(float(order[min(many - 1, round(share * many))]) for share in plan.shares)})
    rows = []
    for bound in (*(each for each in bounds if np.isfinite(each)), None):
        unsure = np.ones(many, bool) if bound is None else is_unsure(margins, bound)
        scores = np.where(unsure, reasoned, base)
        rows.append(
            {
                "abstain_margin": bound,
                "reasoned_share": round(float(unsure.mean()), _DIGITS),
                **_against(scores, base),
                **cost.of(unsure, anchor),
            }
        )
    return rows


def _against(scores: PerQuery, base: PerQuery) -> TuningRecord:
    found = compare(scores, base)
    return {
        "ndcg_at_10": round(float(scores.mean()), _DIGITS),
        "difference": round(found.difference, _DIGITS),
        "interval": [round(found.low, _DIGITS), round(found.high, _DIGITS)],
    }


def _best(means: Sequence[float]) -> int:
    """The place of the highest mean, of equal ones the first."""
    return int(np.argmax(np.round(means, _DIGITS)))


def write_anchor(folder: Path | str, anchor: float | None) -> Path:
    """Recommend `anchor` in the profile of a model folder, None for none; the profile's file. Its manifest follows.

    Raises FileNotFoundError for what is not a local folder: bundled models and the hub's are not changed; ValueError
    for a folder that already differs from its manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder, so no profile can be written there: bundled models and the hub's stay as they "
            "are. Use --set anchor=..., or a copy of the model."
        )
    check_files(folder)
    path = folder / PROFILE_FILE
    write_text(path, replace(Profile.load(folder), anchor=anchor).to_text())
    if (folder / MANIFEST_FILE).exists():  # else the folder would be refused for the change that was asked for
        write_manifest(folder)
    return path


def tables(found: TuningRecord) -> "list[Table]":
    """The two tables; the chosen row of each is marked."""
    from rich import box
    from rich.table import Table

    made = []
    for name, key in (("anchor", "anchors"), ("abstain_margin", "margins")):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(name.replace("abstain_", ""), justify="right")
        for column in ("nDCG@10", "against direct", "reasoned", "tokens/query", "ms/query"):
            table.add_column(column, justify="right", no_wrap=True)
        if key == "anchors":
            table.add_row("direct", f"{found['direct']['ndcg_at_10']:.4f}", "", "0 %", *_costs(found["direct"]))
        for row in found[key]:
            low, high = row["interval"]
            value = {None: "alone" if key == "anchors" else "none"}.get(row[name], "")
            table.add_row(
                f"{'* ' * (row[name] == found['chosen'][name])}{value or format(row[name], '.4g')}",
                f"{row['ndcg_at_10']:.4f}",
                f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})",
                f"{row.get('reasoned_share', 1.0):.0%}",
                *_costs(row),
            )
        made.append(table)
    return made


def _costs(row: TuningRecord) -> tuple[str, str]:
    return f"{row['tokens_per_query']:,.1f}", f"{row['milliseconds_per_query']:,.1f}"
