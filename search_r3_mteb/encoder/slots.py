"""Rows that decode together, in places of one preallocated key-value cache.

Rows are left-aligned: token number p lies in column p. So the shared prefix lies in the same columns of every place, is
written there once, and stays when another row takes the place. A decode step writes one column per row in place;
nothing is concatenated. When a row leaves, the last row moves into its place: the rows in use are always the first
ones, and only what moves is copied.
"""

import mmap
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Tensors that hold a row's state beside its keys and values; their entries move with the row.
_PER_ROW = ("positions", "starts", "ends", "row", "stopped", "done", "own", "hidden", "captured", "ids", "log_probs")


@dataclass
class Window:
    """Where the next forward pass writes, and how many columns it sees; shared by all layers of a cache.

    `index` None (prefill): whole prompts go into the rows `first` to `first + rows`, columns `begin` onwards. Otherwise
    (decode) one token per row goes into the column that `index` (rows,) names, or into `width - 1` when `aligned`.
    """

    places: int
    columns: int
    first: int = 0
    rows: int = 0
    begin: int = 0
    width: int = 0
    index: Int[Tensor, " rows"] | None = None
    aligned: bool = False
    _flat: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def at(self, positions: Int[Tensor, " rows"]) -> None:
        """Let the next pass write one token per row, at these columns, which may change when it is over."""
        self.index = positions
        self._flat.clear()

    def flat(self, heads: int) -> Int[Tensor, " rows_heads"]:
        """Where the next token's states lie in a buffer seen as rows of one head's numbers; made once per pass."""
        if self.index is None:
            raise ValueError("A window that prefills has no places of single tokens.")
        if heads not in self._flat:
            first = torch.arange(self.rows * heads).view(self.rows, heads) * self.columns
            self._flat[heads] = (first + self.index[:, None]).view(-1)
        return self._flat[heads]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values (places, heads, columns, dim), written in place."""

    is_sliding = False

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve the memory; type and sizes are those of the first states."""
        shape = (self.window.places, self.window.columns)
        self.keys, self.values = (reserve(states, *shape) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        """Write the new states; returns the rows' states so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, buffer: Tensor, states: Tensor) -> Tensor:
        window = self.window
        if window.index is None:
            end = window.begin + states.shape[2]
            rows = buffer[window.first : window.first + window.rows]
            rows[:, :, window.begin : end] = states
            return rows[:, :, :end]
        rows = buffer[: window.rows]
        if window.aligned:
            rows[:, :, window.width - 1 : window.width] = states
        elif buffer.device.type == "cpu" and buffer.element_size() < 4:
            # On a processor, torch's scatter_ copies the whole window in half precision, for one column.
            dim = buffer.shape[3]
            buffer.view(-1, dim).index_copy_(0, window.flat(buffer.shape[1]), states.reshape(-1, dim))
        else:
            rows.scatter_(2, window.index[:, None, None, None].expand_as(states), states)
        return rows[:, :, : window.width]

    def get_seq_length(self) -> int:
        """Number of columns before those that are written next."""
        return self.window.begin if self.window.index is None else self.window.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next pass sees, and the number of the first one."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Number of columns reserved."""
        return self.window.columns

    get_max_cache_shape = get_max_length  # its name before transformers 5.13


class PrefixLayer(CacheLayerMixin):
    """One layer's states of a prefix (one row), put before the states of each pass, which are not kept."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keep the prefix's own states."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        """The prefix's states followed by these; the first call sets the prefix."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([kept.expand(len(new), -1, -1, -1), new], dim=2) for kept, new in pairs)
        return keys, values

    def get_seq_length(self) -> int:
        """Number of tokens of the prefix."""
        return self.keys.shape[2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next pass sees, and the number of the first one."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    get_max_cache_shape = get_max_length


def prefix_cache() -> Any:
    """An empty cache whose first pass is the prefix of all later ones."""
    return Cache(layer_class_to_replicate=PrefixLayer)


def reserve(like: Tensor, places: int, columns: int) -> Tensor:
    """Zeros (places, heads, columns, dim), because attention multiplies masked values by 0, and 0 x NaN is NaN."""
    shape = (places, like.shape[1], columns, like.shape[3])
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    # The system's zeroed pages take no memory before they are written; torch would write the zeros.
    memory = mmap.mmap(-1, max(1, int(np.prod(shape)) * like.element_size()))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # Rows begin far apart: with pages of 2 MB, the first column of each would take the memory of all columns.
        with suppress(OSError):  # a kernel without huge pages does not know this advice
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=int(np.prod(shape))).view(shape)


@dataclass
class Slots:
    """The places and their rows. Tensors have one entry per place; the rows in use are the first `count` ones.

    Where sizes are rounded, places beyond `count` are stepped as well; they count as done.
    """

    places: int
    columns: int  # the longest row's tokens and one to spare, into which rows that are done write
    prefix: int
    hidden: Float[Tensor, "places dim"]  # the row's last state, from which its next token is drawn
    count: int = 0
    width: int = 0  # columns that the next step sees: an upper bound of the positions, known without asking the device
    aligned: bool = False  # all rows in use are at the same position and none is done
    cache: Any = field(init=False)

    def __post_init__(self) -> None:
        device = self.hidden.device
        self.window = Window(self.places, self.columns)
        self.cache = Cache(layer_class_to_replicate=partial(SlotLayer, self.window))
        self.captured = torch.zeros_like(self.hidden)  # the state that read the embed token
        zeros = torch.zeros(self.places, dtype=torch.long, device=device)
        # Column and position id of the next token. In a free place it is the spare column: free places are stepped
        # where sizes are rounded up, and must not write over the prefix that waits there for the next row.
        self.positions: Int[Tensor, " places"] = torch.full_like(zeros, self.columns - 1)
        self.starts = zeros.clone()  # column of the first generated token
        self.ends = zeros.clone()  # column in which the budget is spent
        self.row = zeros.clone()  # number of the row in the output
        self.stopped: Bool[Tensor, " places"] = zeros.bool()  # the last token ended the turn
        self.done = torch.ones_like(self.stopped)  # the embed token was read, or the place is free
        self.own = zeros.bool()  # the last token was an embed token sampled by the model itself
        self.ids = torch.zeros(self.places, self.columns, dtype=torch.long, device=device)  # generated ids, by column
        self.log_probs = torch.zeros(self.places, self.columns, device=device)

    def __len__(self) -> int:
        """Rows in use, those that are done and have not left among them."""
        return self.count

    @property
    def steps(self) -> Int[Tensor, " places"]:
        """Tokens generated so far."""
        return self.positions - self.starts

    def enter(
        self,
        lengths: Int[Tensor, " prompts"],
        prompts: Int[Tensor, " prompts"],
        hidden: Float[Tensor, "prompts dim"],
        group: int,
        budget: int,
    ) -> None:
        """Add `group` rows, with copies of the cache, for each prompt just prefilled into the places from `count` on.

        Row g of prompt p is row p * group + g of the output; it may generate `budget` tokens before the embed token.
        """
        first, rows, width = self.count, len(prompts) * group, int(lengths.max())
        repeat = torch.arange(len(prompts), device=hidden.device).repeat_interleave(group)
        if group > 1:
            for states in self._states():
                states[first : first + rows, :, self.prefix : width] = states[
                    first : first + len(prompts), :, self.prefix : width
                ][repeat]
        self.aligned = self.aligned_with(lengths)
        place = slice(first, first + rows)
        self.positions[place] = self.starts[place] = lengths[repeat]
        self.ends[place] = lengths[repeat] + budget
        self.row[place] = prompts[repeat] * group + torch.arange(group, device=hidden.device).repeat(len(prompts))
        self.hidden[place] = hidden[repeat]
        for name in ("stopped", "done", "own"):
            getattr(self, name)[place] = False
        self.count, self.width = first + rows, max(self.width, width) if first else width

    def aligned_with(self, lengths: Int[Tensor, " prompts"]) -> bool:
        """Whether rows of these lengths and the rows in use are all at one position."""
        one = int(lengths.min()) == int(lengths.max())
        return one and (self.count == 0 or (self.aligned and self.width == int(lengths[0])))

    def leave(self, done: Int[Tensor, " gone"]) -> None:
        """Free these places; the last rows move into the holes."""
        keep = self.count - len(done)
        leaving = torch.zeros(self.count, dtype=torch.bool, device=done.device)
        leaving[done] = True
        holes = leaving[:keep].nonzero()[:, 0]
        movers = (~leaving[keep:]).nonzero()[:, 0] + keep
        if len(holes):
            for states in self._states():
                states[holes, :, self.prefix : self.width] = states[movers, :, self.prefix : self.width]
            for name in _PER_ROW:
                tensor = getattr(self, name)
                tensor[holes] = tensor[movers]
        self.done[keep : self.count] = True
        self.positions[keep : self.count] = self.columns - 1
        self.count = keep
        self.width = int(self.positions[:keep].max()) if keep else 0

    def resized(self, places: int, columns: int) -> "Slots":
        """The same rows in a cache of another shape."""
        new = Slots(places, columns, self.prefix, self.hidden.new_zeros(places, self.hidden.shape[1]))
        new.count, new.width, new.aligned = self.count, self.width, self.aligned
        for old in self.cache.layers:
            layer = SlotLayer(new.window)
            layer.lazy_initialization(old.keys, old.values)
            for to, states in ((layer.keys, old.keys), (layer.values, old.values)):
                to[:, :, : self.prefix] = states[:1, :, : self.prefix]
                to[: self.count, :, self.prefix : self.width] = states[: self.count, :, self.prefix : self.width]
            new.cache.layers.append(layer)
        for name in _PER_ROW:
            old_rows, new_rows = getattr(self, name)[: self.count], getattr(new, name)[: self.count]
            if name in ("ids", "log_probs"):
                old_rows, new_rows = old_rows[:, : self.width], new_rows[:, : self.width]
            new_rows.copy_(old_rows)
        return new

    def spread_prefix(self) -> None:
        """Copy the prefix, which was prefilled into the first place, to all others."""
        for states in self._states():
            states[1:, :, : self.prefix] = states[:1, :, : self.prefix]

    def _states(self) -> list[Tensor]:
        return [states for layer in self.cache.layers for states in (layer.keys, layer.values)]
