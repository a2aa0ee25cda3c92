"""The reasoning about one text, and the vector that it led to."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class Thought:
    """The reasoning about one text, and the vector it led to.

    `token_ids` are the sampled ids without the embed token, or those of a reasoning that was given (`given`).
    `finished` is False when the embed token was forced: the budget was spent, or the model ended its turn; of a given
    reasoning, when it was cut. `vector` (dim,) is float32 and of unit length; where it is anchored, `direct` and
    `reasoned` are its two parts, of unit length too, else both are None.
    """

    text: str
    token_ids: list[int]
    finished: bool
    vector: Float32[np.ndarray, " dim"] = field(repr=False)
    given: bool = False
    direct: Float32[np.ndarray, " dim"] | None = field(default=None, repr=False)
    reasoned: Float32[np.ndarray, " dim"] | None = field(default=None, repr=False)

    @property
    def abstained(self) -> bool:
        """Whether there was no reasoning, because the direct ranking was sure enough (`evaluation/abstaining.py`)."""
        return self.direct is not None and self.reasoned is None
