"""The decode loop: waiting prompts enter free places, every row is sampled and stepped, rows that read the token leave.

    enter: prefill waiting prompts into free places, while rows x length stays within the token budget
    step:  sample, force the embed token where it is due, feed the token, keep the state of rows that just read it
    leave: remove rows that read the embed token; a GPU is asked only every few steps, because the question waits for it

A step works in place on tensors that stay where they are, so that on a GPU it is recorded once (`graphs.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from search_r3_mteb.encoder.backbone import Backbone
from search_r3_mteb.encoder.graphs import Recorded
from search_r3_mteb.encoder.masks import DecodeMasks
from search_r3_mteb.encoder.sampling import Sampling, most_probable
from search_r3_mteb.encoder.shared_prefix import can_share, sharing
from search_r3_mteb.encoder.slots import Slots


@dataclass(frozen=True)
class Pace:
    """How a device is driven.

    `looks`: steps between two looks at which rows are done. `width`, `round_rows`: a step's columns are rounded up to a
    multiple, its rows to a power of two, so that few different steps are recorded. `record`: as CUDA graphs. `rows`:
    every step has this many rows (see `fixed_shapes.py`).
    """

    looks: int = 1
    width: int = 1
    round_rows: bool = False
    record: bool = False
    rows: int | None = None


PACES = {"cpu": Pace(), "cuda": Pace(looks=8, width=128, round_rows=True, record=True)}
# Prompts enter when this share of the places is free, because each entry is a forward pass of its own.
REFILL_SHARE = 0.125
# The cache is reshaped when the new shape holds this many times the rows.
RESHAPE_FROM = 1.25


class Decode:
    """One call of `Engine.reason`: the waiting prompts, the rows that decode, and the output buffers."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int,
        log_probs: bool,
        on_batch: Callable[[int], None] | None,
    ) -> None:
        self.backbone, self.prompts, self.sampling, self.group_size = backbone, prompts, sampling, group_size
        self.on_batch = on_batch
        rows, device = len(prompts) * group_size, backbone.device
        self.width = sampling.max_reasoning_tokens + 1
        self.ids = torch.zeros(rows, self.width, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(rows, self.width, device=device) if log_probs else None
        self.vectors = torch.zeros(rows, backbone.dim, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.draws = sampling.draws(prompts, group_size).to(device) if sampling.temperature > 0 else None
        stops = [i for i in backbone.stop_token_ids if i < backbone.head.vocabulary]
        self.stops = torch.zeros(backbone.head.vocabulary, dtype=torch.bool, device=device) if stops else None
        if self.stops is not None:
            self.stops[stops] = True
        self._columns = torch.arange(self.width, device=device)
        # Longest first: they take the most room, and short ones fill what is left at the end.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
        self.masks = DecodeMasks(backbone.base_model)
        self.abreast, self.shapes = backbone.abreast, backbone.shapes
        self.pace = Pace() if self.abreast else PACES.get(device.type, Pace())
        if self.shapes is not None and not self.abreast:
            self.pace = replace(self.pace, width=self.shapes.columns, rows=self.shapes.rows)
        # With a look after every step and no rounding, a row that is done never takes another step.
        self.exact = self.pace.looks == 1 and not self.pace.round_rows and self.pace.rows is None
        self.prefix = backbone.prefix_length(prompts)
        self.shares = self.exact and can_share(backbone.base_model, self.masks)
        self.slots = Slots(
            0, 0, self.prefix, torch.zeros(0, backbone.dim, dtype=backbone.base_model.dtype, device=device)
        )
        self.recorded = Recorded(self._step) if self.pace.record else None

    def all(self) -> None:
        """Decode until every row has read its embed token."""
        while self.waiting or self.slots.count:
            self.enter()
            for _ in range(self.pace.looks):
                self.step()
            self.leave()

    # ---- enter -----------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Prefill waiting prompts while their rows, at full length, fit into the token budget."""
        if not self.waiting:
            return
        slots, group = self.slots, self.group_size
        if slots.count and self.abreast:
            return  # all rows must be at one position, and a new one would not be
        places = slots.places if self.shapes is None else self.shapes.rows
        if slots.count and places - slots.count < max(group, REFILL_SHARE * places):
            return
        longest = len(self.prompts[self.waiting[0]])
        if slots.count:
            longest = max(longest, int(slots.starts[: slots.count].max()))
        length = longest + self.sampling.max_reasoning_tokens + 1
        wanted = slots.count + len(self.waiting) * group
        places = min(wanted, max(slots.count, group, self.backbone.token_budget // length))
        columns, spare = length + 1, 0
        if self.shapes is not None:
            places, spare = self.shapes.rows, self.shapes.spare
            columns = -(-columns // self.shapes.columns) * self.shapes.columns
        if columns > slots.columns or places + spare > RESHAPE_FROM * slots.places:
            self._reshape(places + spare, columns)
        chosen: list[int] = []
        while self.waiting and len(chosen) < (self.slots.places - spare - self.slots.count) // group:
            if self.abreast and chosen and len(self.prompts[self.waiting[0]]) != longest:
                break
            chosen.append(self.waiting.popleft())
        for part in self.backbone.prefill_batches([len(self.prompts[i]) for i in chosen]):
            self._prefill([chosen[i] for i in part])

    def _reshape(self, places: int, columns: int) -> None:
        first = self.slots.places == 0
        if first:
            self.slots = Slots(places, columns, self.prefix, self.slots.hidden.new_zeros(places, self.backbone.dim))
            if self.prefix:
                self.slots.window.rows = 1
                self.backbone.prefill([self.prompts[self.waiting[0]][: self.prefix]], 0, self.slots.cache)
                self.slots.spread_prefix()
        else:
            self.slots = self.slots.resized(places, columns)
        if self.recorded is not None:
            self.recorded.forget()

    def _prefill(self, chosen: Sequence[int]) -> None:
        """Run each chosen prompt once, without the prefix, and expand it to its group's rows."""
        slots, device = self.slots, self.backbone.device
        window = slots.window
        prompts = [self.prompts[i] for i in chosen]
        window.first, window.begin, window.index = slots.count, self.prefix, None
        window.rows = self.backbone.prefill_rows(prompts)
        hidden = self.backbone.prefill(prompts, self.prefix, slots.cache)
        lengths = torch.tensor([len(self.prompts[i]) for i in chosen], device=device)
        budget = self.sampling.max_reasoning_tokens
        slots.enter(lengths, torch.tensor(chosen, device=device), hidden, self.group_size, budget)

    # ---- step ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One token per row."""
        slots, pace = self.slots, self.pace
        rows, width = slots.count, slots.width + 1
        if pace.round_rows:
            rows = min(1 << max(rows - 1, 0).bit_length(), slots.places)
        rows = pace.rows or rows
        width = min(-(-width // pace.width) * pace.width, slots.columns)
        slots.window.rows, slots.window.width = rows, width
        slots.window.aligned = slots.aligned and pace == Pace()
        if self.recorded is None:
            with sharing(self.backbone.base_model, self.prefix if self.shares else 0, rows):
                self._step(rows, width)
        else:
            self.recorded(rows, width)
        slots.width = min(slots.width + 1, slots.columns - 1)
        self.backbone.computed_tokens += rows

    def _step(self, rows: int, width: int) -> None:
        """Sample a token per row, force the embed token where due, feed it, keep the state of rows that read it.

        Works in place and looks at no value, which would wait for the device.
        """
        slots, backbone, embed = self.slots, self.backbone, self.backbone.embed_token_id
        positions, done, hidden = slots.positions[:rows], slots.done[:rows], slots.hidden[:rows]
        token, own = self._sample(rows)
        slots.window.at(positions)
        output = backbone.base_model(
            input_ids=token[:, None],
            attention_mask=None if slots.window.aligned else self.masks(positions, width),
            use_cache=True,
            # A row that is done may stay for some steps, and its own position might leave the model's window.
            **backbone.architecture.inputs(
                (positions if self.exact else positions.masked_fill(done, 0))[:, None], slots.cache
            ),
        )
        hidden.copy_(output.last_hidden_state[:, -1])
        if self.exact:
            slots.own[:rows] = own
            positions += 1
        else:
            captured, kept = slots.captured[:rows], slots.own[:rows]
            torch.where(done[:, None], captured, hidden, out=captured)
            torch.where(done, kept, own, out=kept)
            positions += ~done
        if self.stops is not None:
            slots.stopped[:rows] = self.stops[token]
        done |= token == embed

    def _sample(self, rows: int) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The rows' tokens, recorded in the slots, and which rows sampled the embed token themselves.

        Log-probabilities are as `Sampling` says; where the embed token is forced, they are those of the embed token.
        """
        slots, embed = self.slots, self.backbone.embed_token_id
        positions = slots.positions[:rows]
        logits = self.backbone.logits(slots.hidden[:rows])
        if self.draws is None:
            token = most_probable(logits)
        else:
            logits = logits / self.sampling.temperature
            # Inverse of the cumulative distribution at the row's own uniform draw; float32 would lose rare tokens.
            cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
            step = (positions - slots.starts[:rows]).clamp_(max=self.width - 1)
            draw = self.draws[slots.row[:rows], step]
            token = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)[:, 0]
            token = token.clamp_(max=logits.shape[-1] - 1)
        # A row whose budget is spent may have sampled the token itself; then it is not forced.
        own, due = token == embed, positions >= slots.ends[:rows]
        if self.stops is not None:
            stopped = slots.stopped[:rows]
            own, due = own & ~stopped, due | stopped
        token = self._said(token.masked_fill_(due, embed), rows)
        slots.ids[:rows].scatter_(1, positions[:, None], token[:, None])
        if self.log_probs is not None:
            log_prob = logits.gather(1, token[:, None]) - logits.logsumexp(dim=-1, keepdim=True)
            slots.log_probs[:rows].scatter_(1, positions[:, None], log_prob)
        return token, own

    def _said(self, token: Int[Tensor, " rows"], rows: int) -> Int[Tensor, " rows"]:
        """The tokens to feed; the benchmark overrides this to set the rows' lengths."""
        return token

    # ---- leave -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Free the places of rows that are done, and keep their results."""
        slots = self.slots
        done = slots.done[: slots.count].nonzero()[:, 0]
        if len(done) == 0:
            return
        row, starts = slots.row[done], slots.starts[done]
        steps = slots.positions[done] - starts
        self.vectors[row] = (slots.hidden if self.exact else slots.captured)[done].float()
        self.lengths[row] = steps
        self.finished[row] = slots.own[done]
        columns = starts[:, None] + self._columns
        self.ids[row] = slots.ids[done].gather(1, columns)
        if self.log_probs is not None:
            self.log_probs[row] = slots.log_probs[done].gather(1, columns)
        self.backbone.forward_tokens += int(steps.sum())
        slots.leave(done)
        if self.on_batch is not None:
            self.on_batch(len(done))
