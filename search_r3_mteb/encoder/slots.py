"""The rows that decode together: one left-padded key-value cache, in which every row ends at the last column."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_PER_ROW = ("mask", "positions", "hidden", "row", "steps", "stopped", "done")


@dataclass
class Slots:
    """Rows that are decoding. Tensors have one entry a row, on the model's device."""

    cache: Any
    mask: Int[Tensor, "rows columns"]
    positions: Int[Tensor, " rows"]  # position id of the next token = tokens read so far = columns that the row uses
    hidden: Float[Tensor, "rows dim"]
    row: Int[Tensor, " rows"]  # number of the row in the output
    steps: Int[Tensor, " rows"]  # tokens generated so far
    stopped: Bool[Tensor, " rows"]  # the last token ended the turn
    done: Bool[Tensor, " rows"]  # the embed token was read

    def __len__(self) -> int:
        """Rows, those that are done and have not left among them."""
        return len(self.row)

    def select(self, keep: Int[Tensor, " kept"]) -> None:
        """Keep these rows, and drop leading columns that no kept row uses."""
        self.cache.batch_select_indices(keep)
        for name in _PER_ROW:
            setattr(self, name, getattr(self, name)[keep])
        unused = self.mask.shape[1] - int(self.positions.max())
        if unused > 0:
            self.mask = self.mask[:, unused:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]

    def join(self, new: "Slots") -> None:
        """Put new rows below these; the narrower side gets empty columns on the left."""
        width = max(self.mask.shape[1], new.mask.shape[1])
        for slots in (self, new):
            missing = width - slots.mask.shape[1]
            slots.mask = torch.nn.functional.pad(slots.mask, (missing, 0))
            for layer in slots.cache.layers:
                layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, missing, 0))
                layer.values = torch.nn.functional.pad(layer.values, (0, 0, missing, 0))
        for mine, other in zip(self.cache.layers, new.cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, other.keys])
            mine.values = torch.cat([mine.values, other.values])
        for name in _PER_ROW:
            setattr(self, name, torch.cat([getattr(self, name), getattr(new, name)]))


def new_slots(
    cache: Any,
    hidden: Float[Tensor, "prompts dim"],
    lengths: Int[Tensor, " prompts"],
    prompts: Int[Tensor, " prompts"],
    group_size: int,
) -> Slots:
    """Slots of freshly prefilled prompts, `group_size` rows each, from their right-padded cache (taken over, in place).

    `prompts` are the prompts' numbers: row g of prompt p is row p * group_size + g of the output.
    """
    right_align(cache, lengths)
    repeat = torch.arange(len(prompts), device=lengths.device).repeat_interleave(group_size)
    if group_size > 1:
        cache.batch_select_indices(repeat)
    lengths = lengths[repeat]
    width = cache.layers[0].keys.shape[2]
    columns = torch.arange(width, device=lengths.device)
    zeros = torch.zeros_like(repeat)
    return Slots(
        cache=cache,
        mask=(columns[None, :] >= width - lengths[:, None]).long(),
        positions=lengths.clone(),
        hidden=hidden[repeat],
        row=prompts[repeat] * group_size + torch.arange(group_size, device=lengths.device).repeat(len(prompts)),
        steps=zeros,
        stopped=zeros.bool(),
        done=zeros.bool(),
    )


def right_align(cache: Any, lengths: Int[Tensor, " rows"]) -> None:
    """Move every row of a right-padded cache, as wide as its longest row, so that it ends at the last column; in place."""
    width = cache.layers[0].keys.shape[2]
    shift = width - lengths
    source = (torch.arange(width, device=lengths.device)[None, :] - shift[:, None]).clamp(min=0)
    for layer in cache.layers:
        for name in ("keys", "values"):  # their widths differ in models with latent attention
            states = getattr(layer, name)
            index = source[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            setattr(layer, name, states.gather(2, index))
