"""The diagnosis of `search-r3 diagnose`: does one model's reasoning matter on one task?

For every query the vector is computed after its own reasoning, after another query's, after its own in shuffled words,
after none, and by the direct template; under several sampled reasonings (temperature 1, one seed each); and under
several budgets.

diagnose.json (version 1):

    version, task, split, model, fingerprint, dataset_revision, commit, command, seed, documents, queries,
    queries_in_task
    settings       those of the encoder;  rollouts: {"seeds": [...], "temperature"};  skipped: budgets and why
    verdict        {"text", "matters", "helps", "without"}, see `diagnosis_groups.verdict`
    groups         the first one is all queries ("hops": null), then one for each hop count; each holds
      controls     own, other, shuffled, none, direct: {"ndcg_at_10", "own_minus_this", "cosine_to_own"}
      forced, reasoning_tokens                            of the query's own reasoning
      movement     cosines of one query's rollouts (all pairs; pairs that differ in words) and of different queries,
                   "distance_ratio" = (1 - same) / (1 - different); spread of nDCG@10 and of the margin over rollouts,
                   best and worst rollout, share of nDCG's variance within queries, rank correlation of both spreads
                   with movement
      budgets      by max_reasoning_tokens: quality, tokens, forced share, "minus_smallest"
      pooling      by number of rollouts whose vectors are mean-pooled: quality, "minus_single", "minus_own"
      lengths      by length of its own reasoning, forced rows apart: quality, "direct" on the same queries, difference
    shuffled_unchanged   queries whose reasoning has no other order of words
    per_query      columns of equal length: query_id, hops, tokens, forced, ndcg_own, ndcg_other, ..., cosine_same,
                   cosine_different, ndcg_spread, margin_spread
    examples       a few queries with their three reasonings in words, and what each led to

A quality is {"mean", "interval", "queries"}; a difference {"difference", "interval", "p", "p_adjusted", "significant",
"queries"}: 95 % bootstrap intervals over queries, paired for differences; p is adjusted (Holm) within its list.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.diagnosis_groups import (
    CONTROLS,
    DIRECT,
    OTHER,
    OWN,
    DiagnosisRecord,
    Measured,
    group_record,
    hop_groups,
    verdict,
)
from search_r3_mteb.evaluation.diagnosis_runs import DiagnosisPlan, DiagnosisRuns, again
from search_r3_mteb.evaluation.movement import spread
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.readiness import check_models, load_task
from search_r3_mteb.evaluation.systems import kind_of, short_name, split_label
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_task
from search_r3_mteb.json_files import read_object

if TYPE_CHECKING:
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.narrow_tables import NarrowTable

DIAGNOSIS_VERSION = 1
DIAGNOSIS_FILE = "diagnose.json"
_log = logging.getLogger(__name__)


def diagnose(
    model: "str | Path | Checkpoint",
    task: TaskSpec,
    output: Path | str | None = None,
    *,
    split: str | None = None,
    cache_folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    plan: DiagnosisPlan | None = None,
    command: str | None = None,
) -> DiagnosisRecord:
    """Diagnose one Search-R3 checkpoint on one task; writes OUTPUT/diagnose.json and returns its content.

    `model` and `task` as in `search-r3 evaluate`. `output` defaults to runs/diagnose/TASK__MODEL; thoughts and document
    vectors are kept in `cache_folder` (OUTPUT/store), so that a killed run resumes. `settings` are those of
    SearchR3Encoder; its mode is "reason". Raises ValueError for a model that does not reason, for a task with several
    splits, and for a folder that holds the diagnosis of another model or task.
    """
    plan = plan or DiagnosisPlan()
    resolved = resolve_task(task, split)
    if isinstance(model, str | Path):
        check_models([model])
    load_task(resolved)
    encoder, label = _encoder(model, settings or {})
    name = resolved.metadata.name
    folder = Path("runs/diagnose") / f"{name}__{label.replace('/', '__')}" if output is None else Path(output)
    _check_folder(folder / DIAGNOSIS_FILE, name, label)
    store = folder / "store" if cache_folder is None else Path(cache_folder)
    _log.info("%s on %s: embedding the documents", label, name)
    scorer = QueryScorer(resolved, again(encoder, store), plan.max_queries, plan.seed)
    runs = DiagnosisRuns(encoder, scorer, plan, store)
    measured, examples = runs.measure()
    _log.info("intervals")
    groups = [group_record(measured, rows, hops) for hops, rows in hop_groups(scorer.hops)]
    result: DiagnosisRecord = {
        "version": DIAGNOSIS_VERSION,
        "task": name,
        "split": scorer.split,
        "model": label,
        "fingerprint": encoder.fingerprint,
        "dataset_revision": resolved.metadata.revision,
        "commit": commit(),
        "command": command,
        "seed": plan.seed,
        "documents": scorer.documents,
        "queries": len(scorer),
        "queries_in_task": scorer.queries_in_task,
        "settings": encoder.settings,
        "rollouts": {"seeds": runs.seeds, "temperature": plan.temperature},
        "skipped": runs.skipped,
        "verdict": verdict(groups[0], label, name),
        "groups": groups,
        "shuffled_unchanged": runs.unchanged,
        "per_query": _per_query(measured, scorer),
        "examples": examples,
    }
    write_json(folder / DIAGNOSIS_FILE, result)
    return result | {"file": str(folder / DIAGNOSIS_FILE)}


def table(result: DiagnosisRecord) -> "NarrowTable":
    """The controls of every group as a table that fits its terminal."""
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    columns = [("own", 0), ("another's", 0), ("shuffled", 2), ("empty", 3), ("direct", 0)]
    columns += [("own -\nanother's", 0), ("95 %\ninterval", 4), ("own -\ndirect", 0), ("95 %\ninterval", 1)]
    found = NarrowTable(
        [NarrowColumn("queries", name=True), *(NarrowColumn(name, leaves=order) for name, order in columns)]
    )
    for group in result["groups"]:
        controls = group["controls"]
        label = "all" if group["hops"] is None else f"{group['hops']} hop{'s' * (group['hops'] > 1)}"
        means = [f"{controls[name]['ndcg_at_10']['mean']:.3f}" for name in (OWN, *CONTROLS)]
        shown = [cell for name in (OTHER, DIRECT) for cell in _difference(controls[name]["own_minus_this"])]
        found.add_row(f"{label} ({group['queries']:,})", *means, *shown)
    return found


def _difference(record: DiagnosisRecord) -> tuple[str, str]:
    low, high = record["interval"]
    return f"{record['difference']:+z.3f}", f"{low:+z.3f} to {high:+z.3f}"


def _encoder(model: "str | Path | Checkpoint", settings: Mapping[str, Any]) -> "tuple[SearchR3Encoder, str]":
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    label, spec = split_label(model) if isinstance(model, str | Path) else (None, model)
    if isinstance(spec, str | Path) and kind_of(spec) != "search-r3":
        raise ValueError(
            f"{spec} does not reason, so there is no reasoning to exchange. Diagnose a Search-R3 checkpoint (nano, a "
            "folder, a LoRA folder or a hub id)."
        )
    if settings.get("mode", "reason") != "reason":
        raise ValueError(f"mode={settings['mode']!r}: a diagnosis is about reasoning; leave the mode out.")
    if settings.get("max_reasoning_tokens") == 0:
        raise ValueError("max_reasoning_tokens=0 leaves nothing to diagnose: name a budget above 0.")
    encoder = SearchR3Encoder(spec, **{**settings, "mode": "reason"})
    return encoder, label or short_name(encoder.name)


def _check_folder(file: Path, task: str, model: str) -> None:
    if not file.exists():
        return
    earlier = read_object(file, "Name another --output, or remove the file.")
    there = earlier.get("task"), earlier.get("model")
    if there != (task, model):
        raise ValueError(f"{file} holds the diagnosis of {there[1]} on {there[0]}. Name another --output.")


def _per_query(measured: Measured, scorer: QueryScorer) -> dict[str, list[Any]]:
    columns: dict[str, Any] = {
        "tokens": measured.tokens,
        "forced": measured.forced.astype(int),
        **{f"ndcg_{name}": values for name, values in measured.ndcg.items()},
        "cosine_same": measured.cosines.same,
        "cosine_different": measured.cosines.different,
        "ndcg_spread": spread(measured.rollout_ndcg),
        "margin_spread": spread(measured.rollout_margin),
    }
    found: dict[str, list[Any]] = {"query_id": scorer.ids, "hops": scorer.hops}
    for name, values in columns.items():
        # A margin is undefined where every document is relevant: null, since JSON has no NaN.
        found[name] = [None if value != value else round(value, 5) for value in values.tolist()]
    return found
