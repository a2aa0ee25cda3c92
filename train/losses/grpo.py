"""The loss of stage 2: GRPO (arXiv 2402.03300, section 4.1), a function of shaped tensors, and its advantages.

Departures from the paper: the paper's summary says "GRPO" and no more, so no default is known to be Search-R3's. All of
them are in train/PAPER.md, with their sources.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.config.grpo import PolicySettings
from train.losses.checks import require_finite, share
from train.processes import collectives

DEFAULTS = PolicySettings()


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts as the loss sees them, right- or left-padded: column t of every tensor is the same sampled token.

    `log_probs` have the gradient; `old_log_probs` are those of the distribution that sampled, `reference_log_probs`
    those of the frozen reference, or None without KL. `mask` is False at tokens that the model did not choose: the
    forced embed token, and padding, whose values are never read. `groups` holds the *id* of each rollout's prompt,
    unique over all processes; rows may come in any order. `rewards` has one number per rollout; it is needed where the
    advantages are not given.
    """

    log_probs: Float[Tensor, "rollouts tokens"]
    old_log_probs: Float[Tensor, "rollouts tokens"]
    mask: Bool[Tensor, "rollouts tokens"]
    groups: Int[Tensor, " rollouts"]
    rewards: Float[Tensor, " rollouts"] | None = None
    reference_log_probs: Float[Tensor, "rollouts tokens"] | None = None

    def __post_init__(self) -> None:
        expected = {"old_log_probs": self.log_probs.shape, "mask": self.log_probs.shape}
        expected |= dict.fromkeys(("groups",), self.log_probs.shape[:1])
        if self.rewards is not None:
            expected["rewards"] = self.log_probs.shape[:1]
        if self.reference_log_probs is not None:
            expected["reference_log_probs"] = self.log_probs.shape
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"`{name}` has shape {tuple(getattr(self, name).shape)} instead of {tuple(shape)}, which fits "
                    f"log_probs of shape {tuple(self.log_probs.shape)}: rows are rollouts, columns are tokens."
                )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"`mask` is {self.mask.dtype}; it must be bool, True where the model chose the token.")
        for name in ("log_probs", "old_log_probs", "reference_log_probs"):
            if getattr(self, name) is not None:
                require_finite(**{f"{name}[mask]": getattr(self, name)[self.mask]})


@dataclass(frozen=True)
class Advantages:
    """One advantage per rollout; the number of groups, and of those whose rewards are all equal (advantage 0)."""

    values: Float[Tensor, " rollouts"]
    groups: int
    zero_variance_groups: int


@dataclass(frozen=True)
class PolicyLoss:
    """The loss, with gradient, and numbers for the log (means over the tokens of this call, no gradient).

    `clipped_low` and `clipped_high` are the shares of tokens whose gradient the clip stopped, `kl` is in nats per
    token, and `ratio_gap_mean` and `ratio_gap_max` are |log_probs - old_log_probs|: on the first update after a
    rollout, how far the sampler is from the trainer.
    """

    loss: Float[Tensor, ""]
    advantages: Advantages
    tokens: int
    clipped_low: float
    clipped_high: float
    kl: float
    ratio_gap_mean: float
    ratio_gap_max: float


def group_advantages(
    rewards: Float[Tensor, " rollouts"],
    groups: Int[Tensor, " rollouts"],
    *,
    standardise: bool = DEFAULTS.standardise,
    epsilon: float = 1e-4,
    equal_within: float = 1e-6,
) -> Advantages:
    """Each reward minus the mean of its group, divided by (standard deviation + epsilon) when `standardise`.

    Groups are rows of one id, wherever they stand. The deviation is the sample's (n - 1) and epsilon 1e-4, as in TRL. A
    group whose rewards differ by no more than `equal_within` (our choice: cosines of equal vectors differ by rounding)
    says nothing about its rollouts: its advantages are 0, and it is counted.

    Raises ValueError for NaN, and for a group of one, whose mean is its own reward.
    """
    require_finite(rewards=rewards)
    if len(groups) == 0:
        raise ValueError("There are no rollouts. Give at least one group of two.")
    _, number, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    if int(sizes.min()) == 1:
        alone = int(groups[number == int(sizes.argmin())][0])
        raise ValueError(
            f"Group {alone} has one rollout: compared with itself alone its advantage would be 0, or its raw reward. "
            "Sample at least 2 rollouts per prompt; where groups span processes, gather rewards and group ids first."
        )
    exact = rewards.detach().double()  # the mean of equal rewards must be that reward
    zeros = torch.zeros(len(sizes), dtype=exact.dtype, device=exact.device)
    centred = exact - (zeros.scatter_add(0, number, exact) / sizes)[number]
    largest, smallest = (zeros.scatter_reduce(0, number, exact, how, include_self=False) for how in ("amax", "amin"))
    equal = largest - smallest <= equal_within
    if standardise:
        deviation = (zeros.scatter_add(0, number, centred.square()) / (sizes - 1)).sqrt()
        centred = centred / (deviation[number] + epsilon)
    values = centred.masked_fill(equal[number], 0.0).to(rewards.dtype)
    return Advantages(values=values, groups=len(sizes), zero_variance_groups=int(equal.sum()))


