"""The configuration of stage 2, `train/rl.py`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from train.schema import Bound, Count, CountOrNone, Positive, Settings, Share, Weight
from train.settings import Checkpoints, Evaluate, Model, Optimization, Output
from train.settings_data import Data, Source
from train.settings_sft import Loss, check_precision

Fraction = Annotated[float, Bound(low=0, high=0.999, strict=True)]


@dataclass(frozen=True)
class Rollout(Settings):
    """Sampling of the model's own reasoning."""

    prompts_per_step: Count = 16
    """Queries per optimizer step over all processes. Our choice: the prototype of issue 5."""
    group_size: Count = 8
    """Rollouts per query. 8: GRACE and ELVA; issue 5's prototype."""
    temperature: Positive = 1.0
    """Of the sampling; log-probabilities are taken at the same temperature. Our choice: 1, the model's own distribution."""
    max_reasoning_tokens: Count = 256
    """Budget of the reasoning in tokens, after which the embed token is forced. The encoder's default."""
    batch_tokens: Count = 16384
    """Padded tokens per forward. The encoder's default."""

    def check(self) -> None:
        """A group of one has no mean to be better than."""
        if self.group_size < 2:
            raise ValueError(
                "group_size = 1: GRPO compares a rollout with the mean of its group, and alone its advantage is always 0 (or, "
                "in some trainers, its raw reward). Set group_size to 2 or more, for example 8."
            )


@dataclass(frozen=True)
class Reward(Settings):
    """Weighted sum of what the vector retrieved, minus what the reasoning cost."""

    dcg_scaled: Weight = 1.0
    """sum over the top k of rel_i * cos_i / log2(i + 1), scaled to [0, 1]. Our reading of the paper's DCG_scaled [S]."""
    ndcg: Weight = 0.0
    """nDCG@k. Our choice: 0, it has steps where dcg_scaled has slopes."""
    mrr: Weight = 0.0
    """Reciprocal rank of the first relevant document. Our choice: 0, an ablation."""
    margin: Weight = 0.0
    """Cosine of the positive minus that of the best negative. Our choice: 0; worth an ablation, since the DCG saturates once
    the top positions converge [S]."""
    k: Count = 100
    """Ranks that count. Our choice: 100, so that a positive below the tenth rank still gives a signal."""
    forced_penalty: Weight = 0.1
    """Subtracted when the budget ended before the model did. Our choice: small beside a good ranking, but nothing else teaches
    the model to end."""
    token_cost: Weight = 0.0
    """Subtracted per reasoning token. Our choice: 0, length is reported first."""

    def check(self) -> None:
        """A reward that is always the same teaches nothing."""
        if not (self.dcg_scaled or self.ndcg or self.mrr or self.margin):
            raise ValueError(
                "every reward weight is 0, so only the penalties would be learned and the shortest reasoning would win. Set "
                "dcg_scaled, ndcg, mrr or margin."
            )


@dataclass(frozen=True)
class Policy(Settings):
    """GRPO (arXiv 2402.03300)."""

    weight: Weight = 1.0
    """Weight of the policy loss. Our choice: 1; 0 leaves the contrastive term alone, an ablation."""
    clip_low: Fraction = 0.2
    """Ratio is clipped below at 1 - clip_low. 0.2: PPO, GRPO, DAPO (arXiv 2503.14476, 3.1)."""
    clip_high: Positive = 0.28
    """Ratio is clipped above at 1 + clip_high. DAPO's clip-higher, arXiv 2503.14476."""
    normalisation: Literal["token", "sequence"] = "token"
    """token: mean over all tokens of the batch (DAPO); sequence: mean over each rollout first (GRPO). Our choice: token, long
    rollouts are not discounted."""
    standardise: bool = False
    """Divide advantages by the group's standard deviation. Our choice: no, as Dr. GRPO (arXiv 2503.20783) and GRACE."""
    kl_weight: Weight = 0.0
    """Weight of the KL to the starting model. 0: GRACE, DAPO; it saves a forward."""
    max_gap: Positive = 0.05
    """Mean |log-probability of the trainer - of the sampler| per token, in nats, above which the run stops. Our choice: float32
    gives 1e-6, bf16 up to some hundredths; more means that the two run different models."""
    updates_per_step: Count = 1
    """Optimizer updates on one set of rollouts. Our choice: 1, on policy: no drift between sampler and trainer."""
    skip_zero_variance: bool = True
    """Leave groups whose rewards are all equal out of the backward pass. Their advantage is 0; AERO, arXiv 2602.14338."""


