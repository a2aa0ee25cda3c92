"""The memory of one device: what stays, and what each phase of a step adds, from the model's shape and the settings."""

from dataclasses import dataclass
from typing import Any

import torch

from search_r3_mteb.encoder.backbone import unwrap
from train.config.stages import RlConfig, SftConfig
from train.losses.stage1 import POSITIONS_AT_ONCE

_HEAD_COPIES = 3  # logits, their softmax and their gradient, float32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device without sharding: what stays through a step, and what its phases add, one at a time.

    `compute_copy` are the weights in bfloat16 that autocast keeps beside float32 ones. `activations` are those of one
    mini-batch, `head` the logits of the positions that are scored at once, `rollouts` the keys and values of rows that
    decode together (0 in stage 1).
    """

    parameters: int
    trainable_parameters: int
    weights: int
    gradients: int
    optimizer: int
    base_copy: int
    compute_copy: int
    activations: int
    head: int
    rollouts: int

    @property
    def total(self) -> int:
        """The larger of the two phases: backward, and sampling, when there are no gradients."""
        stays = self.weights + self.optimizer + self.base_copy + self.compute_copy
        return stays + max(self.gradients + self.activations + self.head, self.rollouts + self.head)

    def lines(self) -> list[str]:
        """The estimate in words."""
        parts = ("weights", "gradients", "optimizer", "base_copy", "compute_copy", "activations", "head", "rollouts")
        unit, size = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        shown = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / size:.2f}" for name in (*parts, "total"))
        share = self.trainable_parameters / self.parameters
        return [
            f"parameters: {self.parameters:,}, trainable: {self.trainable_parameters:,} ({share:.2%})",
            f"memory estimate per device in {unit}: {shown} (without sharding; the total holds the larger phase)",
        ]


def estimate(model: Any, config: SftConfig | RlConfig, gpus: int = 1) -> MemoryEstimate:
    """The memory of a step of `config` on each of `gpus` devices; `model` may lie on the meta device.

    Activations: 34 bytes per token, layer and unit of width at 2 bytes per value (Korthikanti et al., arXiv 2205.05198,
    eq. 2, without the attention matrix, which fused attention never stores), with the feed-forward part, 16 of them for
    a width of 4, in proportion to its own width and three matrices. With gradient checkpointing: each layer's input,
    and one whole layer. AdamW holds two moments per trained weight, Muon one per matrix (counted as two).
    """
    shape = unwrap(model).config.get_text_config()
    half = config.optimization.mixed_precision == "bf16"
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    whole = sum(p.numel() * p.element_size() for p in trained)
    value = 2 if half or parameters[0].dtype == torch.bfloat16 else 4
    rows, length = rows_at_once(config, gpus)
    layers, width = shape.num_hidden_layers, shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * width
    layer = int(rows * length * value * (9 * width + 4 * inner / 2))
    stream = 4 if half else value  # autocast adds up the residual stream in float32
    inputs = layers * rows * length * width * stream
    reads_base = config.reads_start if isinstance(config, RlConfig) else config.loss.kl
    checkpointing = config.model.gradient_checkpointing
    # Autocast keeps copies of weights that learn; those of frozen ones live as long as the graph that needs them.
    cast = trained if checkpointing else parameters
    return MemoryEstimate(
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in trained),
        weights=weights,
        gradients=whole,
        optimizer=2 * whole,
        # Of an adapter: its start, and the present values while the start is put back.
        base_copy=0 if not reads_base else weights if config.model.lora is None else 2 * whole,
        compute_copy=sum(2 * p.numel() for p in cast if p.ndim == 2 and p.dtype == torch.float32) if half else 0,
        activations=inputs + layer if checkpointing else layer * layers,
        head=_HEAD_COPIES * min(POSITIONS_AT_ONCE, rows * length) * shape.vocab_size * 4,
        rollouts=config.rollout.batch_tokens * _bytes_per_position(shape, value) if isinstance(config, RlConfig) else 0,
    )


def rows_at_once(config: SftConfig | RlConfig, gpus: int) -> tuple[int, int]:
    """Rows of one forward with gradient on each of `gpus` devices, and the tokens of the longest one, at most."""
    optimization, longest = config.optimization, config.data.max_length
    if isinstance(config, RlConfig):
        share = config.rollout.prompts_per_step * config.rollout.group_size // gpus
        longest += config.rollout.max_reasoning_tokens + 1
    else:
        share = config.optimization.batch_size // gpus
        documents = 1 + (config.data.hard_negatives if config.loss.hard_negatives else 0)
        share *= 1 if optimization.mini_batch_size else documents
    return max(1, min(optimization.mini_batch_size or share, share)), longest


def _bytes_per_position(shape: Any, value: int) -> int:
    """Keys and values of one position in all layers."""
    heads = shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    kept = getattr(shape, "num_key_value_heads", None) or heads
    return int(2 * shape.num_hidden_layers * kept * size * value)
