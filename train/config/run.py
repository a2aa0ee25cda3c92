"""Settings of a run: optimizer and schedule, evaluation, checkpoints, output."""

from typing import Annotated, Literal

from pydantic import Field

from train.config.settings import Count, CountOrZero, Positive, Seed, Settings, Share, StrictBool, Text, Weight

QueryMode = Literal["direct", "reason"]
ScoredMode = Literal["direct", "reason", "anchored"]
# A step moves a weight by about the rate: above 1 nothing of it is left, below 1e-12 float32 stands still.
Rate = Annotated[float, Field(strict=True, ge=1e-12, le=1)]


class OptimizationSettings(Settings):
    """The optimizer and its schedule, counted in optimizer steps."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (arXiv 1711.05101), or, for full fine-tuning, Muon (arXiv 2502.16982) on the layers' matrices beside AdamW.
    Our choice: adamw, the trainer default of transformers; nano learns faster with Muon (results/rl/LOG.md)."""
    steps: Count = 1000
    """Optimizer steps of the whole run. Our choice; the paper's number is not known."""
    learning_rate: Rate = 1e-5
    """Peak rate. Our choice: usual for fine-tuning 1.5B weights; LoRA and nano set their own."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape after the warm-up. Our choice: linear to final_share, the trainer default of transformers."""
    warmup_steps: CountOrZero = 0
    """Steps of linear rise from zero. Our choice: none, a config that needs one says so."""
    final_share: Share = 0.0
    """Share of learning_rate that the schedule falls to, one step after the last. Our choice: 0."""
    weight_decay: Weight = 0.01
    """Decoupled decay (arXiv 1711.05101), on matrices only. Our choice: torch's default for AdamW."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's two moments. torch's default."""
    epsilon: Positive = 1e-8
    """AdamW's denominator floor. torch's default."""
    max_gradient_norm: Weight = 1.0
    """Clip the gradient to this norm; 0 = off. Our choice: 1, the trainer default of transformers."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Compute in bf16 over float32 weights. Our choice: no, since the CPU is the reference; GPU configs set bf16."""
    seed: Seed = 0
    """Seed of the weights that are random, of dropout, sampling and the order of rows. Our choice: 0."""

    def check(self) -> None:
        """The schedule can be followed."""
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves nothing of steps = {self.steps}: the rate would never "
                "reach learning_rate. Lower warmup_steps."
            )
        if self.schedule == "constant" and self.final_share:
            raise ValueError(
                'final_share has no meaning with schedule = "constant". Remove it or set schedule = "linear".'
            )
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate * weight_decay = {self.learning_rate * self.weight_decay:g}: each step multiplies the "
                "matrices by 1 minus that, which would reverse their signs. Keep it below 1."
            )
        if max(self.betas) >= 1:
            raise ValueError(
                f"betas = {list(self.betas)}: both must be below 1, or a moment would never forget its start."
            )


class SftOptimizationSettings(OptimizationSettings):
    """The optimizer, and the batch that the contrastive loss sees."""

    batch_size: Count = 64
    """Rows per optimizer step over all processes. GRACE (same 1.5B backbone) uses 64."""
    mini_batch_size: Count | None = None
    """Rows per forward (GradCache, arXiv 2101.06983): bounds memory, not the loss. Our choice: absent, all at once."""

    def check(self) -> None:
        """A mini-batch is no larger than its batch."""
        super().check()
        if self.mini_batch_size is not None and self.mini_batch_size > self.batch_size:
            raise ValueError(
                f"mini_batch_size = {self.mini_batch_size} is larger than batch_size = {self.batch_size}, of which it "
                "is a part. Lower it, or remove it to run the batch at once."
            )


class RlOptimizationSettings(OptimizationSettings):
    """The optimizer; the batch is rollout.prompts_per_step groups."""

    learning_rate: Rate = 1e-6
    """Peak rate. 1e-6: GRACE, and TRL's default."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up. Our choice: constant, the reward itself levels off."""
    mini_batch_size: Count | None = None
    """Rollouts per forward of the update (gradient accumulation). Our choice: absent, all at once."""


