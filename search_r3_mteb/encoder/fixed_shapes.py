"""Forward passes whose shapes do not depend on the other rows, so that a row's numbers do not either.

A matrix product adds up in an order that its kernel chooses by the number of rows, so a row's hidden state depends on
how many rows run beside it: by some 1e-6 in float32, and in bfloat16 by so much that the next token may be another
one. A kernel gives a row the same bits wherever it lies in a batch of one shape, whatever the other rows hold. So:

    decode   always the same number of rows, places without a row included, over columns rounded up
    prefill  each prompt padded to a multiple, with as many rows as that width gets, filled up with copies

and nothing is shared between prompts, because how many tokens they have in common depends on the prompts. What this
costs, and what it is worth: results/batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FixedShapes:
    """`rows` decode at once over a multiple of `columns`; prompts of at most `tokens` tokens at once, padded, are read.

    A prompt is padded to a multiple of `padding` tokens; a longer one than `tokens` is read alone.
    """

    rows: int
    columns: int
    tokens: int
    padding: int

    @property
    def spare(self) -> int:
        """Places beside `rows` for the copies that fill up a batch of prompts."""
        return max(1, self.tokens // self.padding) - 1

    def padded(self, length: int) -> tuple[int, int]:
        """Rows and width of the forward pass that reads a prompt of this many tokens."""
        width = -(-length // self.padding) * self.padding
        return max(1, self.tokens // width), width

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers in batches of one shape, the longest rows first."""
        batches: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
            shape = self.padded(lengths[row])
            if batches and self.padded(lengths[batches[-1][0]]) == shape and len(batches[-1]) < shape[0]:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches


# Our choice: few rows cost little when few are left, many use the processor better (results/batches compares).
SHAPES = {"cpu": FixedShapes(16, 64, 256, 32), "cuda": FixedShapes(64, 128, 4096, 128)}
# For models whose rows can only be stepped together at one position: each row by itself.
ALONE = FixedShapes(1, 1, 1, 1)


def fixed_shapes(config: Any, device_type: str, abreast: bool) -> FixedShapes:
    """The shapes for a model with this text configuration; `abreast`: its rows step together only at one position.

    Raises ValueError for a mixture of experts: how many tokens an expert gets depends on all rows.
    """
    experts = _experts(config.to_dict())
    if any(isinstance(value, int) and value > 1 for value in experts.values()):
        raise ValueError(
            f"batch_invariant=True: {config.model_type} is a mixture of experts ({experts}), and how many tokens an "
            "expert multiplies at once depends on all rows of a batch, so no row's numbers are its own. Leave the "
            "setting out, and use dtype='float32', where batches change little."
        )
    return ALONE if abreast else SHAPES.get(device_type, SHAPES["cpu"])


def _experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of experts, in its parts too."""
    found = {name: value for name, value in values.items() if name in _EXPERTS and value}
    for part in values.values():
        if isinstance(part, Mapping):
            found |= _experts(part)
    return found


_EXPERTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_experts"),
    *("moe_num_primary_experts", "expert_num"),
)
