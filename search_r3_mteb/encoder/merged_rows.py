"""Token matrices of an adapter with trained token rows, put together once instead of at every step.

peft copies the whole matrix, 113 MB for smol, whenever the embedding or the head runs, to put the few trained rows
into it. On a processor that takes a good part of every step: `results/smol/README.md`, "Cost of a query".
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor

from search_r3_mteb.encoder.fingerprint import weights_version


class MergedRows:
    """peft's `get_merged_weights` of one layer, remembered until a weight of the layer changes.

    With gradients peft's own runs, since they flow through the copy; on a GPU, too, since a CUDA graph would not
    notice a change.
    """

    def __init__(self, layer: TrainableTokensLayer) -> None:
        self.layer = layer
        self._state: tuple[Any, ...] = ()
        self._matrix: Tensor | None = None

    def __call__(self, active_adapters: Sequence[str]) -> Tensor:
        """The matrix (rows, dim) with the rows of these adapters in it."""
        weight: Tensor = self.layer.get_base_layer().weight
        if torch.is_grad_enabled() or weight.device.type != "cpu":
            return TrainableTokensLayer.get_merged_weights(self.layer, active_adapters)
        state = (tuple(active_adapters), weights_version(self.layer), weight.data_ptr(), weight.dtype)
        if self._matrix is None or self._state != state:
            self._matrix = TrainableTokensLayer.get_merged_weights(self.layer, active_adapters)
            self._state = state
        return self._matrix


def remember_merged_rows(model: Any) -> None:
    """Let every layer of the model with trained token rows remember its matrix; a tied head has its embedding's."""
    remembered: dict[int, MergedRows] = {}
    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    for layer in layers:
        own = layer.tied_adapter
        shares = own is not None and own.get_base_layer().weight is layer.get_base_layer().weight
        source = own if shares else layer
        layer.get_merged_weights = remembered.setdefault(id(source), MergedRows(source))
