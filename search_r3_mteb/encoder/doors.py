"""The doors of an encoder: MTEB's `encode`, BEIR's names and the similarities, all by way of its two methods."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from search_r3_mteb.encoder.documents import Documents, document_texts
from search_r3_mteb.encoder.inputs import (
    holds_rows,
    is_query,
    read_batches,
    read_queries,
    refuse_encode_kwargs,
    task_prompt,
    texts_of,
)
from search_r3_mteb.encoder.similarity import cosines, paired_cosines
from search_r3_mteb.search.arrays import Vectors


class EncoderDoors(ABC):
    """What MTEB, BEIR and plain callers ask of an encoder that has `encode_query`, `encode_document` and the rest."""

    _mteb_model_meta: Any = None

    @abstractmethod
    def encode_query(self, texts: str | Sequence[str], **keywords: Any) -> Any:
        """Vectors of queries: (dim,) for a single text, (n, dim) for a list."""

    @abstractmethod
    def encode_document(self, texts: str | Documents, **keywords: Any) -> Any:
        """Vectors of documents: (dim,) for a single one, (n, dim) for a list."""

    @property
    @abstractmethod
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is put before the query."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Every setting that decides a vector, as JSON scalars."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest over everything that decides a vector."""

    @abstractmethod
    def _described(self, experiment: dict[str, Any]) -> Any:
        """MTEB's description of this encoder, with `experiment` in it."""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
        **keywords: Any,
    ) -> Any:
        """MTEB's entry point: vectors (n, dim) of a DataLoader of its batches, or of texts; a list may hold documents.

        `prompt_type` "query" reasons as `encode_query`; "document" and None, which symmetric tasks such as STS use for
        both sides, embed directly. `hf_split` and `hf_subset` say where the texts come from; no vector depends on that.
        """
        query = is_query(prompt_type)
        task = task_metadata if self.task_prompts else None
        if holds_rows(inputs):
            if not query:
                return self.encode_document(inputs, **keywords)
            return self.encode_query(inputs, **({"instruction": task_prompt(task)} | keywords))
        refuse_encode_kwargs(keywords)
        if not query:
            return self.encode_document(read_batches(inputs, is_query=False)[0], **keywords)
        texts, instructions = read_queries(inputs, task)
        return self.encode_query(texts, instruction=instructions, **keywords)

    def encode_queries(self, queries: Sequence[str], **keywords: Any) -> Any:
        """BEIR's name for `encode_query`: vectors (queries, dim).

        Limits of beir 2.2 that no encoder can lift: its exact search crashes on a single query, its FAISS and parallel
        searches cannot be instantiated, and `EvaluateRetrieval.evaluate` averages over the queries present in a run.
        Where that matters, evaluate the same folder through MTEB (`search_r3_mteb.tasks.beir_folder`).
        """
        return self.encode_query(texts_of(queries, several=True), **keywords)

    def encode_corpus(self, corpus: Documents, **keywords: Any) -> Any:
        """BEIR's name for `encode_document`: vectors (documents, dim) of every form of corpus that BEIR has used."""
        return self.encode_document(document_texts(corpus), **keywords)

    def similarity(self, first: Any, second: Any) -> Any:
        """Cosine similarities (n, m) of rows (n, dim) and (m, dim), as a tensor. Errors: see `similarity.cosines`."""
        return cosines(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Cosine similarities (n,) of rows (n, dim) with rows (n, dim), as a tensor."""
        return paired_cosines(first, second)

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's description of this encoder, with an identity that no other checkpoint or mode shares."""
        if self._mteb_model_meta is not None:
            return self._mteb_model_meta
        return self._described(self._experiment())

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: Any) -> None:
        # What MTEB's `get_model` assigns holds only the settings that its caller named; the others decide vectors too.
        experiment = {**(meta.experiment_kwargs or {}), **self._experiment()}
        self._mteb_model_meta = meta.model_copy(update={"experiment_kwargs": experiment})

    def _experiment(self) -> dict[str, Any]:
        """The part of the identity that name and revision do not hold; it becomes a folder's name in MTEB's cache."""
        return self.settings | {"fingerprint": self.fingerprint[:16]}

    @staticmethod
    def _give(vectors: Vectors, single: bool, convert_to_tensor: bool) -> Any:
        result: Any = vectors[0] if single else vectors
        if not convert_to_tensor:
            return result
        import torch

        return torch.from_numpy(np.array(result))
