"""What runs inside vLLM's worker processes: turns that end in the embed token, and the states at which it was read.

vLLM loads both classes by module path. `EmbedTurns` is a logits processor (`LogitsProcessor` of vLLM's V1 runner): it
draws tokens where there is a temperature, by the numbers that `Sampling.draws` made, and forces the embed token where
it is due, as `decode.py` does. `StateCapture` is a worker extension (`worker_extension_cls`): it lets the processor see
the hidden states from which vLLM has just computed the logits, those after the final norm at each row's last token.
So the state of the step that reads the embed token is there without a second pass, for every architecture, and outside
of CUDA graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from search_r3_mteb.encoder.vllm.turns import EXTRA, TurnRules


@dataclass
class Turn:
    """A row of vLLM's batch. `output` is vLLM's own list of the ids that the row has said, which grows."""

    rules: TurnRules
    prompt_end: int
    output: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last token, which the step that gave the present logits has read."""
        return self.output[-1] if self.output else self.prompt_end

    @property
    def reads_embed_token(self) -> bool:
        """Whether the last step has read the embed token at the end of the turn."""
        return self.last == self.rules.embed_token_id and bool(self.output or self.rules.direct)

    @property
    def due(self) -> bool:
        """Whether the next token has to be the embed token: the budget is spent, or the model has ended its turn."""
        return len(self.output) >= self.rules.budget or self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the last token has ended the model's turn."""
        return bool(self.output) and self.output[-1] in self.rules.stop_token_ids


class EmbedTurns(LogitsProcessor):
    """Ends every row of ours in the embed token, and keeps the state at which it was read, by the row's key.

    `states[key]` is float32 (dim,) on the CPU; `own[key]` says of a row whose token was due whether it would have said
    the embed token itself. Both are taken by `StateCapture`. Requests of others pass untouched.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.turns: dict[int, Turn] = {}
        self.hidden: torch.Tensor | None = None
        self.states: dict[str, torch.Tensor] = {}
        self.own: dict[str, bool] = {}

    def is_argmax_invariant(self) -> bool:
        """False: a forced token is another one than the most probable."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow rows that enter, leave and move, in the order in which vLLM wants it."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.turns.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self.turns.pop(index, None)
            extra = (params.extra_args or {}).get(EXTRA)
            if extra is not None and prompt:
                self.turns[index] = Turn(TurnRules(**extra), prompt[-1], output)
        for first, second, direction in batch_update.moved:
            one, other = self.turns.pop(first, None), self.turns.pop(second, None)
            if one is not None:
                self.turns[second] = one
            if other is not None and direction == MoveDirectionality.SWAP:
                self.turns[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits (rows, vocabulary) with all but the token that was drawn or is forced at minus infinity."""
        hidden, self.hidden = self.hidden, None
        if not self.turns:
            return logits
        if hidden is None or len(hidden) != len(logits):
            raise RuntimeError(
                f"{len(logits)} rows of logits came with {0 if hidden is None else len(hidden)} hidden states, so that "
                "vectors would be those of other rows. This version of vLLM computes logits in a way that "
                "search-r3-mteb does not know: use engine='own'."
            )
        reading = [index for index, turn in self.turns.items() if turn.reads_embed_token]
        if reading:
            kept = hidden[reading].float().cpu()
            self.states |= {self.turns[index].rules.key: row for index, row in zip(reading, kept, strict=True)}
        other = [index for index in self.turns if index not in set(reading)]
        drawn = {index: self._drawn(logits[index], self.turns[index]) for index in other}
        forced = [index for index in other if self.turns[index].due]
        if forced:
            best = logits[forced].argmax(dim=-1).tolist()
            for index, token in zip(forced, best, strict=True):
                turn, said = self.turns[index], drawn[index]
                would = (token if said is None else said) == turn.rules.embed_token_id
                self.own[turn.rules.key] = would and not turn.stopped
                drawn[index] = turn.rules.embed_token_id
        chosen = {index: token for index, token in drawn.items() if token is not None}
        if chosen:
            rows = torch.tensor(list(chosen), device=logits.device)
            logits[rows] = -torch.inf
            logits[rows, torch.tensor(list(chosen.values()), device=logits.device)] = 0.0
        return logits

    @staticmethod
    def _drawn(logits: torch.Tensor, turn: Turn) -> int | None:
        """The token of a row with a temperature, as `Decode` draws it; None for a greedy one."""
        rules, step = turn.rules, len(turn.output)
        if not rules.temperature:
            return None
        cumulative = (logits.float() / rules.temperature).double().softmax(dim=-1).cumsum(dim=-1)
        draw = rules.draws[min(step, len(rules.draws) - 1)]
        found = torch.searchsorted(cumulative, draw * cumulative[-1:], right=True)
        return min(int(found), len(logits) - 1)


class StateCapture:
    """The worker's side of `VllmEngine`: its methods are called by name through `collective_rpc`."""

    model_runner: Any  # vLLM's, in the worker that this class is mixed into

    def search_r3_install(self) -> int:
        """Let the processor see the hidden states of each step; returns their width. Called once, at the start."""
        model, processor = self.model_runner.model, self._search_r3_turns()
        compute = model.compute_logits

        def compute_logits(hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
            processor.hidden = hidden_states
            return compute(hidden_states, *rest, **named)

        model.compute_logits = compute_logits
        return int(self.model_runner.model_config.get_hidden_size())

    def search_r3_take(self, keys: Sequence[str]) -> Mapping[str, tuple[bytes, bool | None]]:
        """State (float32 bytes) and `own` of the rows with these keys that are here, which are then forgotten here."""
        turns = self._search_r3_turns()
        found = {key: turns.states.pop(key) for key in keys if key in turns.states}
        own = {key: turns.own.pop(key, None) for key in keys}
        return {key: (state.numpy().tobytes(), own[key]) for key, state in found.items()}

    def _search_r3_turns(self) -> EmbedTurns:
        found = [each for each in self.model_runner.input_batch.logitsprocs.all if isinstance(each, EmbedTurns)]
        if len(found) != 1:
            raise RuntimeError(
                f"This vLLM worker has {len(found)} logits processors of search-r3-mteb where one is needed. Nothing "
                "else may load or replace them: leave logits_processors out of engine_options."
            )
        return found[0]
