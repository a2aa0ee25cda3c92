"""The anchor and the abstention margin, chosen on a task's development split; with both, what they cost and bring.

    for each anchor of the grid:   nDCG@10 of normalise(direct + anchor x reasoned), against the direct vectors
    for each share of the queries: nDCG@10 when only so many reason, those whose direct ranking is least sure

Every row is computed from one run of the model: each query's direct vector and the one after its reasoning, or that of
what a writer wrote, or of Rocchio's documents. Chosen are the anchor, then the margin, of the highest mean nDCG@10; of
equal ones the smaller anchor, and the margin with which fewer queries reason. Margin 0 means that nothing helped: no
query reasons. Writers with encoders and Rocchio have an anchor only: `evaluate` does not let them abstain.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_r3_mteb.atomic import write_json, write_text
from search_r3_mteb.encoder.anchoring import check_anchor
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, check_files, write_manifest
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from search_r3_mteb.evaluation.abstaining import is_unsure
from search_r3_mteb.evaluation.movement import PerQuery
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.readiness import check_models, load_task
from search_r3_mteb.evaluation.significance import compare
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.evaluation.systems import kind_of, short_name, split_label
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_task
from search_r3_mteb.evaluation.tuning_runs import Cost, SystemRun, run_expansion, run_search_r3
from search_r3_mteb.evaluation.unit_files import file_name
from search_r3_mteb.expansion.names import parse_name
from search_r3_mteb.json_files import read_object
from search_r3_mteb.search.arrays import Vectors

if TYPE_CHECKING:
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.narrow_tables import NarrowTable

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

    `settings` are those of SearchR3Encoder, or of `ExpansionSettings` for METHOD:WRITER+ENCODER, but for `mode` and
    `anchor`. What is computed is kept in `cache_folder`, by default OUTPUT/store, so that a killed run goes on. Raises
    ValueError for a model that has nothing to weigh, for settings that it does not use, and for a split that does not
    exist.
    """
    plan, settings = plan or TuningPlan(), dict(settings or {})
    for name in {"mode", "anchor"} & set(settings):
        raise ValueError(f"{name}={settings[name]!r}: what is tuned decides that itself. Leave it out.")
    resolved = resolve_task(task, split)
    cache = settings.pop("cache_folder", None)
    label, spec = split_label(model) if isinstance(model, str | Path) else (None, model)
    expansion = parse_name(spec)
    kind = kind_of(spec) if isinstance(spec, str | Path) else "search-r3"
    if kind not in ("search-r3", "expansion"):
        raise ValueError(f"{spec} neither reasons nor expands queries, so it has no vector to weigh.")
    if isinstance(spec, str | Path):
        check_models([spec])
    load_task(resolved)

    def places(name: str) -> tuple[Path, Path]:
        folder = Path("runs/tune", f"{resolved.metadata.name}__{file_name(name)}")
        folder = folder if output is None else Path(output)
        _check_folder(folder / FILE, resolved.metadata.name, name)
        return folder, folder / "store" if cache is None else Path(cache)

    def scorer_of(encoder: Any) -> QueryScorer:
        scorer = QueryScorer(resolved, encoder, plan.max_queries, plan.seed)
        _log.info("%d queries of %d: direct, then with reasoning", len(scorer), scorer.queries_in_task)
        return scorer

    if expansion is None:
        encoder = SearchR3Encoder(spec, **settings, mode="reason", anchor=None)
        name = label or short_name(encoder.name)
        folder, store = places(name)
        run = run_search_r3(encoder, store, scorer_of)
    else:
        check_settings([str(spec)], {**settings, "anchor": 0.0})  # with a weight that excludes an anchor, for example
        name = label or expansion.short
        folder, store = places(name)
        run = run_expansion(expansion, settings, store, scorer_of)
    found = {**_record(run, plan, abstains=expansion is None), "model": name, "commit": commit()}
    if command is not None:
        found["command"] = command
    write_json(folder / FILE, found)
    return {**found, "file": str(folder / FILE)}


