"""Attention masks of decode steps over left-aligned rows: each row sees the columns up to its own position.

They are handed to the model ready-made: transformers would build one from a padding mask at every step, and would
measure the window of windowed layers from the last column instead of the row's own position.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# Model types whose configuration names a window that their own forward does not apply.
_UNUSED_WINDOW = ("moshi",)


class DecodeMasks:
    """Makes the `attention_mask` argument of one-token steps, in the form that the model's attention wants.

    sdpa: boolean (rows, 1, 1, columns); eager: the same, added to the scores; other kernels and models outside
    transformers' attention interface: (rows, columns). Models that mix windowed and full layers get one mask for each
    kind. Where such a mask cannot express the window, the object is `blind`: only rows at one position, which need no
    mask, may be stepped together.
    """

    def __init__(self, backbone: Any) -> None:
        config = backbone.config.get_text_config()
        self.dtype = backbone.dtype
        implementation = getattr(config, "_attn_implementation", None)
        interface = bool(getattr(type(backbone), "_supports_attention_backend", False))
        self.form = implementation if interface and implementation in ("sdpa", "eager") else "padding"
        self.window: Any = None if config.model_type in _UNUSED_WINDOW else getattr(config, "sliding_window", None)
        self.chunk: Any = getattr(config, "attention_chunk_size", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kinds = ["full_attention" if self.window is None else "sliding_attention"]
        self.kinds = sorted(set(kinds))
        # GPT-Neo's local layers measure their window from the last column, whatever the mask says.
        local = "local" in (getattr(config, "attention_layers", None) or ())
        windowed = any(limit and kind in self.kinds for kind, limit in self._limits().items())
        self.blind = self.form == "padding" and (local or windowed)
        self._columns = torch.arange(0, device=backbone.device)

    def __call__(self, positions: Int[Tensor, " rows"], width: int) -> Any:
        """The mask for rows whose new token lies at `positions`, over the first `width` columns."""
        if len(self._columns) < width:
            self._columns = torch.arange(2 * width, device=positions.device)
        columns, own = self._columns[:width], positions[:, None]
        seen = columns <= own
        limits = self._limits().items()
        limited = {kind: limit for kind, limit in limits if kind in self.kinds and limit and limit < width}
        if not limited:
            return self._formed(seen)
        masks = {kind: self._formed(seen & self._near(kind, columns, own)) for kind in limited}
        masks |= {kind: self._formed(seen) for kind in self.kinds if kind not in limited}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _limits(self) -> dict[str, Any]:
        return {"sliding_attention": self.window, "chunked_attention": self.chunk}

    def _near(self, kind: str, columns: Tensor, own: Tensor) -> Bool[Tensor, "rows columns"]:
        if kind == "sliding_attention":
            return columns > own - self.window
        return columns // self.chunk == own // self.chunk

    def _formed(self, seen: Bool[Tensor, "rows columns"]) -> Tensor:
        if self.form == "padding":
            return seen.long()
        seen = seen[:, None, None, :]
        if self.form == "sdpa":
            return seen
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, lowest)
