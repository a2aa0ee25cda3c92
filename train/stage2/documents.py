"""The encoder of the searched corpus's documents, under the present weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

import search_r3_mteb
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.special_tokens import list_special_tokens, unknown_token
from search_r3_mteb.search.arrays import Vectors
from train.model.model import Base, embed_prompts


class DocumentEncoder:
    """Texts to vectors for the corpus cache; the vectors that `know` was given are not computed again.

    `frozen`: the model before training, where documents are embedded with that. `autocast` is the training's context.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        renderer: Renderer,
        *,
        frozen: Base | None,
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
            before = nullcontext() if self._frozen is None else self._frozen.at_start()
            with before, self._autocast():
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
        """Hash of all that decides `tokenize`: the tokenizer, the profile's templates, the limit of the length, and the
        code, by its versions and by the ids of texts that spell a marker or the unknown token.
        """
        renderer = self._renderer
        backend = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
        for state_of_the_last_call in ("padding", "truncation"):
            backend.pop(state_of_the_last_call, None)
        template = getattr(renderer.tokenizer, "chat_template", None)
        spelled = [renderer.profile.embed_token, *list_special_tokens(renderer.tokenizer)]
        spelled += unknown_token(renderer.tokenizer).values()
        probes = ["a", " two words. ", *(f"a {token} b{token}" for token in spelled)]
        framed = [_ids_or_refusal(renderer, probe) for probe in probes]
        code = [package.__version__ for package in (search_r3_mteb, transformers, tokenizers)]
        parts = [backend, template, asdict(renderer.profile), framed, renderer.max_length, code]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _ids_or_refusal(renderer: Renderer, text: str) -> list[int] | str:
    """The ids of a text; where the tokenizer cannot tell its marker from text, what it says instead."""
    try:
        return renderer.render(text, "direct").token_ids
    except ValueError as error:
        return str(error)
