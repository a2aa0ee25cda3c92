"""The sections of a run's configuration that both training stages share.

Under every field: what it is, and where its value comes from. [P] the authors' own files, [S] somebody's summary of the
paper, else a citation, else "our choice" with the reason.
"""

from dataclasses import dataclass
from typing import Literal

from train.schema import Count, CountOrNone, Positive, Settings, Share, Weight

Mode = Literal["direct", "reason"]


@dataclass(frozen=True)
class Lora(Settings):
    """Low-rank adapters (arXiv 2106.09685) through peft; absent = every weight is trained."""

    rank: Count = 16
    """Rank of the update. Our choice: peft's example value; the paper names none."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank. Our choice: twice the rank, the usual pairing."""
    dropout: Share = 0.0
    """Dropout before the adapter. Our choice: 0, so that a policy's log-probabilities equal the sampler's."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Module names that get an adapter. Our choice: every linear layer, as in QLoRA (arXiv 2305.14314)."""
    train_embed_token: bool = True
    """Train the embed token's own row beside the adapter. Our choice: a new token without training stays noise."""

    def check(self) -> None:
        """An adapter without a place is no adapter."""
        if not self.target_modules:
            raise ValueError(
                'target_modules is empty, so nothing would be trained. Set target_modules = ["all-linear"].'
            )


@dataclass(frozen=True)
class Scratch(Settings):
    """The shape of a Qwen2 causal LM with random weights: how the bundled nano model begins."""

    hidden_size: Count = 128
    """Width, also the dimension of the vectors. Our choice: the smallest that learns hopworld in minutes."""
    intermediate_size: Count = 512
    """Width inside the feed-forward layers. Our choice: four times the width, as in GPT-2."""
    layers: Count = 4
    """Number of blocks. Our choice: enough for a lookup after a lookup."""
    heads: Count = 4
    """Attention heads; must divide hidden_size. Our choice: heads of 32."""
    key_value_heads: Count = 4
    """Heads of keys and values; must divide heads. Our choice: no sharing at this size."""

    def check(self) -> None:
        """Attention splits the width evenly."""
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide hidden_size = {self.hidden_size}: heads have equal width."
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads = {self.key_value_heads} does not divide heads = {self.heads}.")


@dataclass(frozen=True)
class Model(Settings):
    """What is trained."""

    path: str | None = None
    """Folder, bundled name or hub id of the model to start from. The paper's: Qwen2.5-1.5B-Instruct [P]."""
    revision: str | None = None
    """Commit of a hub id. Our choice: absent is the newest, pin it for a result that is published."""
    scratch: Scratch | None = None
    """Instead of `path`: random weights of this shape. Our choice: only nano uses it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; "auto" is the checkpoint's. Our choice: float16 is not offered, its range overflows in training."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (arXiv 1604.06174): less memory, a third more time. Our choice: off."""
    trust_remote_code: bool = False
    """Run the checkpoint's own Python. Our choice: off, a model folder is not code that you have read."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names end so are not trained. Our choice: none; mini freezes the word embeddings, which its head shares: the
    reply's gradient moves every row at every step, and with them all vectors."""
    lora: Lora | None = None
    """Adapter instead of full fine-tuning. Our choice: absent, the paper trains all weights as far as is known [S]."""

    def check(self) -> None:
        """Exactly one origin; an adapter needs weights that mean something."""
        if (self.path is None) == (self.scratch is None):
            raise ValueError(
                "path and scratch exclude each other: weights are either loaded or random. Set exactly one: path to a folder "
                "or id, or a [model.scratch] section."
            )
        if self.scratch is not None and self.lora is not None:
            raise ValueError(
                "scratch and lora exclude each other: LoRA freezes the base, and a random frozen base never learns. Remove "
                "[model.lora] to train every weight."
            )
        if self.freeze and self.lora is not None:
            raise ValueError("freeze and lora exclude each other: an adapter trains nothing but itself. Remove freeze.")
        if self.scratch is not None and self.revision is not None:
            raise ValueError("revision belongs to a hub id, but the weights come from scratch. Remove revision.")