def _check_folder(file: Path, task: str, model: str) -> None:
    """ValueError where the file holds what was tuned for another model or task: it would be lost."""
    if not file.exists():
        return
    found = read_object(file, "Remove it, or name another --output.")
    if (found.get("task"), found.get("model")) != (task, model):
        raise ValueError(
            f"{file} is of {found.get('model')} on {found.get('task')}, and would be lost if {model} on {task} were "
            "written there. Name another --output, or another NAME=MODEL."
        )


def _record(run: SystemRun, plan: TuningPlan, abstains: bool) -> TuningRecord:
    """Every row, and the chosen ones; no margins where the system cannot abstain."""
    scorer, cost = run.scorer, run.cost
    every, base = np.ones(len(scorer), bool), scorer.quality(run.direct).ndcg_at_10
    candidates: list[tuple[float | None, Vectors]] = [(each, run.at(each)) for each in sorted(set(plan.anchors))]
    if run.own is not None:
        candidates.append((None, run.own))
    scores = [scorer.quality(vectors).ndcg_at_10 for _, vectors in candidates]
    rows = [
        {"anchor": anchor, **_against(score, base), **cost.of(every, anchor)}
        for (anchor, _), score in zip(candidates, scores, strict=True)
    ]
    best = _best([score.mean() for score in scores])
    found: TuningRecord = {
        "task": scorer.task.metadata.name,
        "split": scorer.split,
        "queries": len(scorer),
        "documents": scorer.documents,
        "settings": dict(run.settings),
        "fingerprint": run.fingerprint,
        "direct": {"ndcg_at_10": round(float(base.mean()), _DIGITS), **cost.of(~every, 0.0)},
        "anchors": rows,
        "chosen": {"anchor": rows[best]["anchor"]},
    }
    if abstains:
        margins = _margins(plan, scorer.top_margins(run.direct), scores[best], base, cost, rows[best]["anchor"])
        chosen = _best([row["ndcg_at_10"] for row in margins])
        found["margins"] = margins
        found["chosen"]["abstain_margin"] = margins[chosen]["abstain_margin"]
    return found


def _margins(
    plan: TuningPlan, margins: PerQuery, reasoned: PerQuery, base: PerQuery, cost: Cost, anchor: float | None
) -> list[TuningRecord]:
    """From none to all: the queries of the smallest margins reason; None is not a bound."""
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
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no {PROFILE_FILE}, so its prompts are another folder's (an adapter's base) or the default, "
            "which one with an anchor alone would replace. Use --set anchor=..., or save the model first."
        )
    write_text(path, replace(Profile.load(folder), anchor=anchor).to_text())
    if (folder / MANIFEST_FILE).exists():  # else the folder would be refused for the change that was asked for
        write_manifest(folder)
    return path


def tables(found: TuningRecord) -> "list[NarrowTable]":
    """The table of anchors and, where there is one, of margins; the chosen row of each is marked."""
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    made = []
    own = "alone" if "margins" in found else "method's"  # the row without an anchor
    columns = [("nDCG@10", 0), ("against\ndirect", 0), ("95 %\ninterval", 3), ("reasoned", 1), ("tokens\n/query", 0)]
    columns += [("ms\n/query", 2)]
    for name, key in (("anchor", "anchors"), ("abstain_margin", "margins")):
        if key not in found:
            continue
        shown = [NarrowColumn(title, leaves=order) for title, order in columns]
        table = NarrowTable([NarrowColumn(name.replace("abstain_", "")), *shown])
        if key == "anchors":
            table.add_row("direct", f"{found['direct']['ndcg_at_10']:.4f}", "", "", "0 %", *_costs(found["direct"]))
        for row in found[key]:
            low, high = row["interval"]
            value = {None: own if key == "anchors" else "none"}.get(row[name], "")
            table.add_row(
                f"{'* ' * (row[name] == found['chosen'][name])}{value or format(row[name], '.4g')}",
                f"{row['ndcg_at_10']:.4f}",
                f"{row['difference']:+z.4f}",
                f"{low:+z.4f} to {high:+z.4f}",
                f"{row.get('reasoned_share', 1.0):.0%}",
                *_costs(row),
            )
        made.append(table)
    return made


def _costs(row: TuningRecord) -> tuple[str, str]:
    return f"{row['tokens_per_query']:,.1f}", f"{row['milliseconds_per_query']:,.1f}"
