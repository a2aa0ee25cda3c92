"""The attention mask of a decode step over left-aligned rows: each row sees the columns up to its own position.

Made here and handed to the model ready-made: transformers would build one from a padding mask at every step, and for layers with
a window it would measure the window from the last column, not from the row's own position.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class DecodeMasks:
    """Makes the `attention_mask` argument of one-token steps, in the form that the model's attention wants.

    sdpa: boolean (rows, 1, 1, columns); eager: the same, added to the scores; other kernels and models outside transformers'
    attention interface: (rows, columns). Models that mix windowed and full layers get one mask for each kind.
    """

    def __init__(self, backbone: Any) -> None:
        config = backbone.config.get_text_config()
        self.name = type(backbone).__name__
        self.dtype = backbone.dtype
        implementation = getattr(config, "_attn_implementation", None)
        interface = bool(getattr(type(backbone), "_supports_attention_backend", False))
        self.form = implementation if interface and implementation in ("sdpa", "eager") else "padding"
        self.implementation = implementation
        self.window: Any = getattr(config, "sliding_window", None)
        self.chunk: Any = getattr(config, "attention_chunk_size", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kinds = ["full_attention" if self.window is None else "sliding_attention"]
        self.kinds = sorted(set(kinds))
        self._columns = torch.arange(0, device=backbone.device)

    def __call__(self, positions: Int[Tensor, " rows"], width: int) -> Any:
        """The mask for rows whose new token lies at `positions`, over the first `width` columns."""
        if len(self._columns) < width:
            self._columns = torch.arange(2 * width, device=positions.device)
        columns, own = self._columns[:width], positions[:, None]
        seen = columns <= own
        limits = {"sliding_attention": self.window, "chunked_attention": self.chunk}
        limited = {kind: limit for kind, limit in limits.items() if kind in self.kinds and limit and limit < width}
        if not limited:
            return self._formed(seen)
        if self.form == "padding":
            raise ValueError(
                f"{self.name} attends within a window ({limited}) and a row has {width} tokens; with attn_implementation="
                f"{self.implementation!r} rows of different lengths cannot be told where theirs begins. Load the model with "
                "attn_implementation='sdpa' or 'eager'."
            )
        masks = {kind: self._formed(seen & self._near(kind, columns, own)) for kind in limited}
        masks |= {kind: self._formed(seen) for kind in self.kinds if kind not in limited}
        return masks if len(masks) > 1 else next(iter(masks.values()))

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