class EvaluateSettings(Settings):
    """Evaluation on data.evaluation during the run."""

    every: CountOrZero = 100
    """Optimizer steps between evaluations; 0 = only at the end. Our choice: about ten in a default run."""
    modes: tuple[QueryMode, ...] = ("direct", "reason")
    """Query modes that are measured. Our choice: both, since their difference is what reasoning is worth."""
    max_queries: Count | None = None
    """Queries per set, at most; a fixed random draw. Our choice: absent, all of them."""
    max_reasoning_tokens: Count = 256
    """Budget of the reasoning in tokens, after which the embed token is forced. The encoder's default."""
    batch_tokens: Count = 16384
    """Padded tokens per forward. The encoder's default."""
    dims: tuple[Count, ...] | None = None
    """Sizes that are measured beside the whole vectors: their first dimensions, normalised again. Our choice:
    absent, those of loss.matryoshka_dims where a run has them; [] for none."""
    best_by: ScoredMode = "reason"
    """The mode whose mean nDCG@10 chooses the best checkpoint; anchored where stage 2 sets reward.anchor. Our choice:
    reason, what the project is about."""

    def check(self) -> None:
        """The best checkpoint is chosen by a mode that is measured."""
        if self.best_by != "anchored" and self.best_by not in self.modes:
            raise ValueError(
                f'best_by = "{self.best_by}" is not among modes = {list(self.modes)}, so no checkpoint could be called '
                f'best. Add "{self.best_by}" to modes or change best_by.'
            )


class CheckpointSettings(Settings):
    """What a killed run resumes from."""

    every: CountOrZero = 100
    """Optimizer steps between checkpoints; 0 = only at the end. Our choice: at most a hundred steps are lost."""
    keep: Count = 2
    """Newest checkpoints that stay, beside the best. Our choice: 2, so that a damaged newest has one before it."""
    resume: Literal["auto", "never", "fallback"] = "auto"
    """auto: from the newest checkpoint in output.folder; fallback: from the newest that is sound; never: begin again
    and refuse a folder that has checkpoints. Our choice: auto, so that the same command continues a killed run."""
    stop_at: CountOrZero = 0
    """The step after which the run ends and writes its model, under the schedule of optimization.steps; 0 = at that.
    Our choice: 0. A resumed run may have another: with the step of its newest checkpoint it ends at once, and without
    it goes on to the weights that it would have had without stopping."""

    def last_step(self, steps: int) -> int:
        """The step after which a run of `steps` ends. Raises ValueError for a stop_at beyond them."""
        if self.stop_at > steps:
            raise ValueError(
                f"checkpoint.stop_at = {self.stop_at} comes after optimization.steps = {steps}, and would change "
                "nothing. Raise optimization.steps, or leave it out."
            )
        return self.stop_at or steps


class OutputSettings(Settings):
    """Where the run writes."""

    license: str = "other"
    """Licence of the trained model, for its card. Our choice: "other", until it is known what base and data allow."""
    log_every: Count = 1
    """Optimizer steps per line of log.jsonl. Our choice: every step, a line is cheap."""
    tensorboard: StrictBool = True
    """Also write TensorBoard files. Our choice: on, they cost little."""
    trackers: tuple[str, ...] = ()
    """Further trackers of accelerate that get the numbers: wandb, mlflow or another that is installed. Our choice:
    none, they need an account or a server."""
    project: Text = "search-r3"
    """The trackers' project or experiment; this run is named after its folder. Our choice: the method's name."""


class SftOutputSettings(OutputSettings):
    """Where the run writes."""

    folder: Text = "runs/sft"
    """Log, checkpoints and exported models, relative to the working directory. Our choice: runs/ is ignored by git."""


class RlOutputSettings(OutputSettings):
    """Where the run writes."""

    folder: Text = "runs/rl"
    """Log, checkpoints and exported models, relative to the working directory. Our choice: runs/ is ignored by git."""
    rollouts_every: CountOrZero = 20
    """Steps between written-out rollouts (query, reasoning, reward, top documents); 0 = never. Our choice: 20."""
    rollouts: Count = 4
    """Rollouts written each time, of as many prompts as there are. Our choice: 4, few enough to be read."""