@dataclass(frozen=True)
class Optimization(Settings):
    """The optimizer and its schedule, counted in optimizer steps."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (arXiv 1711.05101), or Muon (arXiv 2502.16982) for the layers' matrices beside AdamW for embeddings, norms and biases;
    Muon is for full fine-tuning. Our choice: adamw, the trainer default of transformers; nano learns faster with Muon (results/rl/LOG.md)."""
    steps: Count = 1000
    """Optimizer steps of the whole run. Our choice; the paper's number is not known."""
    learning_rate: Positive = 1e-5
    """Peak rate. Our choice: usual for fine-tuning 1.5B weights; LoRA and nano set their own."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape after the warm-up. Our choice: linear to final_share, the trainer default of transformers."""
    warmup_steps: CountOrNone = 0
    """Steps of linear rise from zero. Our choice: none, a config that needs one says so."""
    final_share: Share = 0.0
    """Rate at the last step as a share of learning_rate. Our choice: 0."""
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
    seed: CountOrNone = 0
    """Seed of the weights that are random, of dropout, sampling and the order of rows. Our choice: 0."""

    def check(self) -> None:
        """The schedule can be followed."""
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves nothing of steps = {self.steps}: the rate would never reach "
                "learning_rate. Lower warmup_steps."
            )
        if self.schedule == "constant" and self.final_share:
            raise ValueError(
                'final_share has no meaning with schedule = "constant". Remove it or set schedule = "linear".'
            )
        if max(self.betas) >= 1:
            raise ValueError(
                f"betas = {list(self.betas)}: both must be below 1, or a moment would never forget its start."
            )


@dataclass(frozen=True)
class Evaluate(Settings):
    """Evaluation on data.evaluation during the run."""

    every: CountOrNone = 100
    """Optimizer steps between evaluations; 0 = only at the end. Our choice: about ten in a default run."""
    modes: tuple[Mode, ...] = ("direct", "reason")
    """Which query modes. Issue 3: both."""
    max_queries: Count | None = None
    """At most so many queries per set, a fixed random draw. Our choice: absent, all of them."""
    max_reasoning_tokens: Count = 256
    """Budget of the reasoning in tokens, after which the embed token is forced. The encoder's default."""
    batch_tokens: Count = 16384
    """Padded tokens per forward. The encoder's default."""
    best_by: Mode = "reason"
    """The mode whose mean nDCG@10 chooses the best checkpoint. Our choice: reason, what the project is about."""

    def check(self) -> None:
        """The best is chosen by something that is measured."""
        if self.best_by not in self.modes:
            raise ValueError(
                f'best_by = "{self.best_by}" is not among modes = {list(self.modes)}, so no checkpoint could be called best. '
                f'Add "{self.best_by}" to modes or change best_by.'
            )


@dataclass(frozen=True)
class Checkpoints(Settings):
    """What a killed run resumes from."""

    every: CountOrNone = 100
    """Optimizer steps between checkpoints; 0 = only at the end. Our choice: at most a hundred steps are lost."""
    keep: Count = 2
    """Newest checkpoints that stay; the best stays besides. Our choice: 2, so that a damaged newest has one before it."""
    resume: Literal["auto", "never", "fallback"] = "auto"
    """auto: from the newest checkpoint in output.folder; fallback: from the newest that is sound; never: start anew and
    refuse a folder that has checkpoints. Our choice: auto, so that the same command continues a killed run."""


@dataclass(frozen=True)
class Output(Settings):
    """Where the run writes."""

    license: str = "other"
    """Licence of the trained model, for its card. Our choice: "other", until its owner says what the base and the data allow."""
    log_every: Count = 1
    """Optimizer steps per line of log.jsonl. Our choice: every step, a line is cheap."""
    tensorboard: bool = True
    """Also write TensorBoard files. Issue 3 asks for them."""
