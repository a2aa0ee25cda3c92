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

With vectors stored in half precision, what a map adds to a row is computed in that type, and the rest in float32:

    value = normalise(x + half(x) @ half(C - I) + constant)

The product is the cost of a step (2 dim^2 per row), and half precision makes it five times cheaper on a CPU that has
bfloat16, more on a GPU. Its error is a small part of the move, not of the vector. Where the product itself is rounded
to bfloat16 (see `products`), rows that move by more than a quarter, or lose half of their length, are computed in
float32: a value then differs between machines by 2^-9 at most, the storage's own rounding.

Sources: a linear map between two models' vectors is from Drift-Adapter (arXiv 2509.23471). The rest is ours. The ridge
of 0.3 pairs / dim cut the held-out reward error to a third on simulated drift. Measured on held-out queries along a
real run (results/corpus_cache): the constant, since documents mostly move together; the memory, recursive least squares
with forgetting; and the 3, evidence that a direction needs before it counts. With fewer pairs than dimensions a fit
without the last two is mostly noise, and worse than no map at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.search.arrays import RowNumbers, Vectors
from search_r3_mteb.search.products import as_tensor, plain_arithmetic, product, result_rounding, tensor_type
from train.config.corpus_cache import CorpusCacheSettings

PRIOR = 3.0
FAR, SHORT = 0.25, 0.5


@dataclass
class DriftMap:
    """The moves so far, composed. `keys[i]` is the last step of encoding that `composed[i]` is for, ascending."""

    dim: int
    settings: CorpusCacheSettings = field(default_factory=CorpusCacheSettings)
    keys: Int[np.ndarray, " maps"] = field(default_factory=lambda: np.zeros(0, np.int64))
    composed: Float[np.ndarray, "maps dim1 dim"] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    gram: Float[np.ndarray, "dim1 dim1"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    device: Any = None
    """The device on which maps are fitted and composed; None: here, with numpy."""
    # (map number, device) -> its tensors there, for products that are not numpy's.
    _tensors: dict[tuple[int, str], tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

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
        residual = fresh.astype(np.float64) - before
        ridge = self.settings.map_ridge * (len(before) / self.dim + PRIOR)
        memory = self.settings.map_memory * self.gram.astype(np.float64)
        if self.device is not None:
            return self._fit_on_device(known, residual, ridge, memory)
        gram = memory + known.T @ known
        move = np.linalg.solve(gram + ridge * np.eye(self.dim + 1), known.T @ residual)
        return move.astype(np.float32), gram.astype(np.float32)

    def _fit_on_device(self, *arrays: Any) -> tuple[Vectors, Vectors]:
        import torch

        known, residual, memory = (torch.from_numpy(arrays[i]).to(self.device) for i in (0, 1, 3))
        with plain_arithmetic(self.device):
            gram = memory + known.T @ known
            ridged = gram + arrays[2] * torch.eye(self.dim + 1, dtype=gram.dtype, device=gram.device)
            move = torch.linalg.solve(ridged, known.T @ residual)
        return move.float().cpu().numpy(), gram.float().cpu().numpy()

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
        composed = np.empty((len(keys), self.dim + 1, self.dim), np.float32)
        constant = np.zeros((self.dim + 1, 1), np.float32)
        constant[-1] = 1.0
        for number, key in enumerate(keys):
            before = self.composed[np.searchsorted(self.keys, key)] if key in self.keys else self._identity()
            composed[number] = self._further(before, constant, move)
        self.composed, self.keys, self.gram = composed, keys, gram
        self._tensors.clear()

    def _further(self, before: Any, constant: Any, move: Any) -> Any:
        if self.device is None:
            return before + np.concatenate([before, constant], axis=1) @ move
        import torch

        before, constant, move = (as_tensor(array).to(self.device) for array in (before, constant, move))
        with plain_arithmetic(self.device):
            return (before + product(torch.cat([before, constant], dim=1), move)).cpu().numpy()

    def _identity(self) -> Float[np.ndarray, "dim1 dim"]:
        return np.eye(self.dim + 1, self.dim, dtype=np.float32)

    def is_mapped(self, row_steps: Int[np.ndarray, " rows"]) -> np.ndarray:
        """Which rows, given the steps of their encoding, have moved since: (rows,) bool."""
        last = self.keys[-1] if len(self.keys) else np.iinfo(np.int64).min
        return np.asarray(row_steps <= last)

    def apply(self, originals: Vectors, row_steps: Int[np.ndarray, " rows"]) -> Vectors:
        """Present values of rows from their encoded originals. Rows that no map concerns come back bit for bit."""
        if self.settings.storage != "float32":
            moved: Vectors = self.apply_tensor(as_tensor(originals), row_steps).numpy()
            return moved
        return self._grouped(originals, row_steps, self._moved_here, copied=np.array, at=lambda rows: rows)

    def apply_tensor(self, originals: Any, row_steps: Int[np.ndarray, " rows"]) -> Any:
        """`apply` for a float32 tensor on any device, and there."""
        import torch

        def at(rows: RowNumbers) -> Any:
            return torch.from_numpy(rows).to(originals.device)

        with plain_arithmetic(originals.device):
            return self._grouped(originals, row_steps, self._moved, copied=torch.clone, at=at)

    def _grouped(
        self,
        originals: Any,
        row_steps: Int[np.ndarray, " rows"],
        moved: Callable[[Any, int], Any],
        *,
        copied: Callable[[Any], Any],
        at: Callable[[RowNumbers], Any],
    ) -> Any:
        """Each group of rows with one map moved by it, the others copied."""
        which = np.searchsorted(self.keys, row_steps, side="left")
        if len(which) and which.min() == which.max() < len(self.keys):
            return moved(originals, int(which[0]))
        values = copied(originals)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(self.keys) + 1))
        for number in range(len(self.keys)):
            rows = order[bounds[number] : bounds[number + 1]]
            if len(rows):
                values[at(rows)] = moved(values[at(rows)], number)
        return values

    def _moved_here(self, rows: Vectors, number: int) -> Vectors:
        moved: Vectors = rows @ self.composed[number, :-1]
        moved += self.composed[number, -1]
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        return moved

    def _moved(self, rows: Any, number: int) -> Any:
        """Present values of a tensor of rows (rows, dim) float32 that all need the same map."""
        matrix, constant = self._on(rows.device, number)
        if matrix.dtype == rows.dtype:
            moved = product(rows, matrix).add_(constant)
            return moved.div_(moved.norm(dim=1, keepdim=True))
        step = product(rows.to(matrix.dtype), matrix)
        far = step.norm(dim=1) > FAR
        moved = step.add_(rows).add_(constant)
        length = moved.norm(dim=1, keepdim=True)
        far |= length[:, 0] < SHORT
        if result_rounding(rows.device.type, self.settings.storage) and far.any():
            moved[far] = (rows[far].to(matrix.dtype).float() @ matrix.float()).add_(rows[far]).add_(constant)
            length[far] = moved[far].norm(dim=1, keepdim=True)
        return moved.div_(length)

    def _on(self, device: Any, number: int) -> tuple[Any, Any]:
        """Matrix and constant of a map on a device: all of the matrix in float32, or its move in the storage type."""
        place = number, str(device)
        if place not in self._tensors:
            matrix, constant = (as_tensor(part).to(device) for part in np.split(self.composed[number], [self.dim]))
            if self.settings.storage != "float32":
                identity = as_tensor(self._identity()[:-1]).to(device)
                matrix = (matrix - identity).to(tensor_type(self.settings.storage))
            self._tensors[place] = matrix, constant[0]
        return self._tensors[place]
