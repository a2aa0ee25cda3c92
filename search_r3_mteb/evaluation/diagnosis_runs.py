"""The runs of a diagnosis: own, exchanged, shuffled and no reasoning, sampled rollouts, and several budgets."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

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
)
from search_r3_mteb.evaluation.movement import PerQuery, SampledReasonings, cosines, pooled
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.reasoning_variants import others, shuffled_words

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.thoughts import Thought

_EXAMPLES = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiagnosisPlan:
    """How much is measured.

    `max_queries` judged queries are drawn with `seed` (None: all). `rollouts` reasonings of each are sampled at
    `temperature` with the seeds `seed`, `seed` + 1, ... `pools`: how many of their vectors are averaged. `budgets` in
    reasoning tokens.
    """

    max_queries: int | None = 1000
    rollouts: int = 16
    budgets: tuple[int, ...] = (0, 16, 64, 256)
    pools: tuple[int, ...] = (1, 4, 16)
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise ValueError(f"rollouts={self.rollouts}: at least two are needed, since their vectors are compared.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: rollouts are sampled, so it must be above 0.")
        if self.max_queries is not None and self.max_queries < 2:
            raise ValueError(f"max_queries={self.max_queries}: at least two, since one gets the other's reasoning.")
        if not self.budgets or min(self.budgets) < 0:
            raise ValueError(f"budgets={self.budgets}: name at least one number of tokens, none below 0.")


class DiagnosisRuns:
    """The model's runs over the chosen queries."""

    def __init__(self, encoder: "SearchR3Encoder", scorer: QueryScorer, plan: DiagnosisPlan, store: Path) -> None:
        self.encoder, self.scorer, self.plan, self.store = encoder, scorer, plan, store
        self.seeds = list(range(plan.seed, plan.seed + plan.rollouts))
        self.skipped: list[DiagnosisRecord] = []
        self.unchanged = 0

    def measure(self) -> tuple[Measured, list[DiagnosisRecord]]:
        """The measurements of every query, and some examples in words."""
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
            given = again(self.encoder, self.store).think(
                self.scorer.texts, instruction=self.scorer.instructions, reasoning=reasonings[name]
            )
            vectors[name] = np.stack([thought.vector for thought in given])
        direct = again(self.encoder, self.store, mode="direct")
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
        """The run of each budget and of the default one; a budget beyond the model's window is skipped and noted."""
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
        window, needed = self.encoder.checkpoint.window, self.encoder.max_length + budget + 1
        if window is None or needed <= window:
            return None
        return (
            f"prompt ({self.encoder.max_length} tokens), reasoning and embed token need {needed} positions, and the "
            f"model has {window}: give a smaller max_length with --set"
        )

    def _think(self, encoder: "SearchR3Encoder", **changed: Any) -> "list[Thought]":
        return again(encoder, self.store, **changed).think(self.scorer.texts, instruction=self.scorer.instructions)

    def _ndcg(self, vectors: Float32[np.ndarray, "queries dim"]) -> PerQuery:
        return self.scorer.quality(vectors).ndcg_at_10

    def _examples(
        self, reasonings: Mapping[str, list[list[int]]], ndcg: Mapping[str, PerQuery]
    ) -> list[DiagnosisRecord]:
        """The queries that another query's reasoning changed most, in words."""
        change = np.abs(ndcg[OWN] - ndcg[OTHER])
        found = []
        for row in np.argsort(-change, kind="stable")[:_EXAMPLES].tolist():
            said = {
                name: self.encoder.tokenizer.decode(reasonings[name][row], skip_special_tokens=True)
                for name in (OWN, OTHER, SHUFFLED)
            }
            quality = {name: round(float(values[row]), 6) for name, values in ndcg.items()}
            example = {"query_id": self.scorer.ids[row], "query": self.scorer.texts[row]}
            found.append({**example, "reasoning": said, "ndcg_at_10": quality})
        return found


def again(encoder: "SearchR3Encoder", store: Path, **changed: Any) -> "SearchR3Encoder":
    """The same checkpoint and lengths with other settings; weights are not loaded again.

    The prompt's length stays that of `encoder`: otherwise a larger budget would cut the query.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    said = ("dtype", "mode", "engine", "engine_options")  # in other words than they are given in
    kept = {key: value for key, value in encoder.settings.items() if key not in said}
    kept["anchor"] = encoder.anchor  # also where that is none, but its profile recommends one
    mode = changed.get("mode", "reason")
    return SearchR3Encoder(
        encoder.checkpoint,
        **{**kept, **encoder.batches, **encoder.chosen_engine, "cache_folder": store, "mode": mode, **changed},
    )


def _forced(thoughts: Sequence["Thought"]) -> PerQuery:
    return np.array([float(not thought.finished) for thought in thoughts])
