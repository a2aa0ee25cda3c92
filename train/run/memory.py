"""Parameter counts and a memory estimate, for `--dry-run`: known before a GPU is rented."""

from dataclasses import dataclass
from typing import Any

from search_r3_mteb.encoder.backbone import unwrap


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part on one device without sharding; activations are those of one mini-batch."""

    parameters: int
    trainable_parameters: int
    weights: int
    gradients: int
    optimizer: int
    base_copy: int
    activations: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.base_copy + self.activations

    def lines(self) -> list[str]:
        """The estimate in words."""
        parts = ("weights", "gradients", "optimizer", "base_copy", "activations", "total")
        shown = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / 2**30:.2f}" for name in parts)
        share = self.trainable_parameters / self.parameters
        return [
            f"parameters: {self.parameters:,}, trainable: {self.trainable_parameters:,} ({share:.2%})",
            f"memory estimate per device in GiB: {shown}",
        ]


def estimate(
    model: Any, *, rows: int, length: int, gradient_checkpointing: bool, base_copy: bool, compute_bytes: int
) -> MemoryEstimate:
    """Memory of a step with `rows` sequences of `length` tokens; `compute_bytes` is 2 in bf16, 4 in float32.

    Activations: 17 values per token, layer and unit of width (Korthikanti et al., arXiv 2205.05198, eq. 2: 34 bytes at
    2 bytes per value, without the attention matrix, which fused attention never stores); with gradient checkpointing
    the layers' inputs and one whole layer.
    """
    config = unwrap(model).config
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    layer = 17 * rows * length * config.hidden_size * compute_bytes
    layers = config.num_hidden_layers
    inputs = layers * rows * length * config.hidden_size * compute_bytes
    return MemoryEstimate(
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in trained),
        weights=weights,
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=sum(2 * p.numel() * p.element_size() for p in trained),
        base_copy=weights if base_copy else 0,
        activations=inputs + layer if gradient_checkpointing else layer * layers,
    )
