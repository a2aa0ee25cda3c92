"""How the backbone of a causal LM is found and called: its positions, and the name of its cache's argument."""

import inspect
from typing import Any

from torch import Tensor


class Architecture:
    """The backbone of a causal LM, and what differs between architectures when it is called.

    `backbone` maps token ids to final-norm hidden states. `first_position` is the position of the first token: 0, or in
    RoBERTa and its kind, whose position table begins after the padding id, that id plus one. `one_position`: the
    backbone counts positions from the cache's length and accepts none, so only rows at one position can be stepped
    together (BART's decoder and its kind, RoFormer); a model whose attention sees distances only (ALiBi) needs no
    positions and is not meant.
    """

    def __init__(self, causal: Any) -> None:
        self.backbone = backbone_of(causal)
        accepted = inspect.signature(self.backbone.forward).parameters
        self._positions = "position_ids" in accepted
        # transformers 5.24 renamed the argument, and models that are newer swallow the old name without a word.
        self._cache = "cache" if "cache" in accepted else "past_key_values"
        self.first_position = first_position(causal) if self._positions else 0
        self.one_position = not self._positions and not any("alibi" in name for name in dir(self.backbone))

    def inputs(self, positions: Tensor, cache: Any = None) -> dict[str, Any]:
        """The backbone's arguments for tokens at these positions, counted from 0, and for this cache."""
        if self.first_position:
            positions = positions + self.first_position
        return ({"position_ids": positions} if self._positions else {}) | {self._cache: cache}


def backbone_of(causal: Any) -> Any:
    """The module that the causal LM's own forward calls for hidden states."""
    base = causal.base_model
    if base is causal:  # Llama 4's text model names a base that it does not have
        inputs = causal.get_input_embeddings()
        base = next(child for child in causal.children() if inputs in set(child.modules()))
    return getattr(base, "decoder", base)  # BART, OPT and their kind wrap what their causal LM calls


def positions_of(config: Any) -> int | None:
    """Number of positions that a text configuration allows; None where it does not say.

    Two rotary scalings, longrope (Phi-3) and dynamic, choose their frequencies by the longest row of a batch once it
    passes the original window: a vector would then depend on the texts beside it. So they end at that window.
    """
    window = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (rotary, *(each for each in rotary.values() if isinstance(each, dict))):
        if one.get("rope_type", one.get("type")) in ("longrope", "dynamic"):
            original = one.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None) or window
            window = original if window is None else min(window, original)
    return None if window is None else int(window)


def first_position(causal: Any) -> int:
    """The position of a text's first token: 0, or the padding id plus one where the position table begins after it."""
    for module in backbone_of(causal).modules():
        padding = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding, int):
            return padding + 1
    return 0
