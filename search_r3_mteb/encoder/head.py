"""The language-model head: hidden states to logits, with the scalings that some architectures apply."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.token_rows import bare


class Head:
    """The language-model head of a causal LM with its scalings, as the architecture's own forward applies them.

    Decoding samples from it and training learns it. Raises ValueError for a model that has no head.
    """

    def __init__(self, causal: Any) -> None:
        self._embeddings = causal.get_output_embeddings()
        if self._embeddings is None:
            raise ValueError(
                f"{type(causal).__name__} has no language-model head, so it cannot reason. Load the checkpoint as a "
                "causal LM."
            )
        # What stands between hidden states and logits: the projection, in some architectures after transforms.
        *self.transforms, self.projection = _path(causal, self._embeddings)
        config = causal.config.get_text_config()
        self.scale = 1.0
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            self.scale *= config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # Granite divides, HyperCLOVA X multiplies
            self.scale *= config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3

    @property
    def dim(self) -> int:
        """Width of a hidden state."""
        # The width that the path's first matrix reads: that of the projection itself may be smaller (Electra, RemBERT).
        first = next(p for part in (*self.transforms, self.projection) for p in part.parameters() if p.dim() == 2)
        return int(first.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return int(bare(self._embeddings).weight.shape[0])  # peft's wrapper would put a whole matrix together

    def __call__(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """Next-token logits in float32."""
        for part in self.transforms:
            hidden = part(hidden)
        logits: Tensor = self.projection(hidden).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def _path(causal: Any, embeddings: Any) -> list[Any]:
    """The modules between hidden states and logits, in the order in which they are applied.

    Usually the projection alone, in BERT and its kind a module that holds a transform too. Where the causal LM has
    other modules with weights between its backbone and the projection, they are the transform (ModernBERT's decoder,
    Electra); the probe of a loaded checkpoint compares the result with the model's own logits.
    """
    inputs = causal.get_input_embeddings()
    projection = next(
        part
        for part in causal.modules()
        if embeddings in set(part.modules()) and (part is embeddings or inputs not in set(part.modules()))
    )
    siblings = list(causal.children())
    holds_inputs = [i for i, part in enumerate(siblings) if inputs in set(part.modules())]
    if projection not in siblings or not holds_inputs:
        return [projection]
    between = siblings[holds_inputs[0] + 1 : siblings.index(projection)]
    return [*(part for part in between if any(True for _ in part.parameters())), projection]
