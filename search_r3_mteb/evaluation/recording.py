"""Wrappers of the models that MTEB runs, which take times and keep thoughts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from search_r3_mteb.encoder.settings import Mode, Statistics
from search_r3_mteb.encoder.thoughts import Thought

if TYPE_CHECKING:
    from search_r3_mteb.evaluation.given_file import GivenFile

Spoken: TypeAlias = tuple[str | None, int | None, bool | None]
"""A query's reasoning, its number of tokens, and whether the model ended it itself."""


@runtime_checkable
class Thinker(Protocol):
    """An encoder that tells what it thought and how long it worked: SearchR3Encoder, WriterEncoder.

    A search model that is one takes the keyword `on_thoughts`, which it calls with the queries' thoughts.
    """

    statistics: Statistics

    @property
    def mode(self) -> Mode:
        """Either "reason", where thoughts are to be kept, or "direct"."""

    @property
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is put before the query."""

    def think(self, texts: Sequence[str], **keywords: Any) -> Sequence[Thought]:
        """One thought per text."""


def spoken(thought: Thought) -> Spoken:
    """The part of a thought that is recorded."""
    return (None, 0, None) if thought.abstained else (thought.text, len(thought.token_ids), thought.finished)


@dataclass
class SplitRecord:
    """Numbers of texts of one split, seconds of the model's work on them, and thoughts.

    `thoughts` holds, for each subset, one entry per query in the task's order; it is empty if nothing reasoned.
    """

    queries: int = 0
    documents: int = 0
    query_seconds: float = 0.0
    document_seconds: float = 0.0
    thoughts: dict[str, list[Spoken]] = field(default_factory=dict)

    def add(self, is_query: bool, rows: int, seconds: float) -> None:
        """Count `rows` texts that took `seconds`."""
        if is_query:
            self.queries += rows
            self.query_seconds += seconds
        else:
            self.documents += rows
            self.document_seconds += seconds


class _Kept:
    """MTEB's loader of batches with the batches read."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._batches = loader, list(loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class RecordedEncoder:
    """An encoder for MTEB; `encoder` is ours or any other that MTEB takes.

    With `given`, queries are read with the reasonings of a file, by their ids, and nothing is reasoned.

    Seconds are those of the encoder's work on texts that are there. Ours count them themselves: what comes from the
    store counts with the time that computing it took. Of others the call is timed, after MTEB's loader has given its
    batches: reading these is not the model's work, and ours do not count it either.
    """

    def __init__(self, encoder: Any, mteb_model_meta: Any, given: "GivenFile | None" = None) -> None:
        self.encoder = encoder
        self.given = given
        self.mteb_model_meta = mteb_model_meta
        self.records: dict[str, SplitRecord] = {}

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **keywords: Any,
    ) -> Any:
        """MTEB's encode. In mode "reason" the thoughts are kept."""
        from search_r3_mteb.encoder.inputs import is_query, read_queries

        record = self.records.setdefault(hf_split, SplitRecord())
        query = is_query(prompt_type)
        ours = isinstance(self.encoder, Thinker)
        before = seconds_of(self.encoder, query) if ours else 0.0
        inputs = inputs if ours else _Kept(inputs)
        start = time.perf_counter()
        if ours and query and self.encoder.mode == "reason":
            batches = list(inputs)
            texts, instructions = read_queries(batches, task_metadata if self.encoder.task_prompts else None)
            show = keywords.get("show_progress_bar")
            said = {}
            if self.given is not None:
                said["reasoning"] = self.given.of([id_ for batch in batches for id_ in batch["id"]], hf_subset)
            thoughts = self.encoder.think(texts, instruction=instructions, show_progress_bar=show, **said)
            kept = record.thoughts.setdefault(hf_subset, [])
            kept += map(spoken, thoughts)
            vectors = np.stack([thought.vector for thought in thoughts])
        else:
            place = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
            vectors = self.encoder.encode(inputs, prompt_type=prompt_type, **place, **keywords)
        seconds = seconds_of(self.encoder, query) - before if ours else time.perf_counter() - start
        record.add(query, len(vectors), seconds)
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity (queries, documents)."""
        return self.encoder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity, row by row."""
        return self.encoder.similarity_pairwise(embeddings1, embeddings2)


def seconds_of(thinker: Thinker, query: bool) -> float:
    """Seconds of a thinker's work on queries or documents, with what computing the stored ones took."""
    return float(thinker.statistics.query_seconds if query else thinker.statistics.document_seconds)


class RecordedSearch:
    """A search model for MTEB: indexing counts as work on the documents, searching as work on the queries.

    Of a `Thinker` (pseudo-relevance feedback) the thoughts are kept, and the seconds are those of its statistics.
    """

    def __init__(self, search_model: Any, mteb_model_meta: Any) -> None:
        self.search_model = search_model
        self.mteb_model_meta = mteb_model_meta
        self.records: dict[str, SplitRecord] = {}

    def index(self, corpus: Any, *, hf_split: str, **keywords: Any) -> None:
        """MTEB's index."""
        clock = self._clock(False)
        self.search_model.index(corpus, hf_split=hf_split, **keywords)
        self.records.setdefault(hf_split, SplitRecord()).add(False, len(corpus), clock())

    def search(self, queries: Any, *, hf_split: str, hf_subset: str, **keywords: Any) -> Any:
        """MTEB's search. In mode "reason" the thoughts are kept."""
        record = self.records.setdefault(hf_split, SplitRecord())
        if isinstance(self.search_model, Thinker) and self.search_model.mode == "reason":
            kept = record.thoughts.setdefault(hf_subset, [])
            keywords["on_thoughts"] = lambda thoughts: kept.extend(map(spoken, thoughts))
        clock = self._clock(True)
        results = self.search_model.search(queries, hf_split=hf_split, hf_subset=hf_subset, **keywords)
        record.add(True, len(queries), clock())
        return results

    def _clock(self, query: bool) -> Callable[[], float]:
        """Gives the seconds of work since it was made."""
        model, start = self.search_model, time.perf_counter()
        if not isinstance(model, Thinker):
            return lambda: time.perf_counter() - start
        before = seconds_of(model, query)
        return lambda: seconds_of(model, query) - before
