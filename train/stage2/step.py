"""One step of stage 2: policy and contrastive loss of a step's rollouts, and their gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.config.stages import RlConfig
from train.losses.checks import unit
from train.losses.grpo import Advantages, PolicyBatch, PolicyLoss, gathered_advantages, grpo_loss
from train.losses.rewards import REWARD_FUNCTIONS
from train.losses.stage1 import select_reply, token_scores
from train.model.batches import TokenBatch, collate
from train.model.model import Base, forward, head_of
from train.processes import collectives
from train.run.run import Run
from train.stage2.contrastive import PositiveDocuments, RolloutContrast
from train.stage2.environment import Environment, Judged
from train.stage2.rollouts import Groups, padded, sampled_log_probs

EQUAL = 1e-6
"""Rewards that differ by less count as equal: the rounding of cosines in float32."""


@dataclass(frozen=True)
class LossCounts:
    """The divisors of sums, with which the shares of mini-batches and processes add up to means over all of them."""

    tokens: float  # chosen by the model, of all rollouts
    rollouts: float
    shown: float  # chosen tokens of the rollouts that run, for logged numbers


@dataclass
class PolicyStep:
    """Policy and contrastive loss of one step's rollouts, and their gradient."""

    run: Run
    environment: Environment
    groups: Groups
    base: Base | None

    @property
    def config(self) -> RlConfig:
        """The run's settings."""
        config: RlConfig = self.run.config
        return config

    def documents(self) -> PositiveDocuments:
        """The positives of this process's prompts, encoded under the present weights.

        Under the `frozen` policy they are the cache's constants, as all documents are: positives that moved would
        differ from every negative by that alone.
        """
        run = self.run

        def encode(texts: list[str]) -> Tensor | None:
            if not self.config.contrastive.weight:
                return None
            if self.config.corpus_cache.policy == "frozen":
                return torch.from_numpy(self.environment.positive_vectors(self.groups, texts)).to(run.device)
            batch = collate(run.renderer.render_batch(texts, "direct"), run.checkpoint.embed_token_id, run.device)
            with run.accelerator.autocast():
                return forward(run.model, batch.token_ids, batch.lengths).vectors

        return PositiveDocuments.of(self.groups.rows, encode)

    def advantages(self, judged: Judged) -> Advantages:
        """Each rollout's reward against its group's.

        To reward what a rollout gains over its query's direct vector would change nothing: that is the same number for
        the whole group, and the group's mean takes it out again. So it is only logged (`reward_minus_direct`).
        """
        rewards = torch.from_numpy(judged.rewards.total).float().to(self.run.device)
        groups = self.groups.group.to(rewards.device)
        return gathered_advantages(rewards, groups, standardise=self.config.policy.standardise)

    def backward(self, judged: Judged, advantages: Advantages, documents: PositiveDocuments) -> dict[str, float]:
        """Add the gradient to the parameters, `mini_batch_size` rollouts at a time; returns the parts of the loss.

        A rollout's loss depends on the others only through numbers that are already known (advantages) and through the
        documents, so adding up the parts is exact. The documents' gradient goes through their own forward once.
        """
        chosen = self.chosen(advantages)
        size = self.config.optimization.mini_batch_size or len(chosen)
        everything = range(len(self.groups.prompt))
        rollouts = collectives.shared_count(len(everything), self.run.device)
        counts = LossCounts(self._token_count(everything), rollouts, self._token_count(chosen))
        names = ("loss", "policy", "contrastive", "kl", "clipped", "gap_mean", "gap_max", "entropy")
        totals = dict.fromkeys(names, 0.0)
        with self.run.accelerator.autocast():
            contrast = RolloutContrast.of(self.config.contrastive, self.environment, self.groups, judged, documents)
            for start in range(0, len(chosen), size):
                loss = self._part(chosen[start : start + size], advantages, contrast, counts, totals)
                self.run.accelerator.backward(loss)
            if contrast is not None:
                contrast.finish(self.run.accelerator)
        return totals

    def chosen(self, advantages: Advantages) -> list[int]:
        """The rollouts that run: where the policy's loss is the only one, those of groups with unequal rewards.

        The divisors stay, so that leaving the others out saves time and changes nothing else. Where all groups have
        equal rewards the first one runs, so that every process has a backward pass; with shards all run, since every
        process must have equally many.
        """
        config, everything = self.config, list(range(len(self.groups.prompt)))
        needed = config.contrastive.weight or config.policy.kl_weight or not config.policy.skip_zero_variance
        if needed or self.run.sharded:
            return everything
        alive = {self.groups.prompt[r] for r in everything if float(advantages.values[r]) != 0.0} or {0}
        return [r for r in everything if self.groups.prompt[r] in alive]

    def check_gap(self, losses: dict[str, float]) -> dict[str, float]:
        """The mean and the largest gap between the log-probabilities of sampler and trainer, over all processes.

        Before an update both are the same weights, so only rounding may differ: FloatingPointError above `max_gap`, on
        every process together.
        """
        device = self.run.device
        gaps = collectives.average({"gap_mean": losses["gap_mean"]}, device)
        gaps |= collectives.maximum({"gap_max": losses["gap_max"]}, device)
        gap, limit = gaps["gap_mean"], self.config.policy.max_gap
        if not gap <= limit:
            raise FloatingPointError(
                f"sampler and trainer differ by {gap:.4f} nats per token on average, above policy.max_gap = {limit}: "
                "the gradient would be wrong. Train in float32, or raise the bound if the dtype explains it."
            )
        return gaps

    def numbers(self, judged: Judged, advantages: Advantages) -> dict[str, float]:
        """Mean rewards, lengths and costs of this process's rollouts, for the log and the bar."""
        finished = self.groups.rollouts.finished
        parts = {f"reward_{name}": float(values.mean()) for name, values in judged.rewards.parts.items()}
        prompts = np.array(self.groups.prompt)
        # Of the rollouts of one prompt, which are compared with each other.
        for name in sorted(judged.rewards.parts.keys() - REWARD_FUNCTIONS.keys()):
            spreads = [np.ptp(judged.rewards.parts[name][prompts == prompt]) for prompt in np.unique(prompts)]
            parts[f"reward_{name}_spread"] = float(np.mean(spreads))
        if judged.direct is not None:
            gain = judged.rewards.total - judged.direct[prompts]
            parts |= {
                "reward_minus_direct": float(gain.mean()),
                "better_than_direct": float((gain > EQUAL).mean()),
                "worse_than_direct": float((gain < -EQUAL).mean()),
            }
        return parts | {
            "reward": float(judged.rewards.total.mean()),
            "finished_share": sum(finished) / len(finished),
            "length": sum(self.groups.reasoning_tokens) / len(finished),
            "zero_variance_share": advantages.zero_variance_groups / advantages.groups,
            "documents_encoded": float(len(judged.refresh.rows)),
            "refresh_seconds": judged.refresh.seconds,
        }

    def _part(
        self,
        part: Sequence[int],
        advantages: Advantages,
        contrast: RolloutContrast | None,
        counts: LossCounts,
        totals: dict[str, float],
    ) -> Tensor:
        """The loss of some rollouts, as their share of the step's; adds its parts to `totals`."""
        config = self.config
        rows = collate([self.groups.rendered[r] for r in part], self.run.checkpoint.embed_token_id, self.run.device)
        hidden = forward(self.run.model, rows.token_ids, rows.lengths)
        policy, entropy = self._policy(part, rows, hidden.states, advantages, counts)
        loss = config.policy.weight * policy.loss
        share = policy.tokens / counts.shown
        totals["policy"] += float(policy.loss.detach())
        totals["kl"] += share * policy.kl
        totals["clipped"] += share * (policy.clipped_low + policy.clipped_high)
        totals["entropy"] += share * entropy
        totals["gap_mean"] += share * policy.ratio_gap_mean
        totals["gap_max"] = max(totals["gap_max"], policy.ratio_gap_max)
        if contrast is not None:
            term = contrast.loss(part, self._ranked(part, hidden.vectors), counts.rollouts)
            totals["contrastive"] += float(term.detach())
            loss = loss + config.contrastive.weight * term
        totals["loss"] += float(loss.detach())
        return loss

    def _ranked(self, part: Sequence[int], vectors: Tensor) -> Tensor:
        """The vectors (rollouts, dim) that the contrastive term trains: those that are ranked.

        The gradient goes through the reasoned vector alone; the direct one is the constant that the rollouts were
        ranked with.
        """
        anchor, direct = self.config.reward.anchor, self.groups.direct
        if not anchor:
            return vectors
        if direct is None:
            raise ValueError(
                f"reward.anchor = {anchor} needs the prompts' direct vectors: sample them with the rollouts."
            )
        constant = torch.from_numpy(direct[[self.groups.prompt[r] for r in part]]).to(vectors.device)
        return constant + anchor * unit(vectors)

    def _policy(
        self, part: Sequence[int], rows: TokenBatch, states: Tensor, advantages: Advantages, counts: LossCounts
    ) -> tuple[PolicyLoss, float]:
        """GRPO on the tokens that the model chose, and their mean entropy in nats."""
        policy, temperature, device = self.config.policy, self.config.rollout.temperature, self.run.device
        reply = select_reply(states, rows.token_ids, rows.reply)
        scores = token_scores(reply.hidden, head_of(self.run.model), reply.targets, temperature=temperature)
        lengths = rows.reply.sum(dim=1).tolist()
        old, mask = (tensor.to(device) for tensor in sampled_log_probs(self.groups.rollouts, part))
        reference = None
        if self.base is not None:
            before = select_reply(self.base.states(rows.token_ids, rows.lengths), rows.token_ids, rows.reply)
            with torch.no_grad():
                flat = token_scores(before.hidden, self.base.head, reply.targets, temperature=temperature).log_probs
            reference = padded(flat, lengths)
        index = torch.tensor(part)
        values = advantages.values.to(device)[index.to(device)]
        batch = PolicyBatch(
            log_probs=padded(scores.log_probs, lengths),
            old_log_probs=old,
            mask=mask,
            groups=self.groups.group[index].to(device),
            reference_log_probs=reference,
        )
        # "sequence" normalisation counts rollouts, "token" the tokens that the model chose.
        count = counts.tokens if policy.normalisation == "token" else counts.rollouts
        loss = grpo_loss(batch, policy, advantages=replace(advantages, values=values), count=count)
        entropy = padded(scores.entropies, lengths)[mask]
        return loss, float(entropy.mean()) if len(entropy) else 0.0

    def _token_count(self, chosen: Sequence[int]) -> float:
        finished, ids = self.groups.rollouts.finished, self.groups.rollouts.token_ids
        return collectives.shared_count(sum(len(ids[r]) - (not finished[r]) for r in chosen), self.run.device)
