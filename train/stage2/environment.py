"""Stage 2's environment: a corpus whose vectors stay fresh, and the reward of what rollouts retrieve from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.search.arrays import Vectors
from train.config.grpo import RewardSettings
from train.config.stages import RlConfig
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits, RefreshReport
from train.losses.grpo import Advantages
from train.losses.rewards import Rankings, Rewards, reward
from train.model.model import embed, unwrapped_peft
from train.processes import collectives
from train.processes.replicas import OneProcess, ProcessGroup, Replicas
from train.run.log import cut
from train.run.run import Run
from train.stage2.corpus import SearchedCorpus
from train.stage2.rollouts import Groups

ROLLOUTS = "rollouts.jsonl"


@dataclass(frozen=True)
class Judged:
    """What rollouts retrieved and earned. `relevance[p]` maps prompt p's relevant document ids to their grades;

    `rows` (rollouts, k) and `similarities` (rollouts, k) are the ranking in the refreshed cache, best first.
    """

    relevance: Sequence[Mapping[str, float]]
    rows: Int[np.ndarray, "rollouts k"]
    similarities: Float[np.ndarray, "rollouts k"]
    rewards: Rewards
    refresh: RefreshReport


class Environment:
    """The corpus cache of one run, and the rewards that come from it."""

    def __init__(self, run: Run, config: RlConfig, corpus: SearchedCorpus, engine: Engine, renderer: Renderer) -> None:
        self.run, self.config, self.corpus, self.engine = run, config, corpus, engine
        self._renderer = renderer
        self._known: dict[str, Vectors] = {}
        self._cache: CorpusCache | None = None

    @classmethod
    def begin(cls, run: Run) -> "Environment":
        """Encode the corpus with the present weights, or take up the cache of the checkpoint that the run resumed from."""
        config: RlConfig = run.config
        renderer = run.renderer
        engine = Engine(
            run.checkpoint.model,
            run.checkpoint.embed_token_id,
            stop_token_ids=run.checkpoint.stop_token_ids,
            token_budget=config.rollout.batch_tokens,
        )

        def count_tokens(texts: list[str]) -> list[int]:
            return [len(prompt.token_ids) for prompt in renderer.render_batch(texts, "direct")]

        environment = cls(run, config, SearchedCorpus(config.data, count_tokens), engine, renderer)
        environment._open()
        run.extra = environment.save
        if run.accelerator.is_main_process:
            cut(run.folder / ROLLOUTS, run.step)
        return environment

    @property
    def cache(self) -> CorpusCache:
        """The vectors of the corpus."""
        if self._cache is None:
            raise RuntimeError("The environment has not been opened; make it with Environment.begin.")
        return self._cache

    def encode(self, texts: list[str]) -> Vectors:
        """Unit vectors (n, dim) of documents under the present weights; those that `know` was told are not computed again."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(self._known)
        if missing:
            with self._adapter(), self.run.accelerator.autocast():
                found |= dict(zip(missing, embed(self.engine, self._renderer, missing), strict=True))
        return np.stack([found[text] for text in texts])

    def know(self, texts: Sequence[str], vectors: torch.Tensor | None) -> None:
        """Vectors (n, dim) that the loss has just computed for these texts with the present weights: `judge` takes them as they are."""
        if vectors is None:
            return
        unit = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=-1).numpy()
        self._known = dict(zip(texts, unit, strict=True))

    def judge(self, groups: Groups, step: int) -> Judged:
        """Refresh what the rollouts touch, rank the corpus for each of them, and reward it. `step`: the update to come."""
        config, cache = self.config, self.cache
        relevance = [self.corpus.relevance(row) for row in groups.rows]
        positives = [cache.rows_of(list(relevance[prompt])) for prompt in groups.prompt]
        touched = cache.search(groups.vectors, min(config.corpus_cache.top_k, len(cache)), exact=self._exact)
        hits = Hits(groups.vectors, touched.rows, positives)
        # The weights are those after `step` - 1 updates.
        given = cache.rows_of([self.corpus.positive_id(row) for row in groups.rows if row.positive in self._known])
        report = cache.refresh(hits, self.encode, config.corpus_cache.budget_tokens, step=step - 1, given=given)
        found = cache.search(groups.vectors, min(config.reward.k, len(cache)), exact=self._exact)
        rankings = Rankings(
            query_ids=groups.prompt,
            document_ids=[[self._id(row) for row in rows] for rows in found.rows],
            similarities=found.scores.clip(-1, 1),
            positive_similarities=self._best_positive(groups.vectors, positives),
            finished=np.array(groups.rollouts.finished),
            reasoning_tokens=np.array(groups.reasoning_tokens),
        )
        rewards = reward(rankings, dict(enumerate(relevance)), self._reward(len(cache)))
        self._known = {}
        return Judged(relevance, found.rows, found.scores, rewards, report)

    def negatives(self, groups: Groups, judged: Judged, count: int) -> Int[np.ndarray, " rows"]:
        """For each prompt the `count` documents that its rollouts ranked highest and that are not relevant; all of them together."""
        chosen: list[int] = []
        for prompt, relevant in enumerate(judged.relevance):
            own = set(self.cache.rows_of(list(relevant)).tolist())
            mine = [r for r, p in enumerate(groups.prompt) if p == prompt]
            # By rank first: every rollout's first document before any rollout's second.
            ordered = dict.fromkeys(judged.rows[mine].T.ravel().tolist())
            chosen += [row for row in ordered if row not in own and row >= 0][:count]
        return np.array(list(dict.fromkeys(chosen)), dtype=np.int64)

    def moved(self, step: int) -> dict[str, float]:
        """After the update of `step`: audit the cache when it is due, and log what it says. Returns what every step logs."""
        every = self.config.corpus_cache.audit_every
        if every and step % every == 0 and not self.cache.policy.is_exact:
            found = self.cache.audit(self.config.corpus_cache.audit_rows, self.encode, step=step)
            if self.run.log is not None:
                values = {name: value for name, value in asdict(found).items() if name != "step"}
                self.run.log.event("audit", step, age_mean=self.cache.age(step).mean, **_plain(values))
        return {"cache_age": float(self.cache.age(step).mean)}

    def save(self, folder: Path) -> None:
        """A snapshot of the cache beside the weights; on the main process, while the others wait for the whole checkpoint."""
        self.cache.snapshot(folder / "cache", fingerprint=self._fingerprint())

    def write_rollouts(self, groups: Groups, judged: Judged, advantages: Advantages, step: int) -> None:
        """Every so many steps a few rollouts, to be read: query, reasoning, reward, top documents."""
        output = self.config.output
        if not output.rollouts_every or step % output.rollouts_every or not self.run.accelerator.is_main_process:
            return
        tokenizer = self.run.checkpoint.tokenizer
        records = []
        for rollout in range(min(output.rollouts, len(groups.prompt))):
            row = groups.query(rollout)
            top = [
                (self._id(r), float(s)) for r, s in zip(judged.rows[rollout], judged.similarities[rollout], strict=True)
            ]
            records.append(
                {
                    "step": step,
                    "query": row.query,
                    "hops": row.hops,
                    "reasoning": tokenizer.decode(groups.rollouts.token_ids[rollout][:-1]),
                    "finished": groups.rollouts.finished[rollout],
                    "reward": float(judged.rewards.total[rollout]),
                    "advantage": float(advantages.values[rollout]),
                    "relevant": sorted(judged.relevance[groups.prompt[rollout]]),
                    "top": [{"id": id_, "cosine": score, "text": self._text(id_)} for id_, score in top[:5]],
                }
            )
        with (self.run.folder / ROLLOUTS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    # ---- details ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        run, settings = self.run, self.config.corpus_cache
        folder = run.folder / "cache"
        replicas: Replicas = ProcessGroup() if collectives.world_size() > 1 else OneProcess()
        if run.resumed_from is not None:
            self._cache = CorpusCache.load(
                run.resumed_from.extra / "cache",
                self.corpus.texts,
                fingerprint=self._fingerprint(),
                dim=self.engine.dim,
                settings=settings,
                working=folder,
                replicas=replicas,
            )
            return
        self._cache = CorpusCache.build(
            self.corpus.texts,
            self.encode,
            folder=folder,
            settings=settings,
            fingerprint=self._fingerprint(),
            seed=self.config.optimization.seed,
            replicas=replicas,
        )

    def _fingerprint(self) -> str:
        checkpoint = self.run.checkpoint
        return Checkpoint(checkpoint.model, checkpoint.tokenizer, checkpoint.profile, checkpoint.name).fingerprint()

    def _adapter(self) -> Any:
        """The frozen policy embeds documents with the adapter switched off."""
        from contextlib import nullcontext

        frozen = self.config.corpus_cache.policy == "frozen"
        return unwrapped_peft(self.run.checkpoint.model).disable_adapter() if frozen else nullcontext()

    @property
    def _exact(self) -> bool:
        return self.config.corpus_cache.index == "exact"

    def _best_positive(self, vectors: Vectors, positives: Sequence[Any]) -> Float[np.ndarray, " rollouts"]:
        best = [
            float((self.cache.values(rows) @ vector).max()) for vector, rows in zip(vectors, positives, strict=True)
        ]
        return np.clip(np.array(best), -1, 1)

    def _reward(self, documents: int) -> RewardSettings:
        """A corpus smaller than k has no rank k."""
        settings = self.config.reward
        return settings.replaced(k=min(settings.k, documents))

    def _id(self, row: int) -> str:
        """The id of a row; empty for -1, the place of a document that the index did not find, which the reward refuses."""
        ids = self.corpus.texts.ids
        if row < 0:
            return ""
        return str(row) if ids is None else ids[int(row)]

    def _text(self, id_: str) -> str:
        return self.corpus.texts.texts[int(self.corpus.texts.rows_of([id_])[0])][:300]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
