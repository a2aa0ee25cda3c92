"""Stage 2: reasoning that is rewarded for what it retrieves (GRPO, arXiv 2402.03300).

    python train/rl.py --config train/configs/rl_nano.toml [--set optimization.steps=100 ...] [--dry-run]
    accelerate launch train/rl.py --config ...                                           # several GPUs or machines

One step: sample a group of rollouts for each prompt -> refresh the corpus cache around what they retrieve -> reward each rollout
for how its vector ranks the judged documents -> one forward with gradient over what was sampled gives the policy loss and the
contrastive loss of the same vectors.

Departures from the paper, and what it leaves open (each value and its source: train/PAPER.md):
- "Selective local graph refresh" is the cache's `local` policy; by default every row that is not re-encoded also moves by a
  linear map fitted on those that were (`local+map`), which the paper does not have.
- The reward is our reading of "DCG_scaled"; no KL and no division by the group's deviation unless asked for, as in GRACE.
- The vector is trained beside the policy by a contrastive term, in the same forward; whether the paper does so is not known.
- Old log-probabilities are the sampler's own, since sampler and trainer are the same weights; the gap is logged and bounded.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_r3_mteb.encoder.engine import Engine
from train import distributed, rollouts
from train import model as models
from train.batches import Rows, collate, text_ids
from train.command import parse
from train.data import TrainingData, TrainingRow, load_training_data
from train.environment import Environment, Judged
from train.losses import (
    Advantages,
    PolicyBatch,
    PolicyLoss,
    PolicySettings,
    grpo_loss,
    info_nce,
    negative_mask,
    reply_cross_entropy,
    select_reply,
    token_scores,
)
from train.optimizer import learning_rate, set_learning_rate
from train.rollouts import Groups
from train.run import Run
from train.settings_rl import Contrastive, RlConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring."""
    command = parse("rl.py", RlConfig, sys.argv[1:] if arguments is None else arguments)
    train(command.config, dry_run=command.dry_run)


def train(config: RlConfig, *, dry_run: bool = False) -> Path | None:
    """Run the stage; returns the folder of the final checkpoint, None for a dry run."""
    run = Run.begin(config, base_copy=bool(config.policy.kl_weight) and config.model.lora is None, unit="query")
    if dry_run:
        whole = config.rollout.prompts_per_step * config.rollout.group_size
        run.describe(rows=config.optimization.mini_batch_size or whole)
        return None
    base = models.Base.of(run.checkpoint) if config.policy.kl_weight else None
    replay = Replay.begin(run)
    run.resume()
    environment = Environment.begin(run)

    for number in run.steps():
        rows = run.data.next_batch()
        rate = learning_rate(number, config.optimization)
        set_learning_rate(run.optimizer, rate)
        with run.guard(number, rows):  # an error stops the run and leaves the batch behind
            groups = sample(run, environment.engine, rows, number)
            step = Step(run, environment, groups, base)
            documents = step.documents()
            judged = environment.judge(groups, number)
            advantages = step.advantages(judged)
            for update in range(config.policy.updates_per_step):
                losses = step.backward(judged, advantages, documents if update == 0 else step.documents())
                if update == 0:
                    step.check_gap(losses["gap_mean"])
                losses |= replay.backward()
                norm = run.reduce_gradients()
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
        cache = environment.moved(number)
        shown = step.numbers(judged, advantages) | losses
        run.after_step(
            number, distributed.average(shown, run.device) | cache | {"learning_rate": rate, "gradient_norm": norm}
        )
        environment.write_rollouts(groups, judged, advantages, number)
    return run.finish()


def sample(run: Run, engine: Engine, rows: Sequence[TrainingRow], number: int) -> Groups:
    """The step's rollouts on this process."""
    config: RlConfig = run.config
    return rollouts.sample(
        run.checkpoint.model,
        run.renderer,
        engine,
        rows,
        config.rollout,
        step=number,
        seed=config.optimization.seed,
        process=run.accelerator.process_index,
    )


