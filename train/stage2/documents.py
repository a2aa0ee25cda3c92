"""The encoder of the searched corpus's documents, under the present weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.search.arrays import Vectors
from train.model.model import embed, unwrapped_peft


class DocumentEncoder:
    """Texts to vectors for the corpus cache; the vectors that `know` was given are not computed again.

    `frozen`: documents are embedded with the adapter of `model` switched off. `autocast` is the training's context.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        renderer: Renderer,
        *,
        frozen: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model, self.engine, self._renderer = model, engine, renderer
        self._frozen, self._autocast = frozen, autocast
        self.known: dict[str, Vectors] = {}

    def __call__(self, texts: list[str]) -> Vectors:
        """Unit vectors (n, dim)."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        found = dict(self.known)
        if missing:
            adapter = unwrapped_peft(self.model).disable_adapter() if self._frozen else nullcontext()
            with adapter, self._autocast():
                found |= dict(zip(missing, embed(self.engine, self._renderer, missing), strict=True))
        return np.stack([found[text] for text in texts])

    def know(self, texts: Sequence[str], vectors: torch.Tensor | None) -> None:
        """Take vectors (n, dim) that the loss has just computed for these texts with the present weights."""
        if vectors is None:
            return
        unit = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=-1).numpy()
        self.known = dict(zip(texts, unit, strict=True))

    def forget(self) -> None:
        """Drop the known vectors, since the weights are about to move."""
        self.known = {}

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that encoding each text takes."""
        return [len(prompt.token_ids) for prompt in self._renderer.render_batch(texts, "direct")]

    def tokenizer_name(self) -> str:
        """Hash of all that decides `count_tokens`: the tokenizer, the frame of a document, the limit of its length."""
        backend = json.loads(self._renderer.tokenizer.backend_tokenizer.to_str())
        for state_of_the_last_call in ("padding", "truncation"):
            backend.pop(state_of_the_last_call, None)
        (framed,) = self._renderer.render_batch(["a"], "direct")
        parts = [backend, list(framed.token_ids), self._renderer.max_length]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
