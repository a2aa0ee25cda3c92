"""The configuration of each stage: one class per command."""

from search_r3_mteb.extensions import REFRESH_POLICIES, REWARDS
from train.config.corpus_cache import CorpusCacheSettings
from train.config.data import DataSettings, RlDataSettings, SourceSettings
from train.config.grpo import PolicySettings, RewardSettings, RolloutSettings
from train.config.loss import ContrastiveSettings, LossSettings, ReplayLossSettings
from train.config.model import ModelSettings
from train.config.run import (
    CheckpointSettings,
    EvaluateSettings,
    RlOptimizationSettings,
    RlOutputSettings,
    SftOptimizationSettings,
    SftOutputSettings,
)
from train.config.settings import CountOrZero, Settings


class ReplaySettings(Settings):
    """Stage-1 rows mixed into stage 2, so that what was learned is not forgotten."""

    rows_per_step: CountOrZero = 0
    """Replayed rows per step over all processes; 0 = off. Our choice: off, prompts of all lengths do it first."""
    sources: tuple[SourceSettings, ...] = ()
    """Where they come from. Our choice: none."""
    loss: ReplayLossSettings = ReplayLossSettings()
    """What is learned from them. Our choice: the reply alone."""

    def check(self) -> None:
        """Rows per step and sources are set together."""
        if bool(self.rows_per_step) != bool(self.sources):
            raise ValueError(
                f"rows_per_step and sources are needed together, got rows_per_step = {self.rows_per_step} and "
                f"{len(self.sources)} sources. Set both, or neither."
            )


class SftConfig(Settings):
    """One supervised run."""

    model: ModelSettings
    """What is trained."""
    data: DataSettings
    """What it is trained on."""
    loss: LossSettings = LossSettings()
    """What is learned from the rows, and with which weights."""
    optimization: SftOptimizationSettings = SftOptimizationSettings()
    """The optimizer and its schedule."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation during the run."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What a killed run resumes from."""
    output: SftOutputSettings = SftOutputSettings()
    """Where the run writes."""

    def check(self) -> None:
        """Rules between sections."""
        self.checkpoint.last_step(self.optimization.steps)
        if self.evaluate.best_by == "anchored":
            raise ValueError(
                'evaluate.best_by = "anchored": stage 1 has no reward.anchor to weigh the reasoned vector by. Set '
                '"reason" or "direct".'
            )
        if self.loss.kl and self.model.scratch is not None:
            raise ValueError(
                "loss.kl and model.scratch exclude each other: the frozen base has random weights, and staying near "
                "noise is no use. Set loss.kl = 0."
            )
        contrastive = self.loss.infonce or self.loss.triplet
        if contrastive and not self.loss.in_batch and self.data.hard_negatives == 0:
            raise ValueError(
                "loss.in_batch = false needs hard negatives, but data.hard_negatives = 0: no negatives would be left. "
                "Set data.hard_negatives, or loss.in_batch = true."
            )
        if contrastive and self.loss.in_batch and self.data.hard_negatives == 0 and self.optimization.batch_size == 1:
            raise ValueError(
                "optimization.batch_size = 1 has no in-batch negatives, and data.hard_negatives = 0: the contrastive "
                "loss would be 0. Raise one of them."
            )
        if self.data.hard_negatives and not self.loss.hard_negatives:
            raise ValueError(
                f"data.hard_negatives = {self.data.hard_negatives} are read but loss.hard_negatives = false ignores "
                "them. Set data.hard_negatives = 0 as well, or switch the loss on."
            )


class RlConfig(Settings):
    """One reinforcement-learning run."""

    model: ModelSettings
    """What is trained: the result of stage 1."""
    data: RlDataSettings
    """Prompts and corpus."""
    rollout: RolloutSettings = RolloutSettings()
    """Sampling."""
    reward: RewardSettings = RewardSettings()
    """What is rewarded."""
    policy: PolicySettings = PolicySettings()
    """How it is learned."""
    contrastive: ContrastiveSettings = ContrastiveSettings()
    """The vector learns too."""
    corpus_cache: CorpusCacheSettings = CorpusCacheSettings()
    """How the corpus stays fresh."""
    optimization: RlOptimizationSettings = RlOptimizationSettings()
    """The optimizer and its schedule."""
    replay: ReplaySettings = ReplaySettings()
    """Stage-1 rows against forgetting."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation during the run."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What a killed run resumes from."""
    output: RlOutputSettings = RlOutputSettings()
    """Where the run writes."""

    def check(self) -> None:
        """Rules between sections."""
        self.checkpoint.last_step(self.optimization.steps)
        if self.model.scratch is not None:
            raise ValueError(
                "model.scratch: stage 2 starts from a model that already emits the embed token, random weights never "
                "do. Set model.path to the result of train/sft.py."
            )
        if not (self.policy.weight or self.contrastive.weight):
            raise ValueError("policy.weight and contrastive.weight are both 0, so nothing would be learned. Set one.")
        if self.evaluate.best_by == "anchored" and not self.reward.anchor:
            raise ValueError(
                'evaluate.best_by = "anchored", but reward.anchor = 0 anchors nothing. Set reward.anchor, or best_by = '
                '"reason".'
            )
        if self.reward.anchor and self.data.evaluation and set(self.evaluate.modes) != {"direct", "reason"}:
            raise ValueError(
                f"reward.anchor = {self.reward.anchor} is evaluated from the vectors of both modes, but evaluate.modes "
                f'= {list(self.evaluate.modes)}. Set modes = ["direct", "reason"].'
            )
        best = sum(self.reward.weights.values())
        if self.contrastive.weight and self.contrastive.min_reward > best:
            raise ValueError(
                f"contrastive.min_reward = {self.contrastive.min_reward} is above {best:g}, the largest reward that "
                "the weights of [reward] allow: no rollout would be contrasted. Lower it, or set its weight = 0."
            )
        if self.model.lora is not None and self.model.lora.dropout:
            raise ValueError(
                f"model.lora.dropout = {self.model.lora.dropout} in stage 2: the policy's log-probabilities would be "
                "random and its sampler's not, and noise would go into the corpus cache. Set model.lora.dropout = 0."
            )
        if self.corpus_cache.policy == "frozen" and self.model.lora is None:
            raise ValueError(
                'corpus_cache.policy = "frozen" embeds documents as before training, but there is no [model.lora]: '
                "full fine-tuning moves the documents too. Add [model.lora], or choose another policy."
            )

    @property
    def reads_start(self) -> bool:
        """Whether the model before training is needed beside the trained one."""
        return bool(self.policy.kl_weight) or self.corpus_cache.policy == "frozen"

    def extension_notes(self) -> list[str]:
        """What other packages bring to this run, and which of their rewards and policies it does not use."""
        own, policy = self.reward.own.tables, self.corpus_cache.policy
        used = [f"{REWARDS.find(name)} counts {table.weight:g} times" for name, table in own.items()]
        if policy not in REFRESH_POLICIES.reserved:
            used.append(f"{REFRESH_POLICIES.find(policy)} refreshes the corpus cache")
        unused = [f"[reward.own.{name}]" for name in REWARDS.names() if name not in own]
        unused += [f'corpus_cache.policy = "{name}"' for name in REFRESH_POLICIES.names() if name != policy]
        return used + ([f"installed, and not used here: {', '.join(unused)}"] if unused else [])
