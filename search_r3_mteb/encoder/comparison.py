"""Comparison of two models on a few texts: a source, and what was saved, merged or exported from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.backbone import Backbone, unwrap

# Different lengths, white space, digits and other scripts; a few dozen tokens in all.
TEXTS = ("iron rusts when water meets it", " two  spaces\n", "naïve 東京 1234567890", "<x>")
_LONGEST = 48  # tokens of one text

# The largest difference of a component, as a share of the row's root mean square (our choice).
SAME = 1e-3
"""Of equal weights in one precision on one device; measured 1e-6 in float32."""
OTHER_DEVICE = 0.02
"""Of float32 weights on two kinds of device, whose matrix products may use shorter mantissas."""
ROUNDED = 0.25
"""Of half-precision weights that were merged or run on another device: the rounding of every layer adds up."""


@dataclass(frozen=True)
class ProbeOutputs:
    """States (rows, dim) and next-token logits (rows, vocabulary) at the last token of each prompt, float32."""

    vectors: Float[Tensor, "rows dim"]
    logits: Float[Tensor, "rows vocabulary"]


def probe_prompts(tokenizer: Any, embed_token_id: int) -> list[list[int]]:
    """Token ids of each text alone, and followed by the embed token."""
    texts = [tokenizer.encode(text, add_special_tokens=False)[:_LONGEST] for text in TEXTS]
    return [ids for text in texts if text for ids in (text, [*text, embed_token_id])]


def probe_outputs(model: Any, embed_token_id: int, prompts: Sequence[Sequence[int]]) -> ProbeOutputs:
    """The outputs of a causal LM, as the engine computes them."""
    backbone = Backbone(model, embed_token_id)
    with backbone.evaluating():
        states = backbone.prefill(prompts, 0, None)
        return ProbeOutputs(states.float().cpu(), backbone.logits(states).cpu())


def allowed_difference(source: Any, *, merged: bool = False, other_device: bool = False) -> float:
    """How far the copy of a model may be from it, by its precision and what was done to it."""
    if unwrap(source).dtype != torch.float32:
        return ROUNDED if merged or other_device else SAME
    return OTHER_DEVICE if other_device else SAME


def refuse_difference(source: ProbeOutputs, copy: ProbeOutputs, allowed: float, what: str) -> None:
    """Raises ValueError, with what differs and by how much, for a copy that is another model than its source."""
    for name in ("vectors", "logits"):
        one, other = getattr(source, name), getattr(copy, name)
        if one.shape != other.shape:
            raise ValueError(
                f"{what} gives {name} of shape {tuple(other.shape)}, its source {tuple(one.shape)}. It was not kept."
            )
        scale = one.square().mean(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        difference = float(((one - other).abs() / scale).max())
        if not difference <= allowed:
            cosine = float(torch.nn.functional.cosine_similarity(one, other).min())
            raise ValueError(
                f"{what} gives other {name} than its source: by up to {difference:.3g} of their root mean square "
                f"(allowed: {allowed:g}), lowest cosine {cosine:.3f}. It would be another model, so it was not kept, "
                "and what was there before is as it was. The adapter or the architecture cannot be saved this way: "
                "use the source itself. (A model cast in place, as by model.bfloat16(), has rounded its positions' "
                "frequencies, which no folder holds: load it with dtype='bfloat16' instead.)"
            )
