"""The encoder of the searched corpus's documents, under the present weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.search.arrays import Vectors
from train.model.model import embed_prompts, unwrapped_peft


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

    def __call__(self, texts: list[str], token_ids: Sequence[Sequence[int]] | None = None) -> Vectors:
        """Unit vectors (n, dim); `token_ids` are what `tokenize` gives for the texts, where that is at hand."""
        missing: dict[str, int] = {}
        for place, text in enumerate(texts):
            if text not in self.known:
                missing.setdefault(text, place)
        found = dict(self.known)
        if missing:
            known = None if token_ids is None else [token_ids[place] for place in missing.values()]
            adapter = unwrapped_peft(self.model).disable_adapter() if self._frozen else nullcontext()
            with adapter, self._autocast():
                vectors = embed_prompts(self.engine, self.tokenize(list(missing)) if known is None else known)
            found |= dict(zip(missing, vectors, strict=True))
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

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The token ids that the engine is fed for each text."""
        return [prompt.token_ids for prompt in self._renderer.render_batch(texts, "direct")]

    def tokenizer_name(self) -> str:
        """Hash of all that decides `tokenize`: the tokenizer, the profile's templates, the limit of the length."""
        renderer = self._renderer
        backend = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
        for state_of_the_last_call in ("padding", "truncation"):
            backend.pop(state_of_the_last_call, None)
        template = getattr(renderer.tokenizer, "chat_template", None)
        framed = [prompt.token_ids for prompt in renderer.render_batch(["a", " two words. "], "direct")]
        parts = [backend, template, asdict(renderer.profile), framed, renderer.max_length]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
