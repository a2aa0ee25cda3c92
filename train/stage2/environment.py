"""Stage 2's environment: a corpus whose vectors stay fresh, and the reward of what rollouts retrieve from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.extensions import REFRESH_POLICIES, REWARDS
from search_r3_mteb.search.arrays import RowNumbers, Vectors
from train.config.corpus_cache import CorpusCacheSettings
from train.config.grpo import RewardSettings
from train.config.stages import RlConfig
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits, RefreshReport
from train.data.rows import TrainingRow
from train.losses.rewards import Rankings, Rewards, reward
from train.run.log import due
from train.stage2.corpus import SearchedCorpus
from train.stage2.documents import DocumentEncoder
from train.stage2.rollouts import Groups


@dataclass(frozen=True)
class Judged:
    """The documents that rollouts retrieved, and their rewards.

    `relevance[p]` maps prompt p's relevant document ids to their grades. `rows` and `similarities` (rollouts, k) are
    the ranking of `corpus` in the refreshed cache, best first. `direct` (prompts,) is what the vector without reasoning
    earns in the same cache, without penalty and cost, since it writes nothing; None where it was not ranked.
    """

    corpus: SearchedCorpus
    relevance: Sequence[Mapping[str, float]]
    rows: Int[np.ndarray, "rollouts k"]
    similarities: Float[np.ndarray, "rollouts k"]
    rewards: Rewards
    refresh: RefreshReport
    direct: Float[np.ndarray, " prompts"] | None = None

    def top(self, rollout: int, count: int) -> list[dict[str, Any]]:
        """The first documents of a rollout's ranking: id, cosine, and the first characters of the text."""
        found = zip(self.rows[rollout, :count], self.similarities[rollout, :count], strict=True)
        texts = self.corpus.texts.texts
        return [{"id": self.corpus.id_of(r), "cosine": float(s), "text": texts[int(r)][:300]} for r, s in found]


