"""Does the reasoning matter? `search-r3 diagnose`: one model on one task, its reasoning exchanged, scrambled and left out.

For every query the vector is computed after its own reasoning, after another query's, after its own in shuffled words, after
none, and by the direct template; under several sampled reasonings (temperature 1, one seed each); and under several budgets.

diagnose.json (version 1):

    version, task, split, model, fingerprint, dataset_revision, commit, command, seed, documents, queries, queries_in_task
    settings       those of the encoder;  rollouts: {"seeds": [...], "temperature"};  skipped: budgets that do not fit, and why
    verdict        {"text", "matters", "helps", "without"}, see `diagnosis_groups.verdict`
    groups         the first one is all queries ("hops": null), then one for each hop count; each holds
      controls     own, other, shuffled, none, direct: {"ndcg_at_10", "own_minus_this", "cosine_to_own"}
      forced, reasoning_tokens                            of the own reasoning
      movement     cosines of one query's rollouts (all pairs; pairs that differ in words) and of different queries,
                   "distance_ratio" = (1 - same) / (1 - different); spread of nDCG@10 and of the margin over rollouts, best and
                   worst rollout, share of nDCG's variance that lies within queries, rank correlation of movement and spread
      budgets      by max_reasoning_tokens: quality, tokens, forced share, "minus_smallest"
      pooling      by number of rollouts whose vectors are mean-pooled: quality, "minus_single", "minus_own"
      lengths      by length of the own reasoning, forced rows apart: quality, "direct" on the same queries, their difference
    shuffled_unchanged   queries whose reasoning has no other order of words
    per_query      columns of equal length: query_id, hops, tokens, forced, ndcg_own, ndcg_other, ..., cosine_same,
                   cosine_different, ndcg_spread, margin_spread
    examples       a few queries with their three reasonings in words, and what each led to

A quality is {"mean", "interval", "queries"}; a difference {"difference", "interval", "p", "p_adjusted", "significant",
"queries"}: 95 % bootstrap intervals over queries, paired for differences; p is adjusted (Holm) within its list.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.diagnosis_groups import (
    CONTROLS,
    DIRECT,
    NONE,
    OTHER,
    OWN,
    SHUFFLED,
    BudgetRun,
    DiagnosisRecord,
    Measured,
    group_record,
    hop_groups,
    verdict,
)
from search_r3_mteb.evaluation.movement import PerQuery, SampledReasonings, cosines, pooled, spread
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.reasoning_variants import embed_after, others, shuffled_words
from search_r3_mteb.evaluation.systems import kind_of, short_name, split_label
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_task

if TYPE_CHECKING:
    from rich.table import Table

    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.encoder import SearchR3Encoder, Thought

DIAGNOSIS_VERSION = 1
DIAGNOSIS_FILE = "diagnose.json"
_EXAMPLES = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiagnosisPlan:
    """How much is measured.

    `max_queries` judged queries are drawn with `seed` (None: all). `rollouts` reasonings of each are sampled at `temperature`
    with the seeds `seed`, `seed` + 1, ... `pools`: how many of their vectors are averaged. `budgets` in reasoning tokens.
    """

    max_queries: int | None = 1000
    rollouts: int = 16
    budgets: tuple[int, ...] = (0, 16, 64, 256)
    pools: tuple[int, ...] = (1, 4, 16)
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise ValueError(f"rollouts={self.rollouts}: two are the least, since their vectors are compared.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: rollouts are sampled, so it must be above 0.")
        if self.max_queries is not None and self.max_queries < 2:
            raise ValueError(
                f"max_queries={self.max_queries}: two are the least, since one gets the other's reasoning."
            )
        if not self.budgets or min(self.budgets) < 0:
            raise ValueError(f"budgets={self.budgets}: name at least one number of tokens, none below 0.")


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

    `model` and `task` as `search-r3 evaluate` takes them. `output` defaults to runs/diagnose/TASK__MODEL; thoughts and document
    vectors are kept in `cache_folder` (OUTPUT/store), so that a run that was killed resumes. `settings` are those of
    SearchR3Encoder; its mode is "reason". Raises ValueError for a model that does not reason, for a task with several splits,
    and for a folder that holds the diagnosis of another model or task.
    """
    plan = plan or DiagnosisPlan()
    resolved = resolve_task(task, split)
    encoder, label = _encoder(model, settings or {})
    name = resolved.metadata.name
    folder = Path("runs/diagnose") / f"{name}__{label.replace('/', '__')}" if output is None else Path(output)
    _check_folder(folder / DIAGNOSIS_FILE, name, label)
    store = folder / "store" if cache_folder is None else Path(cache_folder)
    _log.info("%s on %s: embedding the documents", label, name)
    scorer = QueryScorer(resolved, _again(encoder, store), plan.max_queries, plan.seed)
    runs = _Runs(encoder, scorer, plan, store)
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