@dataclass(frozen=True)
class Contrastive(Settings):
    """InfoNCE of the rollouts' vectors against their documents, in the same forward as the policy loss."""

    weight: Weight = 1.0
    """0 switches it off. Our choice: 1."""
    temperature: Positive = 0.05
    """InfoNCE divides the cosine by it. As in stage 1."""
    hard_negatives: CountOrNone = 8
    """Negatives per query from the cache, whose vectors are constants. Our choice: 8."""
    min_reward: float = -1.0
    """Rollouts with a smaller reward are left out. Our choice: -1, all of them; a bound keeps reasoning that has not found the
    document from being taught to know it by heart."""


CachePolicy = Literal["none", "random", "local", "random+map", "local+map", "full", "frozen"]


@dataclass(frozen=True)
class CorpusCache(Settings):
    """The corpus vectors and how they stay fresh (issue 4; the measurements are in the results of the cache)."""

    policy: CachePolicy = "local+map"
    """Which rows are re-encoded. Our choice: the best of those measured at equal cost."""
    budget_tokens: CountOrNone = 65536
    """Document tokens re-encoded per step. Our choice: about 500 documents of 128 tokens."""
    top_k: Count = 10
    """Candidates for the refresh per rollout. Our choice: the ranks that nDCG@10 sees."""
    hops: CountOrNone = 1
    """Neighbours of candidates within so many edges are candidates too. Our choice: 1."""
    neighbors: Count = 16
    """Edges per document in the neighbour graph. Our choice: HNSW's usual M."""
    sweep_share: Share = 0.5
    """Part of the budget for the oldest rows, whatever the queries touch. Our choice: no row is forgotten."""
    map_ridge: Positive = 0.3
    """Ridge of the drift map, times pairs / dimensions. 0.3: the measured setting of the drift map."""
    storage: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the stored vectors. Our choice: float32, halves are for corpora beyond memory."""
    index: Literal["exact", "ivf"] = "exact"
    """exact: every row is scored; ivf: FAISS with in-place updates. Our choice: exact until it no longer fits."""
    audit_every: CountOrNone = 20
    """Steps between audits against fresh vectors; 0 = never. Our choice: 20."""
    audit_rows: Count = 256
    """Documents re-encoded per audit. Our choice: standard error of a share below 0.03."""
    error_bound: Positive = 0.02
    """Reward error of an audit from which the budget grows. Issue 4's bound on held-out queries."""
    budget_growth: Positive = 2.0
    """Factor by which it grows. Our choice: doubling."""
    budget_limit_tokens: Count = 524288
    """What it never grows beyond. Our choice: eight times the start."""

    def check(self) -> None:
        """A refreshing policy has a budget; one that never refreshes has no use for it."""
        if self.policy not in ("none", "frozen", "full") and self.budget_tokens == 0:
            raise ValueError(
                f'policy = "{self.policy}" re-encodes documents, but budget_tokens = 0 lets it encode none. Set a budget, or '
                'policy = "none".'
            )
        if self.budget_growth < 1:
            raise ValueError(
                f"budget_growth = {self.budget_growth} would shrink the budget when the error is too large."
            )
        if self.budget_limit_tokens < self.budget_tokens:
            raise ValueError(
                f"budget_limit_tokens = {self.budget_limit_tokens} is below budget_tokens = {self.budget_tokens}, where it begins."
            )


@dataclass(frozen=True)
class ReplayLoss(Loss):
    """Stage 1's losses, as they are weighted beside the policy's."""

    kl: Weight = 0.0
    """Our choice: 0, and not used here: policy.kl_weight holds the policy near its start."""
    infonce: Weight = 0.0
    """Weight of InfoNCE over cosine. Our choice: off, the reply alone keeps the reasoning; nano sets it, which keeps the vectors."""
    triplet: Weight = 0.0
    """Weight of the triplet margin loss. Our choice: off, as in nano's stage 1."""

    def check(self) -> None:
        """There is no frozen base here."""
        super().check()
        if self.kl:
            raise ValueError("replay.loss.kl has no base to stay near. Set policy.kl_weight, and kl = 0.")