@dataclass
class Documents:
    """The positives of this process's prompts, each once, and their vectors with gradient (None: no contrastive term)."""

    texts: list[str]
    column: dict[int, int]  # prompt -> place among `texts`
    vectors: Tensor | None


@dataclass
class Step:
    """Policy and contrastive loss of one step's rollouts, and their gradient."""

    run: Run
    environment: Environment
    groups: Groups
    base: models.Base | None

    @property
    def config(self) -> RlConfig:
        """The run's settings."""
        config: RlConfig = self.run.config
        return config

    def documents(self) -> Documents:
        """Encode the prompts' positives with gradient, once: the cache takes these vectors as they are."""
        texts = list(dict.fromkeys(row.positive for row in self.groups.rows))
        column = {prompt: texts.index(row.positive) for prompt, row in enumerate(self.groups.rows)}
        if not self.config.contrastive.weight:
            return Documents(texts, column, None)
        with self.run.accelerator.autocast():
            rows = collate(self.run.renderer.render_batch(texts, "direct"), self._pad_id, self.run.device)
            vectors = models.forward(self.run.model, rows.token_ids, rows.lengths).vectors
        if self.config.corpus_cache.policy != "frozen":
            self.environment.know(texts, vectors)
        return Documents(texts, column, vectors)

    def advantages(self, judged: Judged) -> Advantages:
        """Each rollout's reward against its group's."""
        rewards = torch.from_numpy(judged.rewards.total).float()
        return distributed.gathered_advantages(rewards, self.groups.group, standardise=self.config.policy.standardise)

    def backward(self, judged: Judged, advantages: Advantages, documents: Documents) -> dict[str, float]:
        """Add the gradient to the parameters, `mini_batch_size` rollouts at a time; returns the parts of the loss.

        A rollout's loss needs the others only through numbers that are already known (advantages) and through the documents,
        so adding up the parts is exact. The documents' gradient is collected and goes through their own forward once.
        """
        chosen = self.chosen(advantages)
        size = self.config.optimization.mini_batch_size or max(len(chosen), 1)
        counts = (self._token_count(chosen), distributed.shared_count(len(chosen), self.run.device))
        totals = dict.fromkeys(
            ("loss", "policy", "contrastive", "kl", "clipped", "gap_mean", "gap_max", "entropy"), 0.0
        )
        with self.run.accelerator.autocast():
            contrast = Contrast.of(self, judged, documents)
            for start in range(0, len(chosen), size):
                loss = self._part(chosen[start : start + size], advantages, contrast, counts, totals)
                self.run.accelerator.backward(loss)
            if contrast is not None:
                contrast.finish(self.run.accelerator)
        return totals

    def chosen(self, advantages: Advantages) -> list[int]:
        """The rollouts that have something to teach: without the contrastive term, not those of groups with equal rewards.

        Where no group has anything to teach the first one stays, so that every process has a backward pass.
        """
        everything = list(range(len(self.groups.prompt)))
        if self.config.contrastive.weight or not self.config.policy.skip_zero_variance:
            return everything
        alive = {self.groups.prompt[r] for r in everything if float(advantages.values[r]) != 0.0} or {0}
        return [r for r in everything if self.groups.prompt[r] in alive]

    def check_gap(self, gap: float) -> None:
        """The sampler and the trainer are the same weights: their log-probabilities may differ by rounding only."""
        limit = self.config.policy.max_gap
        if gap > limit:
            raise FloatingPointError(
                f"sampler and trainer differ by {gap:.4f} nats per token on average, above policy.max_gap = {limit}: the ratios, and "
                "so the gradient, would be wrong. Train in float32, or raise the bound if the dtype explains it."
            )

    def numbers(self, judged: Judged, advantages: Advantages) -> dict[str, float]:
        """What the log and the bar show of this process's rollouts."""
        rollouts = self.groups.rollouts
        parts = {f"reward_{name}": float(values.mean()) for name, values in judged.rewards.parts.items()}
        return parts | {
            "reward": float(judged.rewards.total.mean()),
            "finished_share": sum(rollouts.finished) / len(rollouts.finished),
            "length": sum(self.groups.reasoning_tokens) / len(rollouts.finished),
            "zero_variance_share": advantages.zero_variance_groups / advantages.groups,
            "documents_encoded": float(len(judged.refresh.rows)),
            "refresh_seconds": judged.refresh.seconds,
        }

    def _part(
        self,
        part: Sequence[int],
        advantages: Advantages,
        contrast: "Contrast | None",
        counts: tuple[float, float],
        totals: dict[str, float],
    ) -> Tensor:
        """The loss of some rollouts, as their share of the step's; adds its parts to `totals`."""
        config, tokens, queries = self.config, *counts
        rows = collate([self.groups.rendered[r] for r in part], self._pad_id, self.run.device)
        hidden = models.forward(self.run.model, rows.token_ids, rows.lengths)
        policy, entropy = self._policy(part, rows, hidden.states, advantages, tokens)
        loss = config.policy.weight * policy.loss
        share = policy.tokens / tokens
        totals["policy"] += float(policy.loss.detach())
        for name, value in (
            ("kl", policy.kl),
            ("clipped", policy.clipped_low + policy.clipped_high),
            ("entropy", entropy),
        ):
            totals[name] += share * value
        totals["gap_mean"] += share * policy.ratio_gap_mean
        totals["gap_max"] = max(totals["gap_max"], policy.ratio_gap_max)
        if contrast is not None:
            term = contrast.loss([self.groups.prompt[r] for r in part], hidden.vectors, queries)
            totals["contrastive"] += float(term.detach())
            loss = loss + config.contrastive.weight * term
        totals["loss"] += float(loss.detach())
        return loss

    def _policy(
        self, part: Sequence[int], rows: Rows, states: Tensor, advantages: Advantages, tokens: float
    ) -> tuple[PolicyLoss, float]:
        """GRPO on the tokens that the model chose, and their mean entropy in nats."""
        policy, temperature = self.config.policy, self.config.rollout.temperature
        reply = select_reply(states, rows.token_ids, rows.reply)
        scores = token_scores(reply.hidden, models.head_of(self.run.model), reply.targets, temperature=temperature)
        lengths = rows.reply.sum(dim=1).tolist()
        old, mask = (tensor.to(self.run.device) for tensor in rollouts.sampled_log_probs(self.groups.rollouts, part))
        reference = None
        if self.base is not None:
            before = select_reply(self.base.states(rows.token_ids, rows.lengths), rows.token_ids, rows.reply)
            with torch.no_grad():
                flat = token_scores(before.hidden, self.base.head, reply.targets, temperature=temperature).log_probs
            reference = rollouts.padded(flat, lengths)
        index = torch.tensor(part)
        batch = PolicyBatch(
            log_probs=rollouts.padded(scores.log_probs, lengths),
            old_log_probs=old,
            mask=mask,
            groups=self.groups.group[index].to(self.run.device),
            rewards=advantages.values[index].to(self.run.device),
            reference_log_probs=reference,
        )
        mine = Advantages(advantages.values[index], advantages.groups, advantages.zero_variance_groups)
        # "sequence" normalisation counts rollouts, "token" the tokens that the model chose.
        count = tokens if policy.normalisation == "token" else distributed.shared_count(len(self.groups.prompt))
        settings = PolicySettings(
            policy.clip_low, policy.clip_high, policy.normalisation, policy.standardise, policy.kl_weight
        )
        loss = grpo_loss(batch, settings, advantages=mine, count=count)
        entropy = rollouts.padded(scores.entropies, lengths)[mask]
        return loss, float(entropy.mean()) if len(entropy) else 0.0

    def _token_count(self, chosen: Sequence[int]) -> float:
        finished, ids = self.groups.rollouts.finished, self.groups.rollouts.token_ids
        return distributed.shared_count(sum(len(ids[r]) - (not finished[r]) for r in chosen), self.run.device)

    @property
    def _pad_id(self) -> int:
        return int(self.run.renderer.tokenizer.pad_token_id)


