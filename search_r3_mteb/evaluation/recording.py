"""Wrappers of the models that MTEB runs, which take times and keep thoughts."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from search_r3_mteb.evaluation.given_file import GivenFile

Spoken: TypeAlias = tuple[str | None, int | None, bool | None]
"""A query's reasoning, its number of tokens, and whether the model ended it itself."""


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


class RecordedEncoder:
    """An encoder for MTEB; `encoder` is ours or any other that MTEB takes.

    With `given`, queries are read with the reasonings of a file, by their ids, and nothing is reasoned.

    The seconds of ours are those of its statistics: what comes from the store counts with the time that computing it
    took.
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
        from search_r3_mteb.encoder.encoder import SearchR3Encoder
        from search_r3_mteb.encoder.inputs import is_query, read_queries

        record = self.records.setdefault(hf_split, SplitRecord())
        query = is_query(prompt_type)
        ours = isinstance(self.encoder, SearchR3Encoder)
        before = self._seconds(query) if ours else 0.0
        start = time.perf_counter()
        if ours and query and self.encoder.mode == "reason":
            batches = list(inputs)
            texts, instructions = read_queries(batches, task_metadata if self.encoder.task_prompts else None)
            show = keywords.get("show_progress_bar")
            said = None
            if self.given is not None:
                said = self.given.of([id_ for batch in batches for id_ in batch["id"]], hf_subset)
            thoughts = self.encoder.think(texts, instruction=instructions, reasoning=said, show_progress_bar=show)
            kept = record.thoughts.setdefault(hf_subset, [])
            kept += [(thought.text, len(thought.token_ids), thought.finished) for thought in thoughts]
            vectors = np.stack([thought.vector for thought in thoughts])
        else:
            place = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
            vectors = self.encoder.encode(inputs, prompt_type=prompt_type, **place, **keywords)
        seconds = self._seconds(query) - before if ours else time.perf_counter() - start
        record.add(query, len(vectors), seconds)
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity (queries, documents)."""
        return self.encoder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity, row by row."""
        return self.encoder.similarity_pairwise(embeddings1, embeddings2)

    def _seconds(self, query: bool) -> float:
        statistics = self.encoder.statistics
        return float(statistics.query_seconds if query else statistics.document_seconds)


class RecordedSearch:
    """A search model (BM25) for MTEB: indexing counts as work on the documents, searching as work on the queries."""

    def __init__(self, search_model: Any, mteb_model_meta: Any) -> None:
        self.search_model = search_model
        self.mteb_model_meta = mteb_model_meta
        self.records: dict[str, SplitRecord] = {}

    def index(self, corpus: Any, *, hf_split: str, **keywords: Any) -> None:
        """MTEB's index."""
        start = time.perf_counter()
        self.search_model.index(corpus, hf_split=hf_split, **keywords)
        self.records.setdefault(hf_split, SplitRecord()).add(False, len(corpus), time.perf_counter() - start)

    def search(self, queries: Any, *, hf_split: str, **keywords: Any) -> Any:
        """MTEB's search."""
        start = time.perf_counter()
        results = self.search_model.search(queries, hf_split=hf_split, **keywords)
        self.records.setdefault(hf_split, SplitRecord()).add(True, len(queries), time.perf_counter() - start)
        return results
