"""Stage 2 on TRL's GRPOTrainer, for its vLLM rollouts and its scale-out. Needs the extra: `pip install -e ".[trl]"`.

The loop, the policy loss, checkpoints, vLLM with its weight synchronisation, DeepSpeed and FSDP are TRL's. The prompts,
the rollout that ends in the embed token, the reward and the contrastive term are ours, from the same functions as
`train/rl.py`. Three private methods of TRL 1.16 are overridden or called, hence the pin: `_generate_single_turn`,
`_generate_and_score_completions`, `_compute_loss`.

Departures from `train/rl.py`: the corpus is as fresh as the given environment; settings that `GRPOConfig` does not get
are TRL's defaults (ours are `scale_rewards="none"`, `epsilon_high=0.28` and `temperature`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from search_r3_mteb.encoder.architecture import backbone_of
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.sampling import Sampling
from train.config.grpo import RewardSettings
from train.config.loss import ContrastiveSettings
from train.losses.checks import unit
from train.losses.gathered import gathered_info_nce
from train.losses.rewards import Judgements, Rankings, reward
from train.model.batches import collate
from train.model.model import evaluating, forward


@dataclass(frozen=True)
class SearchEnvironment:
    """The corpus that rollouts search: `documents` maps ids to texts (title and body), `judgements` name the same ids.

    `search(vectors, k)` gives ids and cosines (n, k) of the nearest documents, best first; `vectors(ids)` the searched
    vectors (n, dim), which are constants here.
    """

    documents: Mapping[str, str]
    judgements: Judgements
    search: Callable[[Tensor, int], tuple[Sequence[Sequence[str]], Tensor]]
    vectors: Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class AdapterSettings:
    """Settings that GRPOConfig does not have; `max_length` in tokens."""

    reward: RewardSettings = field(default_factory=RewardSettings)
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    max_length: int = 512


class SearchR3GRPOTrainer(GRPOTrainer):
    """GRPO over reasoning that is rewarded for what its vector retrieves.

    `train_dataset` has the columns "prompt" (the query's text) and "query_id" (a key of the environment's judgements).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        environment: SearchEnvironment,
        args: GRPOConfig,
        train_dataset: Any,
        settings: AdapterSettings | None = None,
        **trainer: Any,
    ) -> None:
        self.environment, self.search_settings = environment, settings or AdapterSettings()
        if self.search_settings.reward.anchor:
            raise ValueError(
                f"reward.anchor = {self.search_settings.reward.anchor}: on TRL's trainer the reasoned vector alone is "
                "rewarded, and the anchor would do nothing. Use train/rl.py, or set anchor = 0."
            )
        self.embed_token_id: int = checkpoint.embed_token_id
        self.renderer = Renderer(checkpoint.tokenizer, checkpoint.profile, self.search_settings.max_length)
        # Numbers instead of ids, since TRL carries tensors; the same on every process.
        self.query_ids, self.document_ids = list(environment.judgements), list(environment.documents)
        self.query_numbers = {query: number for number, query in enumerate(self.query_ids)}
        self.document_numbers = {document: number for number, document in enumerate(self.document_ids)}
        args = copy(args)
        if args.use_vllm:  # else vLLM would generate past the token
            args.generation_kwargs = (args.generation_kwargs or {}) | {"stop_token_ids": [self.embed_token_id]}
        super().__init__(
            model=checkpoint.model,
            reward_funcs=[self.retrieval_reward],
            args=args,
            train_dataset=train_dataset,
            processing_class=checkpoint.tokenizer,
            rollout_func=self.roll_out,
            **trainer,
        )

    def roll_out(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's `rollout_func`: every row ends in the embed token, with `env_mask` 0 where it was forced."""
        rendered = [row.token_ids for row in self.renderer.render_batch(prompts, "reason")]
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model, evaluating(model):
            engine = Engine(model, self.embed_token_id, stop_token_ids=(self.processing_class.eos_token_id,))
            if self.use_vllm:
                sampled, log_probs = self._generate_single_turn(rendered, None, {}, self.num_generations)
                token_ids, finished = zip(*(close_turn(ids, self.embed_token_id) for ids in sampled), strict=True)
                # A forced token was not sampled: it is masked, and this 0 is never read.
                log_probs = [[*values, 0.0][: len(ids)] for values, ids in zip(log_probs, token_ids, strict=True)]
                vectors = engine.embed([[*prompt, *ids] for prompt, ids in zip(rendered, token_ids, strict=True)])
            else:
                token_ids, log_probs, finished, vectors = self._sample(engine, rendered)
        return {
            "prompt_ids": rendered,
            "completion_ids": list(token_ids),
            "logprobs": log_probs,
            "env_mask": [[1] * (len(ids) - 1) + [int(own)] for ids, own in zip(token_ids, finished, strict=True)],
            "finished": list(finished),
            "vector": list(vectors),
            "reasoning_tokens": [len(ids) - 1 for ids in token_ids],
        }

    def _sample(self, engine: Engine, prompts: list[list[int]]) -> tuple[Any, ...]:
        """Ids, log-probabilities, finished and vectors of rows in which each prompt stands once per rollout."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(tuple(prompt), []).append(row)
        group = max(map(len, rows.values()))
        # TRL spreads a group over processes: with one seed for all, its parts would be the same rollouts.
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        seed = (self.args.seed * 1_000_003 + self._step) * processes + process
        sampling = Sampling(self.args.max_completion_length - 1, self.args.temperature, seed)
        drawn = engine.reason(list(rows), sampling, group_size=group)
        place = {row: n * group + nth for n, same in enumerate(rows.values()) for nth, row in enumerate(same)}
        order = [place[row] for row in range(len(prompts))]
        lists = [[values[row] for row in order] for values in (drawn.token_ids, drawn.log_probs, drawn.finished)]
        return (*lists, drawn.vectors[order])

    def retrieval_reward(
        self,
        query_id: Sequence[str],
        vector: Sequence[Tensor],
        finished: Sequence[bool],
        reasoning_tokens: Sequence[int],
        **columns: Any,
    ) -> list[float]:
        """TRL's reward function; `columns` are the other columns that TRL gives to every reward."""
        environment, settings = self.environment, self.search_settings.reward
        vectors = torch.stack(list(vector))
        self._retrieved, similarities = environment.search(vectors, settings.k)
        positive = None
        if settings.margin:
            relevant = [[d for d, gain in environment.judgements[query].items() if gain > 0] for query in query_id]
            pairs = zip(relevant, vectors, strict=True)
            positive = [float((unit(environment.vectors(ids)) @ unit(own)).max()) for ids, own in pairs]
        rankings = Rankings(query_id, self._retrieved, similarities, positive, finished, reasoning_tokens)
        self._log("forced_share", 1 - sum(finished) / len(finished))
        total = reward(rankings, environment.judgements, settings, corpus=environment.documents).total
        self._rewards = [float(value) for value in total]
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with each rollout's query, hard negatives, and whether it is taught: TRL shuffles them along."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        queries, wanted = [row["query_id"] for row in inputs], self.search_settings.contrastive.hard_negatives
        device = self.accelerator.device
        output["query_numbers"] = torch.tensor([self.query_numbers[query] for query in queries], device=device)
        negatives = []
        for query, retrieved in zip(queries, self._retrieved, strict=True):
            gains = self.environment.judgements[query]
            negatives.append([self.document_numbers[d] for d in retrieved if gains.get(d, 0) <= 0][:wanted])
            if len(negatives[-1]) < wanted:
                raise ValueError(
                    f"The search for query {query!r} gave {len(negatives[-1])} documents that are not relevant, but "
                    f"hard_negatives={wanted}. Raise the reward's k, or lower hard_negatives."
                )
        output["negative_numbers"] = torch.tensor(negatives, dtype=torch.long, device=device)
        bound = self.search_settings.contrastive.min_reward
        output["taught"] = torch.tensor([value >= bound for value in self._rewards], device=device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's policy loss, and InfoNCE on the vectors of its own forward."""
        caught: list[Tensor] = []
        backbone = backbone_of(unwrap(self.accelerator.unwrap_model(model)))
        handle = backbone.register_forward_hook(lambda module, args, output: caught.append(output.last_hidden_state))
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            handle.remove()
        settings, device = self.search_settings, loss.device
        if not settings.contrastive.weight:
            return loss
        ends = inputs["prompt_ids"].shape[1] + inputs["completion_mask"].sum(dim=1) - 1
        vectors = caught[0][torch.arange(len(ends), device=device), ends]
        judged = [self.environment.judgements[self.query_ids[n]] for n in inputs["query_numbers"].tolist()]
        best = [self.document_numbers[max(gains, key=gains.__getitem__)] for gains in judged]
        # The rollouts of a group share their document: it is encoded once.
        numbers, positives = torch.unique(torch.tensor(best, device=device), return_inverse=True)
        texts = [self.environment.documents[self.document_ids[number]] for number in numbers.tolist()]
        batch = collate(self.renderer.render_batch(texts, "direct"), self.embed_token_id, device)
        stale = inputs["negative_numbers"].flatten()
        documents = forward(model, batch.token_ids, batch.lengths).vectors
        if len(stale):
            cached = self.environment.vectors([self.document_ids[number] for number in stale.tolist()])
            documents = torch.cat([documents, cached.detach().to(documents)])
        term = gathered_info_nce(
            vectors,
            documents,
            positives,
            torch.cat([numbers, stale]),
            inputs["query_numbers"],
            relevant=self._relevant(inputs["query_numbers"]),
            temperature=settings.contrastive.temperature,
            taught=inputs["taught"],
        )
        self._log("contrastive", float(term.detach()))
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        return loss + settings.contrastive.weight * term / accumulated

    def _relevant(self, queries: Tensor) -> Tensor:
        """The (query, document) numbers of all judgements above 0 of these queries."""
        pairs = [
            (number, self.document_numbers[document])
            for number in dict.fromkeys(queries.tolist())
            for document, gain in self.environment.judgements[self.query_ids[number]].items()
            if gain > 0
        ]
        return torch.tensor(pairs, dtype=torch.long, device=queries.device)

    def _log(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)


def close_turn(token_ids: Sequence[int], embed_token_id: int) -> tuple[list[int], bool]:
    """Generated ids up to the embed token, and whether the model emitted it; otherwise it is appended."""
    ids = list(token_ids)
    if embed_token_id in ids:
        return ids[: ids.index(embed_token_id) + 1], True
    return [*ids, embed_token_id], False