@dataclass
class OwnEffects:
    """Whether what other packages bring to a run does anything: a reward that is always the same teaches nothing."""

    rewards: tuple[str, ...]
    policy: str | None
    steps: int
    _largest: dict[str, float] = field(default_factory=dict)
    _seen: int = 0

    @classmethod
    def of(cls, config: RlConfig) -> "OwnEffects":
        """Of a run's own rewards and policy. They are looked at for 10 steps (our choice), or all that there are."""
        policy = config.corpus_cache.policy
        own = None if policy in REFRESH_POLICIES.reserved else policy
        last = config.checkpoint.last_step(config.optimization.steps)
        return cls(tuple(config.reward.own.tables), own, min(10, last))

    def used(self) -> list[dict[str, str]]:
        """What it is, name and origin of each, for the log."""
        found = [REWARDS.find(name) for name in self.rewards]
        found += [REFRESH_POLICIES.find(self.policy)] if self.policy is not None else []
        return [each.to_dict() for each in found]

    def warnings(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """After the numbers of a step: what has had no effect in any of the first steps. A resumed run says nothing."""
        self._seen += 1
        spreads = {name: f"reward_{name}_spread" for name in self.rewards}
        for number in (*spreads.values(), "documents_encoded"):
            self._largest[number] = max(self._largest.get(number, 0.0), numbers[number])
        if not self._seen == step == self.steps:
            return []
        found = [
            f"the {REWARDS.find(name)} has given every rollout of a query the same value in all of {step} steps: it "
            "changed no advantage, and the policy learns as it would without it"
            for name, number in spreads.items()
            if self._largest[number] <= 1e-9
        ]
        if self.policy is not None and not self._largest["documents_encoded"]:
            found.append(
                f"the {REFRESH_POLICIES.find(self.policy)} has chosen no document in all of {step} steps: the run is "
                'as it would be with policy = "none"'
            )
        return found


@dataclass
class Environment:
    """The corpus, its vectors and their encoder, and the rewards that come from them."""

    corpus: SearchedCorpus
    cache: CorpusCache
    encoder: DocumentEncoder
    settings: CorpusCacheSettings
    reward: RewardSettings

    def judge(self, groups: Groups, step: int) -> Judged:
        """Refresh the rows near the rollouts, rank the corpus for each, and reward it; `step` is the coming update."""
        cache, settings, exact = self.cache, self.settings, self.settings.index == "exact"
        rewarded = self.reward.replaced(k=min(self.reward.k, len(cache)))  # a corpus smaller than k has no rank k
        relevance = [self.corpus.relevance(row) for row in groups.rows]
        positives = [cache.rows_of(list(relevance[prompt])) for prompt in groups.prompt]
        touched = cache.search(groups.vectors, min(settings.top_k, len(cache)), exact=exact)
        known = [self.corpus.positive_id(row) for row in groups.rows if row.positive in self.encoder.known]
        report = cache.refresh(
            Hits(groups.vectors, touched.rows, positives),
            self.encoder,
            settings.budget_tokens,
            step=step - 1,  # the number of updates so far
            given=cache.rows_of(known),
        )
        self.encoder.forget()
        found = cache.search(groups.vectors, rewarded.k, exact=exact)
        rankings = Rankings(
            query_ids=groups.prompt,
            document_ids=[[self.corpus.id_of(row) for row in rows] for rows in found.rows],
            similarities=found.scores.clip(-1, 1),
            positive_similarities=self._best_positive(groups.vectors, positives),
            finished=np.array(groups.rollouts.finished),
            reasoning_tokens=np.array(groups.reasoning_tokens),
        )
        rewards = reward(rankings, dict(enumerate(relevance)), rewarded)
        direct = None if groups.direct is None else self._of_direct(groups.direct, relevance, rewarded)
        return Judged(self.corpus, relevance, found.rows, found.scores, rewards, report, direct)

    def negatives(self, groups: Groups, judged: Judged, count: int) -> Int[np.ndarray, " rows"]:
        """The `count` irrelevant documents per prompt that its rollouts ranked highest, of all prompts together."""
        chosen: list[int] = []
        for prompt, relevant in enumerate(judged.relevance):
            own = set(self.cache.rows_of(list(relevant)).tolist())
            mine = [r for r, p in enumerate(groups.prompt) if p == prompt]
            # By rank first: every rollout's first document before any rollout's second.
            ordered = dict.fromkeys(judged.rows[mine].T.ravel().tolist())
            chosen += [row for row in ordered if row not in own and row >= 0][:count]
        return np.array(list(dict.fromkeys(chosen)), dtype=np.int64)

    def positive_vectors(self, groups: Groups, texts: Sequence[str]) -> Vectors:
        """The cache's vectors (texts, dim) of the prompts' own positives."""
        ids = {row.positive: self.corpus.positive_id(row) for row in reversed(groups.rows)}
        return self.cache.values(self.cache.rows_of([ids[text] for text in texts]))

    def audit(self, step: int) -> dict[str, Any] | None:
        """The cache's error after the update of `step`, for the log; None where no audit is due."""
        if not due(step, self.settings.audit_every) or self.cache.policy.is_exact:
            return None
        found = asdict(self.cache.audit(self.settings.audit_rows, self.encoder, step=step))
        del found["step"]
        return {"age_mean": self.age(step)} | found

    def age(self, step: int) -> float:
        """Mean number of steps since the documents were encoded."""
        return float(self.cache.age(step).mean)

    def ranks(self, rows: Sequence[TrainingRow], vectors: Vectors, limit: int) -> list[int | None]:
        """For each query's vector the rank, from 1, of its best relevant document; None where it is below `limit`."""
        found = self.cache.search(vectors, min(limit, len(self.cache))).rows
        ranks: list[int | None] = []
        for row, ranked in zip(rows, found, strict=True):
            places = np.flatnonzero(np.isin(ranked, self.cache.rows_of(list(self.corpus.relevance(row)))))
            ranks.append(int(places[0]) + 1 if len(places) else None)
        return ranks

    def _of_direct(
        self, vectors: Vectors, relevance: Sequence[Mapping[str, float]], rewarded: RewardSettings
    ) -> Float[np.ndarray, " prompts"]:
        """What each prompt's vector without reasoning earns: it ends by itself and says nothing."""
        found = self.cache.search(vectors, rewarded.k, exact=self.settings.index == "exact")
        positives = [self.cache.rows_of(list(one)) for one in relevance]
        rankings = Rankings(
            query_ids=list(range(len(relevance))),
            document_ids=[[self.corpus.id_of(row) for row in rows] for rows in found.rows],
            similarities=found.scores.clip(-1, 1),
            positive_similarities=self._best_positive(vectors, positives),
            finished=np.ones(len(relevance), dtype=bool),
            reasoning_tokens=np.zeros(len(relevance), dtype=np.int64),
        )
        return reward(rankings, dict(enumerate(relevance)), rewarded).total

    def _best_positive(self, vectors: Vectors, positives: Sequence[RowNumbers]) -> Float[np.ndarray, " rollouts"]:
        best = [
            float((self.cache.values(rows) @ vector).max()) for vector, rows in zip(vectors, positives, strict=True)
        ]
        return np.clip(np.array(best), -1, 1)
