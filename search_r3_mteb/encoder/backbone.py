"""The causal LM that engine and decode loop run: prefilling, logits, and counters of tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.architecture import Architecture
from search_r3_mteb.encoder.fixed_shapes import FixedShapes, fixed_shapes
from search_r3_mteb.encoder.head import Head
from search_r3_mteb.encoder.masks import DecodeMasks
from search_r3_mteb.encoder.scheduling import common_prefix_length, length_sorted_batches, prefill_budget

# Layers whose whole state is one key and one value per token, which can be padded, moved and dropped by column.
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass
class Backbone:
    """A Hugging Face causal LM with a key-value cache; `token_budget` bounds rows x length of what runs at once.

    `stop_token_ids` end a row's reasoning (the embed token is then forced). `share_prefix=False` prefills whole
    prompts, for the equality test and the benchmark. `batch_invariant`: every forward pass has a shape that does not
    depend on the other rows (`fixed_shapes.py`), instead of `token_budget` and a shared prefix. `forward_tokens` counts
    the real tokens that went through the model, `computed_tokens` also padding and rows that are done.
    """

    model: Any
    embed_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    token_budget: int = 16384
    share_prefix: bool = True
    batch_invariant: bool = False
    forward_tokens: int = field(default=0, init=False)
    computed_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.causal = unwrap(self.model)
        self.architecture = Architecture(self.causal)
        self.base_model = self.architecture.backbone
        self.head = Head(self.causal)
        layers = set(getattr(self.causal.config.get_text_config(), "layer_types", None) or ())
        if getattr(self.causal, "_is_stateful", False) or not layers <= _PLAIN_LAYERS:
            raise ValueError(
                f"{type(self.causal).__name__} keeps a recurrent or compressed state "
                f"({', '.join(sorted(layers)) or 'stateful'}), which padding would leak into: its vectors would depend "
                "on the batch. Use a model with a plain key-value cache."
            )
        self.device = next(self.causal.parameters()).device
        self.dim = self.head.dim
        # Without masks or positions of their own, rows can only be stepped together while they are at one position.
        self.abreast = DecodeMasks(self.base_model).blind or self.architecture.one_position
        self.shapes: FixedShapes | None = None
        if self.batch_invariant:
            self.shapes = fixed_shapes(self.causal.config.get_text_config(), self.device.type, self.abreast)

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return self.head.vocabulary

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """Next-token logits in float32. A subclass may change them to steer the reasoning."""
        return self.head(hidden)

    def prefix_length(self, prompts: Sequence[Sequence[int]]) -> int:
        """Number of tokens that all prompts begin with, which are run once for all of them."""
        share = self.share_prefix and self.shapes is None and len(prompts) > 1
        return common_prefix_length(prompts) if share else 0

    def prefill_batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Numbers of the prompts, of these lengths in tokens, that are prefilled together."""
        if self.shapes is not None:
            return self.shapes.batches(lengths)
        return length_sorted_batches(lengths, prefill_budget(self.token_budget, self.device.type))

    def prefill_rows(self, prompts: Sequence[Sequence[int]]) -> int:
        """Rows of the forward pass that prefills these prompts together."""
        return len(prompts) if self.shapes is None else self.shapes.padded(max(map(len, prompts)))[0]

    def prefill(self, prompts: Sequence[Sequence[int]], prefix: int, cache: Any) -> Float[Tensor, "rows dim"]:
        """Hidden states at the last token of each prompt; the first `prefix` tokens are in the cache already.

        Right padding needs no mask under causal attention: what follows a row's last token cannot reach it.
        """
        lengths = [len(prompt) - prefix for prompt in prompts]
        longest, rows = max(lengths), self.prefill_rows(prompts)
        width = longest if self.shapes is None else self.shapes.padded(longest)[1]
        padded = [
            [*prompt[prefix:], *[self.embed_token_id] * (width - n)] for prompt, n in zip(prompts, lengths, strict=True)
        ]
        ids = torch.tensor(padded + padded[:1] * (rows - len(prompts)))
        positions = torch.arange(prefix, prefix + width, device=self.device).expand(rows, -1)
        if width > longest:  # padding may not leave the model's window
            positions = positions.clamp(max=prefix + longest - 1)
        output = self.base_model(
            input_ids=ids.to(self.device), use_cache=cache is not None, **self.architecture.inputs(positions, cache)
        )
        self.forward_tokens += sum(lengths)
        self.computed_tokens += ids.numel()
        last = torch.tensor(lengths, device=self.device) - 1
        return output.last_hidden_state[torch.arange(len(prompts), device=self.device), last]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context without gradients, dropout and gradient checkpointing (which silently turns the cache off)."""
        training = [module for module in self.causal.modules() if module.training]
        self.causal.eval()
        # Inference mode keeps no record of views and versions, a tenth of a small step. Sharded and quantised
        # parameters keep tensors between passes, and training cannot use tensors made in inference mode.
        plain = all(type(parameter.data) is Tensor for parameter in self.causal.parameters())
        try:
            with torch.inference_mode() if plain else torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def unwrap(model: Any) -> Any:
    """The Hugging Face causal LM inside a distributed or PEFT wrapper; adapters live in its layers and stay active."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