@dataclass
class Contrast:
    """InfoNCE of the rollouts' vectors: positives of all processes with gradient, hard negatives from the cache as constants."""

    settings: Contrastive
    documents: Tensor
    leaf: Tensor
    constants: Tensor
    ids: Tensor
    relevant: Tensor
    query_ids: Tensor
    columns: Tensor

    @classmethod
    def of(cls, step: Step, judged: Judged, documents: Documents) -> "Contrast | None":
        """None where the contrastive term is switched off."""
        settings = step.config.contrastive
        if documents.vectors is None:
            return None
        device, environment = step.run.device, step.environment
        before = sum(distributed.row_counts(len(documents.texts), device)[: distributed.rank()])
        hard = environment.negatives(step.groups, judged, settings.hard_negatives)
        constants = torch.from_numpy(environment.cache.values(hard)).to(device)
        gathered = distributed.gather_rows(documents.vectors)
        names = environment.corpus.texts
        own = text_ids(documents.texts).to(device)
        queries = text_ids([row.query for row in step.groups.rows]).to(device)
        judged_texts = [
            (prompt, names.texts[int(row)])
            for prompt, relevant in enumerate(judged.relevance)
            for row in names.rows_of(list(relevant))
        ]
        pairs = torch.stack(
            [queries[[prompt for prompt, _ in judged_texts]], text_ids([text for _, text in judged_texts]).to(device)],
            dim=1,
        )
        return cls(
            settings=settings,
            documents=gathered,
            leaf=gathered.detach().requires_grad_(),
            constants=constants,
            ids=torch.cat([distributed.gather_rows(own), text_ids([names.texts[int(r)] for r in hard]).to(device)]),
            relevant=distributed.gather_rows(pairs),
            query_ids=queries,
            columns=torch.tensor([documents.column[p] + before for p in range(len(step.groups.rows))], device=device),
        )

    def loss(self, prompts: Sequence[int], vectors: Tensor, count: float) -> Tensor:
        """The share of these rollouts, whose prompts are given."""
        index = torch.tensor(list(prompts), device=vectors.device)
        positives = self.columns[index]
        negatives = negative_mask(positives, self.ids, query_ids=self.query_ids[index], relevant=self.relevant)
        return info_nce(
            vectors,
            torch.cat([self.leaf, self.constants.to(self.leaf.dtype)]),
            positives=positives,
            negatives=negatives,
            temperature=self.settings.temperature,
            count=count,
        )

    def finish(self, accelerator: Any) -> None:
        """Send the documents' collected gradient through their forward."""
        if self.leaf.grad is not None:
            accelerator.backward((self.documents * self.leaf.grad).sum())


