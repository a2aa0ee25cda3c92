"""Token ids in, vectors out: the only place that runs the model for vectors, in inference and in training rollouts.

A row is prefilled once, sampled token by token, and the vector is the final-norm hidden state of the decode step that *reads*
the embed token. Neither the prompt nor the reasoning is ever run a second time, and the embedded ids are the sampled ids.

    prefill the shared prefix once -> prefill each prompt's rest -> decode: sample, force where the budget is spent, feed,
    keep the state of rows that just read the token -> let finished rows leave, waiting prompts take their place

The key-value cache is left-padded: every row ends at the last column, so that one decode step serves rows of any length.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from search_r3_mteb.encoder.scheduling import common_prefix_length, length_sorted_batches
from search_r3_mteb.encoder.slots import Slots, new_slots

# Leaving copies the whole cache, so rows leave together (measured best near 3/4 in a sweep from 1/2 to 1).
_KEEP_ABOVE = 0.75
# Looking at which rows are done waits for the device; on a GPU that stalls the launch queue.
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 8}
# Layers whose whole state is one key and one value a token, which can be padded, moved and dropped by column.
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class Sampling:
    """How reasoning is drawn. `max_reasoning_tokens` counts tokens before the embed token.

    `temperature` 0 takes the most probable token. No top-p or top-k: log-probabilities are then those of the distribution
    that was sampled. A row's draws depend on `seed`, its prompt's ids and its place in the group alone, never on the batch.
    """

    max_reasoning_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_reasoning_tokens < 0:
            raise ValueError(f"max_reasoning_tokens={self.max_reasoning_tokens} is negative; 0 means no reasoning.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or a positive number.")


@dataclass
class Rollouts:
    """What came of prompts x group rows; row r belongs to prompt `prompt_index[r]`, groups lie together.

    `vectors` (rows, dim) float32 on the CPU, not normalised. `token_ids[r]` are the exact generated ids, the embed token last;
    `log_probs[r]` (same length) their natural-log probabilities under the sampling distribution (greedy: at temperature 1).
    `finished[r]` is False where the token was forced: the budget was spent, or the model ended its turn without the token.
    `forward_tokens` counts the real tokens that went through the model, `computed_tokens` padding and spent rows as well.
    """

    vectors: Float[Tensor, "rows dim"]
    token_ids: list[list[int]]
    log_probs: list[list[float]]
    finished: list[bool]
    prompt_index: list[int]
    forward_tokens: int
    computed_tokens: int


@dataclass
class Engine:
    """Runs a Hugging Face causal LM with a key-value cache; `token_budget` bounds rows x length of what runs at once.

    `stop_token_ids` end a row's reasoning (the embed token is then forced). `share_prefix=False` prefills every prompt whole;
    it exists for the equality test and the benchmark.
    """

    model: Any
    embed_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    token_budget: int = 16384
    share_prefix: bool = True
    forward_tokens: int = field(default=0, init=False)
    computed_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.causal = unwrap(self.model)
        self.backbone = self.causal.base_model
        self.head = self.causal.get_output_embeddings()
        if self.head is None:
            raise ValueError(
                f"{type(self.causal).__name__} has no language-model head, so it cannot reason. Load the checkpoint as a causal LM."
            )
        layers = set(getattr(self.causal.config.get_text_config(), "layer_types", None) or ())
        if getattr(self.causal, "_is_stateful", False) or not layers <= _PLAIN_LAYERS:
            raise ValueError(
                f"{type(self.causal).__name__} keeps a recurrent or compressed state ({', '.join(sorted(layers)) or 'stateful'}), "
                "which padding would leak into: its vectors would depend on the batch. Use a model with a plain key-value cache."
            )
        self.device = next(self.causal.parameters()).device
        self.dim = int(self.head.weight.shape[1])

    @torch.no_grad()
    def embed(
        self, prompts: Sequence[Sequence[int]], on_batch: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n dim"]:
        """Vectors (n, dim), float32 on the CPU, of prompts that already end in the embed token.

        Sorted by length, right-padded, without the head. `on_batch` is called with the number of rows after each batch.
        """
        self._check(prompts)
        vectors = torch.empty(len(prompts), self.dim)
        wrong = next((i for i, prompt in enumerate(prompts) if prompt[-1] != self.embed_token_id), None)
        if wrong is not None:
            raise ValueError(
                f"Prompt {wrong} ends in token {prompts[wrong][-1]}, not in the embed token {self.embed_token_id}: "
                "its vector would be read at the wrong place. Render it with the direct template."
            )
        with self._evaluating():
            prefix, prefix_cache = self._prefill_prefix(prompts)
            for batch in length_sorted_batches([len(prompt) for prompt in prompts], self.token_budget):
                hidden, _ = self._prefill([prompts[i] for i in batch], prefix, prefix_cache, keep_cache=False)
                vectors[batch] = hidden.float().cpu()
                if on_batch is not None:
                    on_batch(len(batch))
        return vectors

    @torch.no_grad()
    def reason(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        reread: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Reason from each prompt (an open assistant turn) `group_size` times, and embed, in one pass.

        `reread=True` runs prompt + generated ids again for the vector, as the released example does: for the equality test and
        the benchmark only. `on_batch` is called with the number of rows that just finished.
        """
        self._check(prompts)
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: each prompt needs at least one rollout.")
        before, computed = self.forward_tokens, self.computed_tokens
        run = _Decode(self, prompts, sampling, group_size, on_batch)
        with self._evaluating():
            run.all()
        lengths = run.lengths.tolist()
        token_ids = [ids[:n] for ids, n in zip(run.ids.tolist(), lengths, strict=True)]
        vectors = run.vectors.float().cpu()
        if reread:
            vectors = self.embed([[*prompts[row // group_size], *ids] for row, ids in enumerate(token_ids)])
        return Rollouts(
            vectors=vectors,
            token_ids=token_ids,
            log_probs=[row[:n] for row, n in zip(run.log_probs.tolist(), lengths, strict=True)],
            finished=run.finished.tolist(),
            prompt_index=[row // group_size for row in range(len(token_ids))],
            forward_tokens=self.forward_tokens - before,
            computed_tokens=self.computed_tokens - computed,
        )

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """Next-token logits in float32, with the scalings that some architectures apply after the head."""
        logits = self.head(hidden).float()
        config = self.causal.config.get_text_config()
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # Granite divides, HyperCLOVA X multiplies
            scale = config.logits_scaling
            logits = logits * (scale if config.model_type == "hyperclovax" else 1 / scale)
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout and gradient checkpointing (which silently turns the cache off), whatever a training loop had set."""
        training = [module for module in self.causal.modules() if module.training]
        self.causal.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        empty = next((i for i, prompt in enumerate(prompts) if len(prompt) == 0), None)
        if empty is not None:
            raise ValueError(f"Prompt {empty} has no tokens; render it with search_r3_mteb.encoder.prompts first.")

    def _prefill_prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
        """Length and cache (one row) of what all prompts begin with; it is run once for all of them."""
        length = common_prefix_length(prompts) if self.share_prefix and len(prompts) > 1 else 0
        if length == 0:
            return 0, None
        _, cache = self._prefill([prompts[0][:length]], 0, None)
        return length, cache

    def _prefill(
        self, prompts: Sequence[Sequence[int]], prefix: int, prefix_cache: Any, keep_cache: bool = True
    ) -> tuple[Float[Tensor, "rows dim"], Any]:
        """Hidden states at the last token of each prompt, and the right-padded cache.

        Right padding needs no mask under causal attention: what follows a row's last token cannot reach it.
        """
        from transformers import DynamicCache

        lengths = [len(prompt) - prefix for prompt in prompts]
        width = max(lengths)
        ids = torch.full((len(prompts), width), self.embed_token_id)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt) - prefix] = torch.tensor(prompt[prefix:])
        cache: Any = DynamicCache() if keep_cache or prefix_cache is not None else None
        if prefix_cache is not None:
            for index, layer in enumerate(prefix_cache.layers):
                cache.update(*(x.expand(len(prompts), -1, -1, -1) for x in (layer.keys, layer.values)), index)
        positions = torch.arange(prefix, prefix + width, device=self.device).expand(len(prompts), -1)
        output = self.backbone(
            input_ids=ids.to(self.device), position_ids=positions, past_key_values=cache, use_cache=cache is not None
        )
        self.forward_tokens += sum(lengths)
        self.computed_tokens += ids.numel()
        last = torch.tensor(lengths, device=self.device) - 1
        return output.last_hidden_state[torch.arange(len(prompts), device=self.device), last], cache


class _Decode:
    """One call of `Engine.reason`: the waiting prompts, the rows that decode, and the output buffers."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int,
        on_batch: Callable[[int], None] | None,
    ) -> None:
        self.engine, self.prompts, self.sampling, self.group_size = engine, prompts, sampling, group_size
        self.on_batch = on_batch
        rows, width, device = len(prompts) * group_size, sampling.max_reasoning_tokens + 1, engine.device
        self.ids = torch.zeros(rows, width, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(rows, width, device=device)
        self.vectors = torch.zeros(rows, engine.dim, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.draws = self._draws() if sampling.temperature > 0 else None
        self.stop_ids = torch.tensor(engine.stop_token_ids, dtype=torch.long, device=device)
        # Longest first: they take the most room, and short ones fill what is left at the end.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
        self.slots: Slots | None = None
        self.capacity = 0

    def all(self) -> None:
        """Decode until every row has read its embed token."""
        if not self.prompts:
            return
        self.prefix, self.prefix_cache = self.engine._prefill_prefix(self.prompts)
        looks = _STEPS_BETWEEN_LOOKS.get(self.engine.device.type, 1)
        while self.waiting or self.slots is not None:
            self.admit()
            for _ in range(looks):
                self.step()
            self.leave()

    def admit(self) -> None:
        """Prefill waiting prompts while their rows, at full length, fit into the token budget."""
        active = 0 if self.slots is None else len(self.slots)
        if not self.waiting or (active and active > _KEEP_ABOVE * self.capacity):
            return
        chosen: list[int] = []
        longest = len(self.prompts[self.waiting[0]]) if self.slots is None else int(self.slots.positions.max())
        while self.waiting:
            length = max(longest, len(self.prompts[self.waiting[0]])) + self.sampling.max_reasoning_tokens + 1
            rows = active + (len(chosen) + 1) * self.group_size
            if (active or chosen) and rows * length > self.engine.token_budget:
                break
            chosen.append(self.waiting.popleft())
        if chosen:
            new = self._prefill(chosen)
            if self.slots is None:
                self.slots = new
            else:
                self.slots.join(new)
            self.capacity = len(self.slots)

    def step(self) -> None:
        """Sample one token a row, force the embed token where it is due, feed it, and keep the state of rows that read it."""
        slots = self.slots
        if slots is None:
            return
        token, log_prob = self._sample(slots)
        alive = ~slots.done
        forced = (slots.steps >= self.sampling.max_reasoning_tokens) | slots.stopped
        own = token == self.engine.embed_token_id
        token = torch.where(forced, self.engine.embed_token_id, token)
        hit = (token == self.engine.embed_token_id) & alive
        # A row whose budget is spent may have sampled the token itself: then it is its own, not a forced one.
        self._write(slots, token, log_prob, hit & own & ~slots.stopped)
        slots.mask = torch.nn.functional.pad(slots.mask, (0, 1), value=1)
        output = self.engine.backbone(
            input_ids=token[:, None],
            attention_mask=slots.mask,
            # A row that is done may stay for some steps; its own position would leave the model's window.
            position_ids=slots.positions.masked_fill(slots.done, 0)[:, None],
            past_key_values=slots.cache,
            use_cache=True,
        )
        slots.hidden = output.last_hidden_state[:, -1]
        self.vectors[slots.row] = torch.where(hit[:, None], slots.hidden.float(), self.vectors[slots.row])
        self.engine.computed_tokens += len(token)
        slots.positions = slots.positions + 1
        slots.steps = slots.steps + alive.long()
        slots.stopped = torch.isin(token, self.stop_ids)
        slots.done = slots.done | hit

    def leave(self) -> None:
        """Let the rows that are done go, once enough of them are."""
        slots = self.slots
        if slots is None:
            return
        keep = (~slots.done).nonzero()[:, 0]
        if len(keep) == 0 or len(keep) <= _KEEP_ABOVE * len(slots):
            gone = len(slots) - len(keep)
            self.engine.forward_tokens += int(slots.steps[slots.done].sum())
            if len(keep) == 0:
                self.slots = None
            else:
                slots.select(keep)
            if self.on_batch is not None:
                self.on_batch(gone)

    def _write(self, slots: Slots, token: Tensor, log_prob: Tensor, own: Tensor) -> None:
        """Put the step's tokens into the output rows; rows that are done keep what they have."""
        alive = ~slots.done
        rows, steps = slots.row, slots.steps.clamp(max=self.ids.shape[1] - 1)
        self.ids[rows, steps] = torch.where(alive, token, self.ids[rows, steps])
        self.log_probs[rows, steps] = torch.where(alive, log_prob, self.log_probs[rows, steps])
        self.lengths[rows] += alive.long()
        self.finished[rows] |= own

    def _sample(self, slots: Slots) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """A token a row and its log-probability, as `Sampling` says; for a forced row, those of the embed token."""
        logits = self.engine.logits(slots.hidden)
        if self.draws is None:
            token = logits.argmax(dim=-1)
        else:
            logits = logits / self.sampling.temperature
            # Inverse of the cumulative distribution at the row's own uniform draw; float64, or rare tokens are lost.
            cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
            draw = self.draws[slots.row, slots.steps.clamp(max=self.draws.shape[1] - 1)]
            token = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)[:, 0]
            token = token.clamp(max=logits.shape[-1] - 1)
        due = (slots.steps >= self.sampling.max_reasoning_tokens) | slots.stopped
        said = torch.where(due, self.engine.embed_token_id, token)
        chosen = logits.gather(1, said[:, None])[:, 0]
        return token, chosen - logits.logsumexp(dim=-1)

    def _draws(self) -> Float[Tensor, "rows steps"]:
        """Uniform numbers of every row, from the seed, the prompt's ids and the row's place in its group."""
        draws = torch.empty(len(self.prompts) * self.group_size, self.ids.shape[1], dtype=torch.float64)
        generator = torch.Generator()
        for index, prompt in enumerate(self.prompts):
            ids = ",".join(map(str, prompt))
            for place in range(self.group_size):
                key = f"{self.sampling.seed}|{place}|{ids}".encode()
                generator.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)
                draws[index * self.group_size + place].uniform_(generator=generator)
        return draws.to(self.ids.device)

    def _prefill(self, chosen: Sequence[int]) -> Slots:
        """Slots for these prompts: each is run once and its cache expanded to the group's rows."""
        engine, device = self.engine, self.engine.device
        hidden, cache = engine._prefill([self.prompts[i] for i in chosen], self.prefix, self.prefix_cache)
        lengths = torch.tensor([len(self.prompts[i]) for i in chosen], device=device)
        return new_slots(cache, hidden, lengths, torch.tensor(chosen, device=device), self.group_size)


def unwrap(model: Any) -> Any:
    """The Hugging Face causal LM inside a distributed or PEFT wrapper; adapters stay active, they live in its layers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