def gathered_advantages(
    rewards: Float[Tensor, " rollouts"], groups: Int[Tensor, " rollouts"], *, standardise: bool = DEFAULTS.standardise
) -> Advantages:
    """Advantages of this process's rollouts in groups that may span processes; group counts are those of all.

    `groups` are prompt ids that mean the same on all processes: rollouts under one id are compared with each other.
    """
    counts = collectives.row_counts(len(rewards), rewards.device)
    whole = group_advantages(collectives.gather_rows(rewards), collectives.gather_rows(groups), standardise=standardise)
    values = whole.values.split(counts)[collectives.rank()]
    return Advantages(values=values, groups=whole.groups, zero_variance_groups=whole.zero_variance_groups)


def grpo_loss(
    batch: PolicyBatch,
    settings: PolicySettings | None = None,
    *,
    advantages: Advantages | None = None,
    count: float | None = None,
) -> PolicyLoss:
    """GRPO with an asymmetric clip; masked tokens have neither a loss nor a gradient.

    Per token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_weight * k3, with r = exp(log_probs -
    old_log_probs) and k3 = exp(d) - d - 1, d = reference - log_probs (arXiv 2402.03300, eq. 4). "token" normalisation
    divides the sum by `count` tokens, "sequence" the sum of each rollout's mean by `count` rollouts; `count` defaults
    to this batch's own.

    `advantages` are this batch's rows of advantages computed over more rollouts (other processes, other mini-batches);
    by default they come from the batch's own rewards and groups.

    Raises ValueError for a KL weight without reference log-probabilities, with neither advantages nor rewards, and when
    no token is left to learn from.
    """
    settings = settings or PolicySettings()
    if settings.kl_weight and batch.reference_log_probs is None:
        raise ValueError(
            f"kl_weight={settings.kl_weight} needs reference_log_probs. Pass them, or set the weight to 0."
        )
    if advantages is None:
        if batch.rewards is None:
            raise ValueError("Neither advantages nor the batch's rewards are given: pass one of them.")
        advantages = group_advantages(batch.rewards, batch.groups, standardise=settings.standardise)
    if len(advantages.values) != len(batch.groups):
        raise ValueError(
            f"{len(advantages.values)} advantages were given for {len(batch.groups)} rollouts; one each is needed."
        )
    mask = batch.mask
    # Read through the mask: what padding holds (often -inf or NaN) must reach neither the sum nor the gradient.
    log_probs = batch.log_probs.masked_fill(~mask, 0.0)
    old = batch.old_log_probs.detach().masked_fill(~mask, 0.0)
    advantage = advantages.values.to(log_probs)[:, None]
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    losses = -torch.minimum(ratio * advantage, clipped * advantage)
    k3 = torch.zeros_like(losses)
    if batch.reference_log_probs is not None:
        difference = batch.reference_log_probs.detach().masked_fill(~mask, 0.0) - log_probs
        k3 = difference.exp() - difference - 1
        losses = losses + settings.kl_weight * k3
    losses = losses * mask
    tokens = int(mask.sum())
    if not tokens and count is None:
        raise ValueError(
            f"All tokens of these {len(mask)} rollouts are masked: the model chose none, so nothing can be learned. "
            "Raise the budget of reasoning tokens, or skip the batch."
        )
    if settings.normalisation == "token":
        loss = losses.sum() / share(count, tokens)
    else:
        loss = (losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / share(count, len(mask))
    with torch.no_grad():
        gap = (log_probs - old).abs()[mask]

        def mean(values: Tensor) -> float:
            return float((values * mask).sum()) / max(tokens, 1)

        return PolicyLoss(
            loss=loss,
            advantages=advantages,
            tokens=tokens,
            clipped_low=mean((ratio < 1 - settings.clip_low) & (advantage < 0)),
            clipped_high=mean((ratio > 1 + settings.clip_high) & (advantage > 0)),
            kl=mean(k3),
            ratio_gap_mean=float(gap.mean()) if tokens else 0.0,
            ratio_gap_max=float(gap.max()) if tokens else 0.0,
        )
