"""The anchored vector of a query: its direct vector and the one after its reasoning, in one.

    v = normalise(direct + anchor x reasoned)

Both are of unit length, so a reasoning that leads astray moves the vector within bounds. At 0 it is the direct vector;
the larger the anchor, the closer to the reasoned one. The form and its weight are our choice, to be measured:
`search-r3 tune` chooses the weight on a development split.

It costs one forward pass over the direct prompt more, and no token to generate. The two prompts begin alike for as long
as their system prompts do, a dozen tokens, so nothing of the one pass can serve the other.
"""

from typing import Literal, TypeAlias

import numpy as np

from search_r3_mteb.encoder.setting_types import check_number
from search_r3_mteb.search.arrays import Vectors

Anchor: TypeAlias = 'float | Literal["auto"] | None'


def check_anchor(name: str, value: object) -> None:
    """TypeError for what is not a number, ValueError for a negative or an infinite one, or none."""
    check_number(name, value)
    if not 0 <= float(value) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"{name}={value!r} must be 0 or a positive number: the weight of the reasoned vector.")


def anchored(direct: Vectors, reasoned: Vectors, anchor: float) -> Vectors:
    """The sums direct + anchor x reasoned for rows (n, dim), not normalised: float64, so that no bit of either is lost.

    >>> anchored(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 0.75).tolist()
    [[1.0, 0.75]]
    """
    sums: Vectors = direct.astype(np.float64) + anchor * reasoned.astype(np.float64)
    return sums