@dataclass
class Replay:
    """Stage-1 rows mixed in, so that what was learned is not forgotten; nothing where the weight is 0."""

    run: Run
    data: TrainingData | None

    @classmethod
    def begin(cls, run: Run) -> "Replay":
        """The replayed rows; the run saves and restores their position with its own."""
        settings = run.config.replay
        if not settings.weight:
            return cls(run, None)
        data = load_training_data(
            replace(run.config.data, sources=settings.sources),
            batch_size=settings.rows_per_step,
            seed=run.config.optimization.seed,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
        )
        run.streams["replay"] = data
        return cls(run, data)

    def backward(self) -> dict[str, float]:
        """Add the gradient of the reply cross-entropy on the next replayed rows."""
        if self.data is None:
            return {}
        run = self.run
        rendered = [
            run.renderer.render_reply(row.query, "direct" if row.reasoning is None else "reason", row.reasoning)
            for row in self.data.next_batch()
        ]
        rows = collate(rendered, run.renderer.tokenizer.pad_token_id, run.device)
        with run.accelerator.autocast():
            hidden = models.forward(run.model, rows.token_ids, rows.lengths)
            reply = select_reply(hidden.states, rows.token_ids, rows.reply)
            count = distributed.shared_count(rows.reply_tokens, run.device)
            loss = reply_cross_entropy(reply.hidden, models.head_of(run.model), reply.targets, count=count)
            run.accelerator.backward(run.config.replay.weight * loss)
        return {"replay": float(loss.detach())}


if __name__ == "__main__":
    main()
