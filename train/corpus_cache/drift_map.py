"""The drift map: an estimate of how documents moved that were not re-encoded.

At each refresh the re-encoded rows are pairs (value before, fresh value). A ridge regression fits how they moved, as an
affine function of where they were, and every other row is moved the same way. For a row whose encoded original is x,

    value = normalise([x, 1] @ C)         C = composition of the moves since x was encoded, (dim + 1, dim)

A row's value is thus always computed from its encoded original through one matrix: rounding errors do not accumulate,
and the value is a function of (original, step of its encoding, maps), which a crash cannot mix. The fit is a closed
loop: it regresses the error of the maps so far, so later fits correct the earlier ones.

    residual = fresh - value before
    G        = memory * G + [value, 1]^T [value, 1]              Gram matrix of this and earlier refreshes
    R        = solve(G + ridge * (pairs / dim + 3) * I, [value, 1]^T residual)
    C        = C + [C, e] @ R   for every step of encoding that rows still have

Sources: a linear map between two models' vectors is from Drift-Adapter (arXiv 2509.23471). The rest is ours. The ridge
of 0.3 pairs / dim cut the held-out reward error to a third on simulated drift. Measured on held-out queries along a
real run (results/corpus_cache): the constant, since documents mostly move together; the memory, recursive least squares
with forgetting; and the 3, evidence that a direction needs before it counts. With fewer pairs than dimensions a fit
without the last two is mostly noise, and worse than no map at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.search.arrays import Vectors
from train.config.corpus_cache import CorpusCacheSettings

PRIOR = 3.0


@dataclass
class DriftMap:
    """The moves so far, composed. `keys[i]` is the last step of encoding that `composed[i]` is for, ascending."""

    dim: int
    settings: CorpusCacheSettings = field(default_factory=CorpusCacheSettings)
    keys: Int[np.ndarray, " maps"] = field(default_factory=lambda: np.zeros(0, np.int64))
    composed: Float[np.ndarray, "maps dim1 dim"] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    gram: Float[np.ndarray, "dim1 dim1"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        if not len(self.keys):
            self.composed = np.zeros((0, self.dim + 1, self.dim), np.float32)
        if not self.gram.size:
            self.gram = np.zeros((self.dim + 1, self.dim + 1), np.float32)

    def fit(
        self, before: Vectors, fresh: Vectors
    ) -> tuple[Float[np.ndarray, "dim1 dim"], Float[np.ndarray, "dim1 dim1"]]:
        """The move R (dim + 1, dim) that takes `before` towards `fresh`, and the new memory G. Changes nothing."""
        known = np.concatenate([before, np.ones((len(before), 1), np.float32)], axis=1).astype(np.float64)
        gram = self.settings.map_memory * self.gram.astype(np.float64) + known.T @ known
        ridge = self.settings.map_ridge * (len(before) / self.dim + PRIOR)
        residual = fresh.astype(np.float64) - before
        move = np.linalg.solve(gram + ridge * np.eye(self.dim + 1), known.T @ residual)
        return move.astype(np.float32), gram.astype(np.float32)

    def keys_after(self, step: int, encoded_by: Callable[[int], int]) -> Int[np.ndarray, " maps"]:
        """Steps of encoding that need a map of their own once the rows encoded before `step` have moved.

        `encoded_by(s)`: how many rows were encoded at step s or before. A map that no row needs is dropped; above
        `max_maps`, the fewest rows over the shortest time share the next map, and miss the moves between the two steps.
        """
        keys = self.keys if len(self.keys) and self.keys[-1] == step - 1 else np.append(self.keys, step - 1)
        rows = np.diff([0, *(encoded_by(int(key)) for key in keys)])
        keys, rows = keys[rows > 0], rows[rows > 0]
        while len(keys) > self.settings.max_maps:
            shares = int(np.argmin(rows[:-1] * np.diff(keys)))
            rows[shares + 1] += rows[shares]
            keys, rows = np.delete(keys, shares), np.delete(rows, shares)
        return keys

    def extend(
        self,
        move: Float[np.ndarray, "dim1 dim"],
        gram: Float[np.ndarray, "dim1 dim1"],
        keys: Int[np.ndarray, " maps"],
    ) -> None:
        """Let every row encoded at the last of `keys` (from `keys_after`) or before make this move."""
        composed = np.tile(np.eye(self.dim + 1, self.dim, dtype=np.float32), (len(keys), 1, 1))
        known = np.isin(keys, self.keys)
        composed[known] = self.composed[np.searchsorted(self.keys, keys[known])]
        constant = np.zeros((len(keys), self.dim + 1, 1), np.float32)
        constant[:, -1] = 1.0
        self.composed = composed + np.concatenate([composed, constant], axis=2) @ move
        self.keys, self.gram = keys, gram

    def is_mapped(self, row_steps: Int[np.ndarray, " rows"]) -> np.ndarray:
        """Which rows, given the steps of their encoding, have moved since: (rows,) bool."""
        last = self.keys[-1] if len(self.keys) else np.iinfo(np.int64).min
        return np.asarray(row_steps <= last)

    def apply(self, originals: Vectors, row_steps: Int[np.ndarray, " rows"]) -> Vectors:
        """Present values of rows from their encoded originals. Rows that no map concerns come back bit for bit."""
        values = np.array(originals, dtype=np.float32)
        which = np.searchsorted(self.keys, row_steps, side="left")
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(self.keys) + 1))
        for number in range(len(self.keys)):
            rows = order[bounds[number] : bounds[number + 1]]
            if len(rows):
                moved = values[rows] @ self.composed[number, :-1] + self.composed[number, -1]
                values[rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return values
