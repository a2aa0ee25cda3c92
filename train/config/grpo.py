"""Settings of stage 2's rollouts, reward and policy loss."""

from typing import Annotated, Literal

from pydantic import Field

from train.config.settings import Count, OwnRewards, OwnTables, Positive, Settings, StrictBool, Temperature, Weight

Fraction = Annotated[float, Field(strict=True, gt=0, le=0.999)]


class RolloutSettings(Settings):
    """Sampling of the model's own reasoning."""

    prompts_per_step: Count = 16
    """Queries per optimizer step over all processes. Our choice: 128 rollouts with the default group size."""
    group_size: Count = 8
    """Rollouts per query. 8: GRACE and ELVA."""
    temperature: Temperature = 1.0
    """Temperature of sampling and of the log-probabilities. Our choice: 1, the model's own distribution."""
    max_reasoning_tokens: Count = 256
    """Budget of the reasoning in tokens, after which the embed token is forced. The encoder's default."""
    batch_tokens: Count = 16384
    """Padded tokens per forward. The encoder's default."""

    def check(self) -> None:
        """A group of one has no mean to be better than."""
        if self.group_size < 2:
            raise ValueError(
                "group_size = 1: GRPO compares a rollout with the mean of its group, and alone its advantage is always "
                "0 (or, in some trainers, its raw reward). Set group_size to 2 or more, for example 8."
            )


class RewardSettings(Settings):
    """Weighted sum of what the vector retrieved, minus what the reasoning cost."""

    dcg_scaled: Weight = 1.0
    """Sum over the top k of rel_i * cos_i / log2(i + 1), scaled to [0, 1]: how we read the paper's DCG_scaled [S]."""
    ndcg: Weight = 0.0
    """Weight of nDCG@k. Our choice: 0, it has steps where dcg_scaled has slopes."""
    mrr: Weight = 0.0
    """Reciprocal rank of the first relevant document. Our choice: 0, an ablation."""
    margin: Weight = 0.0
    """Cosine of the positive minus that of the best negative. Our choice: 0; worth an ablation, since the DCG saturates
    once the top positions converge [S]."""
    k: Count = 100
    """Ranks that count. Our choice: 100, so that a positive below the tenth rank still gives a signal."""
    forced_penalty: Weight = 0.1
    """Subtracted when the budget ended before the reasoning. Our choice: small beside a good ranking; nothing else
    teaches the model to end."""
    token_cost: Weight = 0.0
    """Subtracted per reasoning token. Our choice: 0, length is reported first."""
    anchor: Weight = 0.0
    """The vector that is ranked, rewarded and contrasted is normalise(direct + anchor x reasoned), direct being the
    query's vector without reasoning under the sampling weights. 0: the reasoned vector alone. Our choice: off."""
    own: OwnRewards = OwnTables()
    """Rewards of other packages (docs/extend.md), one table each: weight, and its own settings. Our choice: none."""

    def check(self) -> None:
        """A reward that is always the same teaches nothing."""
        if not any(self.weights.values()):
            raise ValueError(
                "every reward weight is 0, so only the penalties would be learned and the shortest reasoning would "
                f"win. Set one of {', '.join(self.weights)}."
            )

    @property
    def weights(self) -> dict[str, float]:
        """Reward -> weight. Every field but those named here is a reward, which must have a function."""
        others = ("k", "forced_penalty", "token_cost", "anchor", "own")
        weights = {name: value for name, value in self if name not in others}
        return weights | {name: table.weight for name, table in self.own.tables.items()}


class PolicySettings(Settings):
    """GRPO (arXiv 2402.03300)."""

    weight: Weight = 1.0
    """Weight of the policy loss. Our choice: 1; 0 leaves the contrastive term alone, an ablation."""
    clip_low: Fraction = 0.2
    """Ratio is clipped below at 1 - clip_low. 0.2: PPO, GRPO, DAPO (arXiv 2503.14476, 3.1)."""
    clip_high: Positive = 0.28
    """Ratio is clipped above at 1 + clip_high. DAPO's clip-higher, arXiv 2503.14476."""
    normalisation: Literal["token", "sequence"] = "token"
    """token: mean over all tokens of the batch (DAPO); sequence: mean over each rollout first (GRPO). Our choice:
    token, long rollouts are not discounted."""
    standardise: StrictBool = False
    """Divide advantages by the group's standard deviation. Our choice: no, as Dr. GRPO (arXiv 2503.20783) and GRACE."""
    kl_weight: Weight = 0.0
    """Weight of the KL to the starting model. 0: GRACE, DAPO; it saves a forward."""
    max_gap: Positive = 0.05
    """Mean |log-probability of the trainer - of the sampler|, in nats per token, above which the run stops. Our choice:
    float32 gives 1e-6, bf16 up to some hundredths; more means that the two run different models."""
    updates_per_step: Count = 1
    """Optimizer updates on one set of rollouts. Our choice: 1, on policy: no drift between sampler and trainer."""
    skip_zero_variance: StrictBool = True
    """Leave groups with equal rewards out of the backward pass. Their advantage is 0; AERO, arXiv 2602.14338."""
