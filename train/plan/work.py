"""The work of a run: tokens per step, floating-point operations, and the hours that they take."""

from dataclasses import dataclass
from typing import Any

import torch

from search_r3_mteb.encoder.backbone import unwrap
from train.config.stages import RlConfig, SftConfig
from train.plan.memory import rows_at_once

PEAK_TFLOPS = {"bf16": 989.0, "float32": 67.0}
"""Of one H100 SXM: dense bfloat16, and float32 without tensor cores (NVIDIA's data sheet)."""
UTILISATION = 0.25
"""Share of the peak that forward and backward passes reach. See `Machine`."""
DECODE_UTILISATION = 0.02
"""The same of sampling, which reads all weights for one token per row."""


@dataclass(frozen=True)
class Machine:
    """What computes: devices, their peak in 1e12 operations per second, and the shares of it that are reached.

    The defaults are our choice: lower than large pretraining reaches (0.46, PaLM, arXiv 2204.02311, table 3), since
    rows here are short and of unequal length. Measure a step of your own run and give --utilisation its share.
    """

    gpus: int = 1
    peak_tflops: float | None = None
    utilisation: float = UTILISATION
    decode_utilisation: float = DECODE_UTILISATION

    def __post_init__(self) -> None:
        shares = {"--utilisation": self.utilisation, "--decode-utilisation": self.decode_utilisation}
        for name, share in shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} = {share} must be above 0 and at most 1: it is a share of the peak.")
        if self.gpus < 1 or (self.peak_tflops is not None and not self.peak_tflops > 0):
            raise ValueError(f"--gpus = {self.gpus} and --peak-tflops = {self.peak_tflops} must be above 0.")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rendered document, of a query's prompt and of a trace, and the share of rows that have one."""

    document: float
    query: float
    reply: float
    traced: float
    measured: bool


@dataclass(frozen=True)
class Work:
    """Of one optimizer step over all devices: rows and tokens by part, and operations of passes and of sampling."""

    rows: int
    tokens: dict[str, float]
    passes: float
    sampling: float

    def hours(self, steps: int, machine: Machine, peak_tflops: float) -> float:
        """Hours of `steps` steps, without evaluation, checkpoints and what the processor does."""
        peak = machine.gpus * peak_tflops * 1e12
        seconds = self.passes / (peak * machine.utilisation) + self.sampling / (peak * machine.decode_utilisation)
        return steps * seconds / 3600


@dataclass(frozen=True)
class _Cost:
    """Operations of a model: of a token through its layers, and of a position's logits."""

    layers: float
    head: float
    attention: float  # per token and token before it
    backward: float  # in forwards: 2 where every weight has a gradient, 1 where only activations have one
    again: float  # forwards that gradient checkpointing repeats

    @classmethod
    def of(cls, model: Any, *, checkpointing: bool) -> "_Cost":
        causal = unwrap(model)
        shape = causal.config.get_text_config()
        head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
        own = {id(p) for layer in (head, embedding) if layer is not None for p in layer.parameters()}
        inside = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in own)
        matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in own]
        trained = sum(p.numel() for p in matrices if p.requires_grad) / max(inside, 1)
        return cls(
            layers=2.0 * inside,
            head=2.0 * shape.hidden_size * shape.vocab_size,
            attention=4.0 * shape.num_hidden_layers * shape.hidden_size,
            backward=1 + trained,
            again=float(checkpointing),
        )

    def forward(self, tokens: float, length: float) -> float:
        """One pass over `tokens` tokens in rows of `length`: causal attention sees half of the row on average."""
        return tokens * (self.layers + self.attention * length / 2)

    def train(self, tokens: float, length: float, extra: float = 0.0) -> float:
        """Forward, repeated forward, backward, and `extra` further forwards."""
        return self.forward(tokens, length) * (1 + self.again + self.backward + extra)

    def scores(self, positions: float) -> float:
        """Logits with gradient, which are recomputed in backward (`token_scores`)."""
        return positions * self.head * (2 + self.backward)


