"""The engine: token ids in, vectors out. Inference and training rollouts both run the model through it.

A row is prefilled once and sampled token by token; its vector is the final-norm hidden state of the decode step that
*reads* the embed token. Neither prompt nor reasoning is run a second time, and the embedded ids are the sampled ids.

    prefill the shared prefix once -> prefill the rest of each prompt -> decode (`decode.py`): sample, force the token
    where the budget is spent, feed, keep the state of rows that just read it; rows leave and waiting prompts enter
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.backbone import Backbone
from search_r3_mteb.encoder.decode import Decode
from search_r3_mteb.encoder.packing import packed_linears
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.slots import prefix_cache


@dataclass
class Rollouts:
    """Results of prompts x group rows; row r belongs to prompt `prompt_index[r]`, and a group's rows are adjacent.

    `vectors` (rows, dim) are float32 on the CPU, not normalised. `token_ids[r]` are the generated ids, the embed token
    last; `log_probs[r]` their natural-log probabilities under the sampling distribution (greedy: at temperature 1), or
    empty when not asked for. `finished[r]` is False where the token was forced: the budget was spent, or the model
    ended its turn without the token. The counters are those of `Backbone`, for this call.
    """

    vectors: Float[Tensor, "rows dim"]
    token_ids: list[list[int]]
    log_probs: list[list[float]]
    finished: list[bool]
    prompt_index: list[int]
    forward_tokens: int
    computed_tokens: int


@dataclass
class Engine(Backbone):
    """Vectors of prompts, embedded directly or after reasoning, from a causal LM with a key-value cache."""

    decoder: ClassVar[type[Decode]] = Decode  # the benchmark uses one whose rows have given lengths
    packing: bool = True  # weights that fit are packed while decoding, which pays after some steps

    def embed(
        self, prompts: Sequence[Sequence[int]], on_batch: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n dim"]:
        """Vectors (n, dim), float32 on the CPU, of prompts that already end in the embed token.

        Sorted by length, right-padded, without the head. `on_batch` is called with the number of rows after each batch.
        """
        self.check_direct(prompts)
        vectors = torch.empty(len(prompts), self.dim)
        with self.evaluating():
            prefix = self.prefix_length(prompts)
            cache = prefix_cache() if prefix else None
            if prefix:
                self.prefill([prompts[0][:prefix]], 0, cache)
            for batch in self.prefill_batches([len(prompt) for prompt in prompts]):
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

        `reread=True` runs prompt + generated ids again for the vector, as the released example does; only the equality
        test and the benchmark do so. `log_probs=False` saves a pass over the vocabulary at every token. `on_batch` is
        called with the number of rows that just finished.
        """
        self.check_prompts(prompts, group_size)
        if self.shapes is not None and group_size > self.shapes.rows:
            raise ValueError(
                f"group_size={group_size}: a batch-invariant engine decodes {self.shapes.rows} rows at once, and a "
                "group's rows enter together. Lower it, or leave batch_invariant out."
            )
        before, computed = self.forward_tokens, self.computed_tokens
        run = self.decoder(self, prompts, sampling, group_size, log_probs, on_batch)
        rows = len(prompts) * group_size if self.shapes is None else self.shapes.rows
        with self.evaluating(), packed_linears(self.causal, rows) if self.packing else nullcontext():
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

    def identity(self, reasons: bool) -> dict[str, Any]:
        """Nothing: `arithmetic` says all that decides a vector of this engine, whether its row `reasons` or not."""
        return {}

    def check_prompts(self, prompts: Sequence[Sequence[int]], group_size: int = 1) -> None:
        """ValueError for a prompt without tokens, and for a group without rows."""
        empty = next((i for i, prompt in enumerate(prompts) if len(prompt) == 0), None)
        if empty is not None:
            raise ValueError(f"Prompt {empty} has no tokens; render it with search_r3_mteb.encoder.prompts first.")
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: each prompt needs at least one rollout.")

    def check_direct(self, prompts: Sequence[Sequence[int]]) -> None:
        """ValueError for a prompt that does not end in the embed token."""
        self.check_prompts(prompts)
        wrong = next((i for i, prompt in enumerate(prompts) if prompt[-1] != self.embed_token_id), None)
        if wrong is not None:
            raise ValueError(
                f"Prompt {wrong} ends in token {prompts[wrong][-1]}, not in the embed token {self.embed_token_id}: "
                "its vector would be read at the wrong place. Render it with the direct template."
            )
