"""vLLM behind the encoder: token ids in, vectors out, like our own engine (`encoder/engine.py`).

reason  every prompt is a request of vLLM: continuous batching, paged attention, prefix caching, chunked prefill. A
        row ends in the embed token there (`worker.py`), and the state of the step that read it comes back: one pass
embed   what already ends in the embed token. In float32 on a processor by our own engine, which is nearly as fast
        there (results/speed/vllm.md) and shares what is stored; else by vLLM, as requests that say nothing
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.comparison import probe_prompts
from search_r3_mteb.encoder.engine import Engine, Rollouts
from search_r3_mteb.encoder.fingerprint import weights_version
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.vllm.running import RunningVllm, check_options, installed_version, platform
from search_r3_mteb.encoder.vllm.turns import TurnRules
from search_r3_mteb.encoder.vllm.weights import readable_folder

# Lowest cosine of vLLM's states to our own on a few texts, by dtype (our choice). Measured on SmolLM2: 1 to six
# digits in float32, 0.9995 in bfloat16; a rounded model stays above these, another model does not come near them.
LEAST_COSINE = {torch.float32: 0.9999, torch.float16: 0.995, torch.bfloat16: 0.99}

# What runs, by the model in memory, its state, positions and options.
_RUNNING: WeakValueDictionary[tuple[int, int, int, str], RunningVllm] = WeakValueDictionary()


class VllmEngine:
    """Vectors of prompts by vLLM, which is started when it is first needed and ends with this object.

    `own` is our engine on the same checkpoint. `positions` are those of a row, in tokens: prompt, reasoning and embed
    token. `options` are vLLM's `EngineArgs`, such as tensor_parallel_size. `embeds`: whether direct prompts go to vLLM
    too; None: on a GPU, and in half precision. The counters are those of `Backbone`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        own: Engine,
        *,
        folder: Path | None,
        positions: int,
        trust_remote_code: bool = False,
        options: Mapping[str, Any] | None = None,
        embeds: bool | None = None,
    ) -> None:
        self.options = dict(options or {})
        check_options(self.options)
        self.version = installed_version()
        self.checkpoint, self.own, self.folder, self.positions = checkpoint, own, folder, positions
        self.trust_remote_code, self._embeds = trust_remote_code, embeds
        self.embed_token_id, self.stop_token_ids = own.embed_token_id, own.stop_token_ids
        self.token_budget, self.batch_invariant, self.causal = own.token_budget, own.batch_invariant, own.causal
        self.dim, self.vocabulary = own.dim, own.vocabulary
        self.forward_tokens = self.computed_tokens = 0
        self._running: RunningVllm | None = None
        self._weights = weights_version(checkpoint.model)

    # ---- identity --------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where vLLM runs."""
        return torch.device(platform().device_type)

    @property
    def embeds(self) -> bool:
        """Whether direct prompts go to vLLM."""
        if self._embeds is not None:
            return self._embeds
        return self.causal.dtype.itemsize < 4 or self.device.type != "cpu"

    def identity(self, reasons: bool) -> dict[str, Any]:
        """What decides a vector that vLLM computed: its version and options; nothing of what our engine computes."""
        if not (reasons or self.embeds):
            return {}
        return {"engine": f"vllm {self.version}", "engine_options": json.dumps(self.options, sort_keys=True)}

    # ---- vectors ---------------------------------------------------------------------------------------------------

    def embed(
        self, prompts: Sequence[Sequence[int]], on_batch: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n dim"]:
        """Vectors (n, dim), float32 on the CPU, of prompts that already end in the embed token."""
        if not self.embeds:
            before = self.own.forward_tokens, self.own.computed_tokens
            vectors = self.own.embed(prompts, on_batch)
            self.forward_tokens += self.own.forward_tokens - before[0]
            self.computed_tokens += self.own.computed_tokens - before[1]
            return vectors
        self.own.check_direct(prompts)
        return self._direct(self.running(), prompts, on_batch)

    def reason(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        log_probs: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Reason from each prompt `group_size` times, and embed, in one pass; the same draws as our own engine's.

        Raises ValueError for `log_probs`, which vLLM does not give here, and for prompts that with their budget are
        longer than what it was started for.
        """
        if log_probs:
            raise ValueError(
                "log_probs=True was given, but a row's tokens are drawn and forced before vLLM sees their "
                "probabilities. Use our own engine for rollouts with log-probabilities."
            )
        self.own.check_prompts(prompts, group_size)
        longest = max(map(len, prompts), default=0) + sampling.max_reasoning_tokens + 1
        if longest > self.positions:
            raise ValueError(
                f"A prompt with its reasoning and embed token takes up to {longest} positions, but vLLM was started "
                f"for {self.positions}. Make the encoder with a max_reasoning_tokens of at least "
                f"{sampling.max_reasoning_tokens}."
            )
        draws: list[Any] = [()] * (len(prompts) * group_size)
        if sampling.temperature > 0:
            draws = [tuple(row) for row in sampling.draws(prompts, group_size).tolist()]
        batch = uuid.uuid4().hex
        rules = [
            TurnRules(
                f"{batch}-{row}",
                self.embed_token_id,
                sampling.max_reasoning_tokens,
                self.stop_token_ids,
                temperature=sampling.temperature,
                draws=drawn,
            )
            for row, drawn in enumerate(draws)
        ]
        spread = [prompt for prompt in prompts for _ in range(group_size)]
        found = self.running().run(spread, rules, on_batch)
        token_ids = [found[rule.key][0] for rule in rules]
        tokens = self._count(spread, rules, found)
        return Rollouts(
            vectors=self._vectors(rules, found),
            token_ids=token_ids,
            log_probs=[[] for _ in rules],
            finished=[found[rule.key][2] is not False for rule in rules],
            prompt_index=[row // group_size for row in range(len(rules))],
            forward_tokens=tokens,
            computed_tokens=tokens,
        )

    def running(self) -> RunningVllm:
        """vLLM, started and compared with our own engine when it is first asked for.

        Raises ValueError where its states are not ours, and after the weights of the checkpoint have changed.
        """
        if weights_version(self.checkpoint.model) != self._weights:
            raise ValueError(
                f"{self.checkpoint.name}: the weights have changed since this encoder was made, and vLLM has a copy of "
                "them as they were. Make a new encoder."
            )
        if self._running is None:
            # Encoders of one checkpoint in both modes share it: a GPU has no room for two.
            key = (id(self.causal), self._weights, self.positions, json.dumps(self.options, sort_keys=True))
            self._running = _RUNNING.get(key) or self._started()
            _RUNNING[key] = self._running
        return self._running

    def _started(self) -> RunningVllm:
        with readable_folder(self.checkpoint, self.folder) as folder:
            running = RunningVllm.start(
                folder,
                dtype=str(self.causal.dtype).removeprefix("torch."),
                positions=self.positions,
                trust_remote_code=self.trust_remote_code,
                options=self.options,
            )
        running.source = self.causal
        try:
            self._compare(running)
        except Exception:
            running.stop()
            raise
        return running

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _direct(
        self, running: RunningVllm, prompts: Sequence[Sequence[int]], on_batch: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n dim"]:
        batch = uuid.uuid4().hex
        rules = [TurnRules(f"{batch}-{row}", self.embed_token_id, direct=True) for row in range(len(prompts))]
        found = running.run(prompts, rules, on_batch)
        self._count(prompts, rules, found)
        return self._vectors(rules, found)

    def _vectors(self, rules: Sequence[TurnRules], found: Mapping[str, Any]) -> Float[Tensor, "rows dim"]:
        rows = [torch.frombuffer(bytearray(found[rule.key][1]), dtype=torch.float32) for rule in rules]
        return torch.stack(rows) if rows else torch.empty(0, self.dim)

    def _count(self, prompts: Sequence[Sequence[int]], rules: Sequence[TurnRules], found: Mapping[str, Any]) -> int:
        """Add what went through the model: prompts without what the prefix cache had, and what was said."""
        tokens = sum(
            len(prompt) - found[rule.key][3] + len(found[rule.key][0])
            for prompt, rule in zip(prompts, rules, strict=True)
        )
        self.forward_tokens += tokens
        self.computed_tokens += tokens
        return tokens

    def _compare(self, running: RunningVllm) -> None:
        """Raises ValueError unless vLLM's states of a few texts are those of our own engine."""
        prompts = probe_prompts(self.checkpoint.tokenizer, self.embed_token_id)
        prompts = [prompt for prompt in prompts if prompt[-1] == self.embed_token_id]
        prompts = [prompt for prompt in prompts if len(prompt) <= self.positions]
        before = self.forward_tokens, self.computed_tokens
        ours, theirs = self.own.embed(prompts), self._direct(running, prompts)
        self.forward_tokens, self.computed_tokens = before
        cosine = float(torch.nn.functional.cosine_similarity(ours, theirs).min())
        least = LEAST_COSINE[self.causal.dtype]
        if not cosine >= least:
            raise ValueError(
                f"{self.checkpoint.name}: vLLM {self.version} computes other hidden states for this model than "
                f"transformers does: cosine {cosine:.4f} on a few texts, where {least} is the least allowed in "
                f"{self.causal.dtype}. Its vectors would be those of another model. Use engine='own'."
            )