class _Runs:
    """The model's runs over the chosen queries."""

    def __init__(self, encoder: "SearchR3Encoder", scorer: QueryScorer, plan: DiagnosisPlan, store: Path) -> None:
        self.encoder, self.scorer, self.plan, self.store = encoder, scorer, plan, store
        self.seeds = list(range(plan.seed, plan.seed + plan.rollouts))
        self.skipped: list[DiagnosisRecord] = []
        self.unchanged = 0

    def measure(self) -> tuple[Measured, list[DiagnosisRecord]]:
        """Everything that is measured of each query, and some examples in words."""
        _log.info("%d queries of %d: own reasoning", len(self.scorer), self.scorer.queries_in_task)
        own = self._think(self.encoder)
        vectors, reasonings = self._controls(own)
        ndcg = {name: self._ndcg(each) for name, each in vectors.items()}
        cosine = {name: (vectors[name].astype(np.float64) * vectors[OWN]).sum(axis=1) for name in CONTROLS}
        rollouts = self._rollouts()
        sizes = sorted({1, *(size for size in self.plan.pools if 1 <= size <= self.plan.rollouts)})
        measured = Measured(
            ndcg=ndcg,
            cosine_to_own=cosine,
            tokens=np.array([len(thought.token_ids) for thought in own]),
            forced=_forced(own),
            budgets=self._budgets(own, ndcg[OWN]),
            cosines=cosines(rollouts),
            rollout_ndcg=rollouts.ndcg_at_10,
            rollout_margin=rollouts.margin,
            rollout_forced=1 - rollouts.finished,
            pools={size: self._pooled(rollouts, size) for size in sizes},
        )
        return measured, self._examples(reasonings, ndcg)

    def _controls(
        self, own: Sequence["Thought"]
    ) -> tuple[dict[str, Float32[np.ndarray, "queries dim"]], dict[str, list[list[int]]]]:
        """Vectors after each reasoning, and the reasonings as token ids."""
        rng = np.random.default_rng(self.plan.seed)
        ids = [list(thought.token_ids) for thought in own]
        other = [ids[place] for place in others(len(ids), rng)]
        shuffled = shuffled_words(ids, self.encoder.renderer, rng, self.encoder.settings["max_reasoning_tokens"])
        self.unchanged = sum(first == second for first, second in zip(ids, shuffled, strict=True))
        reasonings = {OWN: ids, OTHER: other, SHUFFLED: shuffled, NONE: [[] for _ in ids]}
        vectors = {OWN: np.stack([thought.vector for thought in own])}
        _log.info("other reasoning, shuffled reasoning, none")
        for name in (OTHER, SHUFFLED, NONE):
            what = "no reasoning" if name == NONE else f"{name} reasoning"
            vectors[name] = embed_after(
                self.encoder, self.scorer.texts, self.scorer.instructions, reasonings[name], what
            )
        direct = _again(self.encoder, self.store, mode="direct")
        vectors[DIRECT] = direct.encode_query(self.scorer.texts, instruction=self.scorer.instructions)
        return vectors, reasonings

    def _rollouts(self) -> SampledReasonings:
        runs = []
        for number, seed in enumerate(self.seeds, start=1):
            _log.info("rollout %d of %d", number, len(self.seeds))
            runs.append(self._think(self.encoder, temperature=self.plan.temperature, seed=seed))
        vectors = np.stack([np.stack([thought.vector for thought in run]) for run in runs])
        qualities = [self.scorer.quality(each) for each in vectors]
        return SampledReasonings(
            vectors=vectors,
            token_ids=[[thought.token_ids for thought in run] for run in runs],
            finished=1 - np.stack([_forced(run) for run in runs]),
            ndcg_at_10=np.stack([quality.ndcg_at_10 for quality in qualities]),
            margin=np.stack([quality.margin for quality in qualities]),
        )

    def _pooled(self, rollouts: SampledReasonings, size: int) -> PerQuery:
        if size == 1:
            values: PerQuery = rollouts.ndcg_at_10.mean(axis=0)
        else:
            values = np.mean([self._ndcg(each) for each in pooled(rollouts.vectors, size)], axis=0)
        return values

    def _budgets(self, own: Sequence["Thought"], own_ndcg: PerQuery) -> dict[int, BudgetRun]:
        """The own run's budget is one of them; a budget for which the model's window is too short is told, not cut."""
        mine = int(self.encoder.settings["max_reasoning_tokens"])
        found = {mine: BudgetRun(own_ndcg, np.array([len(each.token_ids) for each in own]), _forced(own))}
        for budget in sorted(set(self.plan.budgets) - {mine}):
            lacking = self._lacking(budget)
            if lacking is not None:
                self.skipped.append({"max_reasoning_tokens": budget, "why": lacking})
                continue
            _log.info("budget of %d tokens", budget)
            run = self._think(self.encoder, max_reasoning_tokens=budget)
            vectors = np.stack([each.vector for each in run])
            lengths = np.array([len(each.token_ids) for each in run])
            found[budget] = BudgetRun(self._ndcg(vectors), lengths, _forced(run))
        return found

    def _lacking(self, budget: int) -> str | None:
        """Why the model's window is too short for this budget, None where it is not."""
        window = getattr(self.encoder.model.config.get_text_config(), "max_position_embeddings", None)
        needed = self.encoder.max_length + budget + 1
        if window is None or needed <= window:
            return None
        return (
            f"prompt ({self.encoder.max_length} tokens), reasoning and embed token need {needed} positions, and the model has "
            f"{window}: give a smaller max_length with --set"
        )

    def _think(self, encoder: "SearchR3Encoder", **changed: Any) -> "list[Thought]":
        return _again(encoder, self.store, **changed).think(self.scorer.texts, instruction=self.scorer.instructions)

    def _ndcg(self, vectors: Float32[np.ndarray, "queries dim"]) -> PerQuery:
        return self.scorer.quality(vectors).ndcg_at_10

    def _examples(
        self, reasonings: Mapping[str, list[list[int]]], ndcg: Mapping[str, PerQuery]
    ) -> list[DiagnosisRecord]:
        """The queries that another reasoning changed most, in words."""
        change = np.abs(ndcg[OWN] - ndcg[OTHER])
        found = []
        for row in np.argsort(-change, kind="stable")[:_EXAMPLES].tolist():
            said = {
                name: self.encoder.tokenizer.decode(reasonings[name][row], skip_special_tokens=True)
                for name in (OWN, OTHER, SHUFFLED)
            }
            quality = {name: round(float(values[row]), 6) for name, values in ndcg.items()}
            found.append({
                "query_id": self.scorer.ids[row], "query": self.scorer.texts[row], "reasoning": said, "ndcg_at_10": quality
            })  # fmt: skip
        return found