@dataclass(frozen=True)
class Replay(Settings):
    """Stage-1 rows mixed into stage 2, so that what was learned is not forgotten."""

    rows_per_step: CountOrNone = 0
    """Replayed rows per step over all processes; 0 = off. Our choice: off, prompts of all lengths do it first."""
    sources: tuple[Source, ...] = ()
    """Where they come from. Our choice: none."""
    loss: ReplayLoss = field(default_factory=ReplayLoss)
    """What is learned from them. Our choice: the reply alone."""

    def check(self) -> None:
        """Both or neither."""
        if bool(self.rows_per_step) != bool(self.sources):
            raise ValueError(
                f"replay needs rows_per_step and sources together, got rows_per_step = {self.rows_per_step} and "
                f"{len(self.sources)} sources. Set both, or none."
            )


@dataclass(frozen=True)
class RlData(Data):
    """Prompts with judgements, and the corpus that is searched."""

    corpus: tuple[Source, ...] = ()
    """Documents that are searched. Our choice: none named, then the corpora of `sources`."""

    def check(self) -> None:
        """Only what has a corpus can be one."""
        super().check()
        for source in self.corpus:
            if source.kind not in ("beir", "hopworld", "jsonl"):
                raise ValueError(f'corpus: kind = "{source.kind}" has no corpus with ids. Use beir, jsonl or hopworld.')


@dataclass(frozen=True)
class RlOptimization(Optimization):
    """AdamW; the batch is rollout.prompts_per_step groups."""

    learning_rate: Positive = 1e-6
    """Peak rate. 1e-6: GRACE, and TRL's default."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up. Our choice: constant, the reward itself levels off."""
    mini_batch_size: Count | None = None
    """Rollouts per forward of the update (gradient accumulation). Our choice: absent, all at once."""


@dataclass(frozen=True)
class RlOutput(Output):
    """Where the run writes."""

    folder: str = "runs/rl"
    """Log, checkpoints and exported models, relative to the working directory. Our choice: runs/ is ignored by git."""
    rollouts_every: CountOrNone = 20
    """Steps between written-out rollouts (query, reasoning, reward, top documents); 0 = never. Our choice: 20."""
    rollouts: Count = 4
    """How many are written each time. Our choice: few enough to be read."""


@dataclass(frozen=True)
class RlConfig(Settings):
    """One reinforcement-learning run."""

    model: Model
    """What is trained: the result of stage 1."""
    data: RlData
    """Prompts and corpus."""
    rollout: Rollout = field(default_factory=Rollout)
    """Sampling."""
    reward: Reward = field(default_factory=Reward)
    """What is rewarded."""
    policy: Policy = field(default_factory=Policy)
    """How it is learned."""
    contrastive: Contrastive = field(default_factory=Contrastive)
    """The vector learns too."""
    corpus_cache: CorpusCache = field(default_factory=CorpusCache)
    """How the corpus stays fresh."""
    optimization: RlOptimization = field(default_factory=RlOptimization)
    """AdamW and its schedule."""
    replay: Replay = field(default_factory=Replay)
    """Stage-1 rows against forgetting."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation during the run."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """What a killed run resumes from."""
    output: RlOutput = field(default_factory=RlOutput)
    """Where the run writes."""

    def check(self) -> None:
        """Rules between sections."""
        check_precision(self.model, self.optimization)
        if self.model.scratch is not None:
            raise ValueError(
                "model.scratch: stage 2 starts from a model that already emits the embed token, random weights never do. Set "
                "model.path to the result of train/sft.py."
            )
        if not (self.policy.weight or self.contrastive.weight):
            raise ValueError("policy.weight and contrastive.weight are both 0, so nothing would be learned. Set one.")
        if self.corpus_cache.policy == "frozen" and self.model.lora is None:
            raise ValueError(
                'corpus_cache.policy = "frozen" embeds documents with the adapter switched off, but there is no [model.lora]: '
                "full fine-tuning moves the documents too. Add [model.lora], or choose another policy."
            )
