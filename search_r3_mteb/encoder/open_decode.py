"""A decode loop that stays open: prompts join while others decode, and rows leave when nobody wants them any more.

`Engine.reason` knows its prompts when it begins. A server does not: a question that comes while others are being
reasoned about should neither wait for the longest of them nor be run by itself. Here the cache has its full shape from
the first prompt on, and each prompt has a ticket, the number of its row in the output, which is given again when the
row has left. Everything else is `Decode`, so a row's numbers are those that `Engine.reason` gives.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.backbone import Backbone
from search_r3_mteb.encoder.decode import Decode
from search_r3_mteb.encoder.sampling import Sampling


@dataclass(frozen=True)
class ReasonedRow:
    """A row that has read its embed token.

    `vector` (dim,) is float32 on the CPU, not normalised; `token_ids` are the generated ids, the embed token last;
    `finished` is False where it was forced.
    """

    ticket: int
    vector: Float[Tensor, " dim"]
    token_ids: list[int]
    finished: bool


class OpenDecode(Decode):
    """Rows that reason, one per prompt, at most `places` at once; only within `Backbone.evaluating`.

    All prompts begin with `prefix` and have at most `longest` tokens. `places` is what the token budget holds of such
    prompts with their reasoning, or what a batch-invariant backbone steps at once.
    """

    def __init__(self, backbone: Backbone, prefix: Sequence[int], longest: int, sampling: Sampling) -> None:
        super().__init__(backbone, [], sampling, 1, False, None)
        length = longest + sampling.max_reasoning_tokens + 1
        self.places = max(1, backbone.token_budget // length)
        self._columns_reserved, self._spare = length + 1, 0
        if self.shapes is not None:
            self.places, self._spare = self.shapes.rows, self.shapes.spare
            self._columns_reserved = -(-self._columns_reserved // self.shapes.columns) * self.shapes.columns
        share = backbone.share_prefix and self.shapes is None
        self.longest, self.begins_with = longest, list(prefix) if share else []
        self.prefix = len(self.begins_with)
        self._free = deque(range(self.places))
        self.prompts: list[Sequence[int]] = [()] * self.places
        device = backbone.device
        self.ids = torch.zeros(self.places, self.width, dtype=torch.long, device=device)
        self.vectors = torch.zeros(self.places, backbone.dim, device=device)
        self.finished = torch.zeros(self.places, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(self.places, dtype=torch.long, device=device)
        if self.draws is not None:
            self.draws = torch.zeros(self.places, self.width, dtype=torch.float64, device=device)
        self._left: list[int] = []

    @property
    def room(self) -> int:
        """Number of prompts that can be added now."""
        return len(self._free)

    @property
    def rows(self) -> int:
        """Rows that decode, without those that wait to enter."""
        return self.slots.count

    def __len__(self) -> int:
        """Prompts that have been added and have not left."""
        return self.places - len(self._free)

    def takes(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins as all of them do, with a token of its own behind it, and is not too long."""
        return self.prefix < len(prompt) <= self.longest and list(prompt[: self.prefix]) == self.begins_with

    def add(self, prompt: Sequence[int]) -> int:
        """Let a prompt wait for the next step; returns its ticket. Raises ValueError where there is no place for it."""
        if not self._free or not self.takes(prompt):
            raise ValueError(
                f"A prompt of {len(prompt)} tokens cannot join: there are {self.room} of {self.places} places, for "
                f"prompts of {self.prefix + 1} to {self.longest} tokens that begin with the shared prefix. Ask `room` "
                "and `takes` first, or call Engine.reason."
            )
        ticket = self._free.popleft()
        self.prompts[ticket] = prompt
        if self.draws is not None:
            self.draws[ticket] = self.sampling.draws([prompt], 1)[0].to(self.draws.device)
        self.waiting.append(ticket)
        return ticket

    def advance(self) -> list[ReasonedRow]:
        """Let waiting prompts enter, take some steps (one on a CPU), and return the rows that are done."""
        self.enter()
        for _ in range(self.pace.looks):
            if self.slots.count:
                self.step()
        self.leave()
        left, self._left = self._left, []
        found = []
        for ticket in left:
            ids = self.ids[ticket, : int(self.lengths[ticket])].tolist()
            # A copy: the ticket's next row writes into the same memory.
            found.append(
                ReasonedRow(ticket, self.vectors[ticket].to("cpu", copy=True), ids, bool(self.finished[ticket]))
            )
            self._free.append(ticket)
        return found

    def written(self, tickets: Iterable[int]) -> dict[int, list[int]]:
        """The ids that these rows have generated so far; a row that has not entered has none."""
        slots = self.slots
        found: dict[int, list[int]] = {ticket: [] for ticket in tickets}
        rows = slots.row[: slots.count].tolist()
        for place, ticket in enumerate(rows):
            if ticket in found:
                found[ticket] = slots.ids[place, int(slots.starts[place]) : int(slots.positions[place])].tolist()
        return found

    def drop(self, ticket: int) -> None:
        """Take a prompt out, whether it waits or decodes; the others go on as if it had ended."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        else:
            slots = self.slots
            slots.done[: slots.count] |= slots.row[: slots.count] == ticket
            self.leave()  # at once: a row that is done must not take another step
            if ticket not in self._left:
                raise ValueError(f"Ticket {ticket} has left already, or was never given.")
            self._left.remove(ticket)
        self._free.append(ticket)

    def leave(self) -> None:
        """Free the places of rows that are done, and remember their tickets."""
        slots = self.slots
        self._left += slots.row[: slots.count][slots.done[: slots.count]].tolist()
        super().leave()

    def _reshape(self, places: int, columns: int) -> None:
        """The full shape at once, whatever the first prompts need: nothing that decodes is ever moved."""
        super()._reshape(max(places, self.places + self._spare), max(columns, self._columns_reserved))