def table(result: DiagnosisRecord) -> "Table":
    """The controls of every group as a rich table."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("queries", "own", "another's", "shuffled", "empty", "direct", "own - another's", "own - direct"):
        found.add_column(name, justify="left" if name == "queries" else "right")
    for group in result["groups"]:
        controls = group["controls"]
        label = "all" if group["hops"] is None else f"{group['hops']} hop{'s' * (group['hops'] > 1)}"
        means = [f"{controls[name]['ndcg_at_10']['mean']:.3f}" for name in (OWN, *CONTROLS)]
        shown = [_difference(controls[name]["own_minus_this"]) for name in (OTHER, DIRECT)]
        found.add_row(f"{label} ({group['queries']:,})", *means, *shown)
    return found


def _difference(record: DiagnosisRecord) -> str:
    low, high = record["interval"]
    return f"{record['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("[", "\\[")


def _encoder(model: "str | Path | Checkpoint", settings: Mapping[str, Any]) -> "tuple[SearchR3Encoder, str]":
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    label, spec = split_label(str(model)) if isinstance(model, str | Path) else (None, model)
    if isinstance(spec, str) and kind_of(spec) != "search-r3":
        raise ValueError(
            f"{spec} does not reason, so there is no reasoning to exchange. Diagnose a Search-R3 checkpoint (nano, a folder, a "
            "LoRA folder or a hub id)."
        )
    if settings.get("mode", "reason") != "reason":
        raise ValueError(f"mode={settings['mode']!r}: a diagnosis is about reasoning; leave the mode out.")
    if settings.get("max_reasoning_tokens") == 0:
        raise ValueError(
            "max_reasoning_tokens=0: without reasoning there is nothing to diagnose. Name a budget above 0."
        )
    encoder = SearchR3Encoder(spec, **{**settings, "mode": "reason"})
    return encoder, label or short_name(encoder.name)


def _again(encoder: "SearchR3Encoder", store: Path, **changed: Any) -> "SearchR3Encoder":
    """The same checkpoint and lengths with other settings; weights are not loaded again.

    The prompt's length stays that of `encoder`, whatever the budget: otherwise a larger budget would cut the query.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    kept = {key: value for key, value in encoder.settings.items() if key not in ("dtype", "mode")}
    mode = changed.get("mode", "reason")
    return SearchR3Encoder(
        encoder.checkpoint,
        **{**kept, "batch_tokens": encoder.engine.token_budget, "cache_folder": store, "mode": mode, **changed},
    )


def _check_folder(file: Path, task: str, model: str) -> None:
    if not file.exists():
        return
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        there = earlier.get("task"), earlier.get("model")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{file} is no diagnosis ({error}). Name another --output, or remove the file.") from error
    if there != (task, model):
        raise ValueError(f"{file} holds the diagnosis of {there[1]} on {there[0]}. Name another --output.")


def _forced(thoughts: Sequence["Thought"]) -> PerQuery:
    return np.array([float(not thought.finished) for thought in thoughts])


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