def work_of(model: Any, config: SftConfig | RlConfig, lengths: Lengths, gpus: int) -> Work:
    """The work of one step; matrices count 2 operations per weight and token forward, 4 backward."""
    cost = _Cost.of(model, checkpointing=config.model.gradient_checkpointing)
    return (
        _stage_two(cost, config, lengths) if isinstance(config, RlConfig) else _stage_one(cost, config, lengths, gpus)
    )


def longest(config: SftConfig | RlConfig) -> Lengths:
    """The upper bound where no row is at hand: every text fills max_length, and every reasoning its budget."""
    reply = config.rollout.max_reasoning_tokens if isinstance(config, RlConfig) else config.data.max_length
    return Lengths(config.data.max_length, config.data.max_length, reply, 1.0, measured=False)


def peak_of(config: SftConfig | RlConfig, model: Any, machine: Machine) -> float:
    """The peak in 1e12 operations per second, of the type that the run computes in."""
    if machine.peak_tflops is not None:
        return machine.peak_tflops
    half = config.optimization.mixed_precision == "bf16" or next(model.parameters()).dtype == torch.bfloat16
    return PEAK_TFLOPS["bf16" if half else "float32"]


def _stage_one(cost: _Cost, config: SftConfig, lengths: Lengths, gpus: int) -> Work:
    loss, rows = config.loss, config.optimization.batch_size
    contrasted = loss.infonce or loss.triplet or loss.distill
    documents = rows * (1 + (config.data.hard_negatives if loss.hard_negatives else 0)) if contrasted else 0
    traced = 0.0 if loss.distill_direct else rows * lengths.traced
    whole = lengths.query + lengths.reply
    tokens = {
        "documents": documents * lengths.document,
        "queries": rows * lengths.query,
        "reasoned queries": traced * whole,
    }
    # Cached gradients: where a column has several mini-batches, every row runs once more, without a graph.
    parts = rows_at_once(config, gpus)[0] < rows / gpus
    twice = float(bool(contrasted) and parts)
    passes = cost.train(tokens["documents"], lengths.document, twice) + cost.train(
        tokens["queries"], lengths.query, twice
    )
    passes += cost.train(tokens["reasoned queries"], whole, twice)
    said = traced * lengths.reply + rows
    if loss.reply or loss.kl:
        passes += cost.scores(said)
    if loss.kl:
        passes += cost.forward(tokens["reasoned queries"], whole) + 2 * said * cost.head
    return Work(rows, tokens, passes, 0.0)


def _stage_two(cost: _Cost, config: RlConfig, lengths: Lengths) -> Work:
    rollout, prompts = config.rollout, config.rollout.prompts_per_step
    rows = prompts * rollout.group_size
    said = rows * lengths.reply
    whole = lengths.query + lengths.reply
    tokens = {"rollouts": rows * whole, "of them sampled": said, "documents": prompts * lengths.document}
    budget = config.corpus_cache.budget_tokens if config.corpus_cache.policy not in ("none", "frozen") else 0
    audit = config.corpus_cache.audit_every
    audited = config.corpus_cache.audit_rows * lengths.document / audit if audit else 0.0
    tokens["re-encoded documents"] = budget + audited
    updates = config.policy.updates_per_step
    passes = updates * (cost.train(rows * whole, whole) + cost.scores(said))
    if config.contrastive.weight:
        passes += updates * cost.train(tokens["documents"], lengths.document)
    if config.policy.kl_weight:
        passes += updates * (cost.forward(rows * whole, whole) + said * cost.head)
    passes += cost.forward(budget + audited, lengths.document) + cost.forward(prompts * lengths.query, lengths.query)
    if config.replay.rows_per_step:
        tokens["replayed"] = config.replay.rows_per_step * (lengths.document + 2 * lengths.query)
        passes += cost.train(tokens["replayed"], lengths.query)
    sampling = cost.forward(said, whole + lengths.query) + said * cost.head
    return Work(rows, tokens, passes, sampling)


def encoding(model: Any, documents: int, lengths: Lengths) -> float:
    """Operations of encoding the whole corpus once, as stage 2 does before its first step."""
    return _Cost.of(model, checkpointing=False).forward(documents * lengths.document, lengths.document)
