"""Controls: a system whose queries are embedded after another reasoning than the one that it wrote.

    filler     as many tokens that say nothing   more computation and a longer context, without words
    other      another query's reasoning         that something is said in the model's style, about no matter what
    shuffled   its own words in another order    the words (as an expansion of the query), without what they say
    empty      no reasoning                      the prompt for reasoning, which differs from the direct one

If the query's own reasoning is not better than its control, then what the control keeps explains the quality. A
control's row has the tokens that were read, not generated, and the time of reading them; what writing them cost is in
the row of the query's own reasoning.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from search_r3_mteb.encoder.inputs import is_query, read_queries
from search_r3_mteb.encoder.settings import Mode, Statistics
from search_r3_mteb.encoder.store import fingerprint_of
from search_r3_mteb.evaluation.reasoning_variants import (
    filler,
    filler_text,
    others,
    shuffled_text,
    shuffled_words,
)
from search_r3_mteb.evaluation.recording import RecordedEncoder, RecordedSearch
from search_r3_mteb.evaluation.systems import System

ControlName: TypeAlias = Literal["filler", "other", "shuffled", "empty"]
CONTROL_NAMES: tuple[ControlName, ...] = get_args(ControlName)


class ControlledEncoder:
    """`encoder` with each query's reasoning exchanged for its control, drawn with `seed`.

    It needs the encoder's `think(texts, reasoning=...)`; documents are those of the encoder. Its statistics count the
    pass over the control alone.
    """

    mode: Mode = "reason"

    def __init__(self, encoder: Any, control: ControlName, seed: int = 0) -> None:
        self.encoder, self.control, self.seed = encoder, control, seed
        self.task_prompts: bool = encoder.task_prompts
        self.statistics = Statistics()

    def think(
        self,
        texts: Sequence[str],
        *,
        instruction: Sequence[str | None] | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Any]:
        """The controls of these texts and the vectors after them. Raises ValueError for "other" with one text."""
        own = self.encoder.think(texts, instruction=instruction, show_progress_bar=show_progress_bar)
        given = self.reasonings(own)
        before = self.encoder.statistics.query_seconds
        thoughts: list[Any] = self.encoder.think(
            texts, instruction=instruction, reasoning=given, show_progress_bar=show_progress_bar
        )
        self.statistics.query_seconds += self.encoder.statistics.query_seconds - before
        self.statistics.queries += len(thoughts)
        return thoughts

    def reasonings(self, own: Sequence[Any]) -> list[Any]:
        """What is read in place of the query's own thoughts: token ids for our checkpoints, thoughts for a writer.

        Ids are exact: decoding them and reading the text again may give others. A writer's texts are exchanged one by
        one where it writes several.
        """
        rng = np.random.default_rng(self.seed)
        if self.control == "other":
            if len(own) < 2:
                raise ValueError("The control 'other' needs two queries: with one there is no other reasoning to give.")
            places = others(len(own), rng).tolist()
        renderer = getattr(self.encoder, "renderer", None)
        if renderer is None:
            if self.control == "other":
                return [own[place] for place in places]
            return [self._rewritten(thought, rng) for thought in own]
        ids = [list(thought.token_ids) for thought in own]
        if self.control == "other":
            return [ids[place] for place in places]
        if self.control == "filler":
            return filler(ids, renderer)
        if self.control == "shuffled":
            return shuffled_words(ids, renderer, rng, self.encoder.settings["max_reasoning_tokens"])
        return [[] for _ in ids]

    def _rewritten(self, thought: Any, rng: np.random.Generator) -> Any:
        """A writer's thought with other texts; its tokens are as many, and none for "empty"."""
        if self.control == "empty":
            return replace(thought, text="", texts=("",) * len(thought.texts), token_ids=[], finished=True)
        if self.control == "filler":
            tokens = len(thought.token_ids) // len(thought.texts)
            texts = (filler_text(tokens),) * len(thought.texts)
        else:
            texts = tuple(shuffled_text(text, rng) for text in thought.texts)
        return replace(thought, text="\n\n".join(texts), texts=texts)

    def encode(self, inputs: Any, *, task_metadata: Any = None, prompt_type: Any = None, **keywords: Any) -> Any:
        """MTEB's encode: queries after the control, documents as the encoder embeds them."""
        if not is_query(prompt_type):
            before = self.encoder.statistics.document_seconds
            vectors = self.encoder.encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **keywords)
            self.statistics.document_seconds += self.encoder.statistics.document_seconds - before
            return vectors
        texts, instructions = read_queries(inputs, task_metadata if self.task_prompts else None)
        return np.stack([thought.vector for thought in self.think(texts, instruction=instructions)])

    def similarity(self, first: Any, second: Any) -> Any:
        """The encoder's own similarity (n, m)."""
        return self.encoder.similarity(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """The encoder's own similarity (n,), row by row."""
        return self.encoder.similarity_pairwise(first, second)


class ControlledSearch(ControlledEncoder):
    """The same around a search model, which looks at the corpus before it writes."""

    def index(self, corpus: Any, **keywords: Any) -> None:
        """MTEB's index, by the model itself."""
        before = self.encoder.statistics.document_seconds
        self.encoder.index(corpus, **keywords)
        self.statistics.document_seconds += self.encoder.statistics.document_seconds - before

    def search(self, queries: Any, **keywords: Any) -> Any:
        """MTEB's search with the controls in the place of what the model writes."""
        return self.encoder.search(queries, think=self.think, **keywords)


def controlled(system: System, control: ControlName, seed: int = 0) -> System:
    """The control of a system that reasons, as a system of its own, labelled LABEL-CONTROL.

    Raises ValueError for a system whose reasoning cannot be exchanged: one that does not reason, or that only gives
    vectors (an export that sentence-transformers runs).
    """
    if not can_be_controlled(system):
        raise ValueError(
            f"{system.label} ({system.mode}) has no reasoning to exchange, so control {control!r} means nothing for "
            "it. Controls are for systems with think(texts, reasoning=...) in mode 'reason': leave the control out."
        )
    model = system.model
    settings = {"control": control, "control_seed": seed}
    fingerprint = fingerprint_of({"system": system.fingerprint, **settings})
    meta = model.mteb_model_meta.model_copy(
        update={
            "name": f"{model.mteb_model_meta.name}-{control}",
            "experiment_kwargs": {**(model.mteb_model_meta.experiment_kwargs or {}), "fingerprint": fingerprint[:16]},
        }
    )
    return replace(
        system,
        label=f"{system.label}-{control}",
        model=RecordedEncoder(ControlledEncoder(model.encoder, control, seed), meta)
        if isinstance(model, RecordedEncoder)
        else RecordedSearch(ControlledSearch(model.search_model, control, seed), meta),
        fingerprint=fingerprint,
        settings={**system.settings, **settings},
    )


def can_be_controlled(system: System) -> bool:
    """Whether the system's reasoning can be exchanged."""
    model = system.model
    think = getattr(model.encoder if isinstance(model, RecordedEncoder) else model.search_model, "think", None)
    return system.mode == "reason" and think is not None and "reasoning" in inspect.signature(think).parameters
