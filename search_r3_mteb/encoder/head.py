"""The language-model head: hidden states to logits, with the scalings that some architectures apply."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


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
        # All that stands between hidden states and logits: the projection, in BERT and its kind after a transform.
        inputs = causal.get_input_embeddings()
        self.projection = next(
            part
            for part in causal.modules()
            if self._embeddings in set(part.modules())
            and (part is self._embeddings or inputs not in set(part.modules()))
        )
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
        return int(self._embeddings.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return int(self._embeddings.weight.shape[0])

    def __call__(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """Next-token logits in float32."""
        logits: Tensor = self.projection(hidden).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
