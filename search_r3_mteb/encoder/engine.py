"""Token ids in, vectors out: the only place that runs the model for vectors, in inference and in training rollouts.

A row is prefilled once, sampled token by token, and the vector is the final-norm hidden state of the decode step that *reads*
the embed token. Neither the prompt nor the reasoning is ever run a second time, and the embedded ids are the sampled ids.

    prefill the shared prefix once -> prefill each prompt's rest -> decode: sample, force where the budget is spent, feed,
    keep the state of rows that just read the token -> let finished rows leave, waiting prompts take their place (`decode.py`)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.decode import Decode
from search_r3_mteb.encoder.head import Head
from search_r3_mteb.encoder.packing import packed_linears
from search_r3_mteb.encoder.scheduling import common_prefix_length, length_sorted_batches, prefill_budget
from search_r3_mteb.encoder.slots import prefix_cache

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
    `log_probs[r]` (same length) their natural-log probabilities under the sampling distribution (greedy: at temperature 1);
    empty where they were not asked for.
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
    decoder: ClassVar[type[Decode]] = Decode  # the benchmark puts one in its place whose rows have lengths that are set
    forward_tokens: int = field(default=0, init=False)
    computed_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.causal = unwrap(self.model)
        self.backbone = self.causal.base_model
        self.head = Head(self.causal)
        layers = set(getattr(self.causal.config.get_text_config(), "layer_types", None) or ())
        if getattr(self.causal, "_is_stateful", False) or not layers <= _PLAIN_LAYERS:
            raise ValueError(
                f"{type(self.causal).__name__} keeps a recurrent or compressed state ({', '.join(sorted(layers)) or 'stateful'}), "
                "which padding would leak into: its vectors would depend on the batch. Use a model with a plain key-value cache."
            )
        self.device = next(self.causal.parameters()).device
        self.dim = self.head.dim

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
            prefix = self.prefix_length(prompts)
            cache = prefix_cache() if prefix else None
            if prefix:
                self.prefill([prompts[0][:prefix]], 0, cache)
            budget = prefill_budget(self.token_budget, self.device.type)
            for batch in length_sorted_batches([len(prompt) for prompt in prompts], budget):
                vectors[batch] = self.prefill([prompts[i] for i in batch], prefix, cache).float().cpu()
                if on_batch is not None:
                    on_batch(len(batch))
        return vectors

    def reason(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        log_probs: bool = True,
        reread: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Reason from each prompt (an open assistant turn) `group_size` times, and embed, in one pass.

        `reread=True` runs prompt + generated ids again for the vector, as the released example does: for the equality test and
        the benchmark only. `log_probs=False` saves a pass over the vocabulary at every token. `on_batch` is called with the number
        of rows that just finished.
        """
        self._check(prompts)
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: each prompt needs at least one rollout.")
        before, computed = self.forward_tokens, self.computed_tokens
        run = self.decoder(self, prompts, sampling, group_size, log_probs, on_batch)
        with self._evaluating(), packed_linears(self.causal):
            run.all()
        lengths = run.lengths.tolist()
        token_ids = [ids[:n] for ids, n in zip(run.ids.tolist(), lengths, strict=True)]
        vectors = run.vectors.float().cpu()
        if reread:
            vectors = self.embed([[*prompts[row // group_size], *ids] for row, ids in enumerate(token_ids)])
        return Rollouts(
            vectors=vectors,
            token_ids=token_ids,
            log_probs=[[] for _ in lengths]
            if run.log_probs is None
            else [row[:n] for row, n in zip(run.log_probs.tolist(), lengths, strict=True)],
            finished=run.finished.tolist(),
            prompt_index=[row // group_size for row in range(len(token_ids))],
            forward_tokens=self.forward_tokens - before,
            computed_tokens=self.computed_tokens - computed,
        )

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """Next-token logits in float32; where a subclass may steer what is said."""
        return self.head(hidden)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without gradients, dropout and gradient checkpointing (which silently turns the cache off), whatever a training loop had
        set.
        """
        training = [module for module in self.causal.modules() if module.training]
        self.causal.eval()
        # Inference mode keeps no record of views and versions, a tenth of a small step. Sharded and quantised parameters keep
        # tensors between passes, and those must not be of the kind that training cannot use.
        plain = all(type(parameter.data) is Tensor for parameter in self.causal.parameters())
        try:
            with torch.inference_mode() if plain else torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        empty = next((i for i, prompt in enumerate(prompts) if len(prompt) == 0), None)
        if empty is not None:
            raise ValueError(f"Prompt {empty} has no tokens; render it with search_r3_mteb.encoder.prompts first.")

    def prefix_length(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that all prompts begin with and that are run once for all of them."""
        return common_prefix_length(prompts) if self.share_prefix and len(prompts) > 1 else 0

    def prefill(self, prompts: Sequence[Sequence[int]], prefix: int, cache: Any) -> Float[Tensor, "rows dim"]:
        """Hidden states at the last token of each prompt; the first `prefix` tokens are in the cache already.

        Right padding needs no mask under causal attention: what follows a row's last token cannot reach it.
        """
        lengths = [len(prompt) - prefix for prompt in prompts]
        width = max(lengths)
        ids = torch.tensor(
            [
                [*prompt[prefix:], *[self.embed_token_id] * (width - n)]
                for prompt, n in zip(prompts, lengths, strict=True)
            ]
        )
        positions = torch.arange(prefix, prefix + width, device=self.device).expand(len(prompts), -1)
        output = self.backbone(
            input_ids=ids.to(self.device), position_ids=positions, past_key_values=cache, use_cache=cache is not None
        )
        self.forward_tokens += sum(lengths)
        self.computed_tokens += ids.numel()
        last = torch.tensor(lengths, device=self.device) - 1
        return output.last_hidden_state[torch.arange(len(prompts), device=self.device), last]


def unwrap(model: Any) -> Any:
    """The Hugging Face causal LM inside a distributed or PEFT wrapper; adapters stay active, they live in its layers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
