"""FeedbackEncoder: methods that look at the corpus first, as MTEB's search model and for plain use."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.documents import has_columns
from search_r3_mteb.encoder.inputs import documents_of, read_queries
from search_r3_mteb.encoder.tables import cells, column, column_names
from search_r3_mteb.expansion.methods import ROCCHIO_WEIGHT
from search_r3_mteb.expansion.rules import rocchio
from search_r3_mteb.expansion.writer_encoder import ExpandedThought, WriterEncoder
from search_r3_mteb.search.arrays import Vectors
from search_r3_mteb.search.candidates import CandidateRows, candidate_rows, rank_candidates, ranked_scores
from search_r3_mteb.search.exact import exact_search

_TITLE_WORDS = 16  # of a document without a title, in the place of one (our choice)


@dataclass(frozen=True)
class Indexed:
    """A corpus: ids, texts, titles and vectors, and a digest of texts and titles."""

    ids: Sequence[str]
    texts: Sequence[str]
    titles: Sequence[str]
    vectors: Float32[np.ndarray, "documents dim"]
    digest: str


class FeedbackEncoder(WriterEncoder):
    """The methods "feedback" (titles of the nearest documents in the prompt) and "rocchio" (vectors, no writer).

    `index(documents)` comes first, `search` or `encode_query` after it. The nearest documents are those of the query's
    own vector in the corpus; a document whose text is the query itself gives no feedback. MTEB and `evaluate` use
    `index` and `search`; where a query may find only some documents (excluded ids, candidates to be ranked again), no
    other gives feedback: it may be what the query was made from. The search for feedback counts as work on the queries.
    """

    _corpus: Indexed | None = None
    _allowed: Mapping[str, CandidateRows] | None = None  # by text, while such a search runs

    def _check_kind(self) -> None:
        if not self.method.needs_corpus:
            raise ValueError(
                f"The method {self.method.name!r} does not look at the corpus: make a search_r3_mteb.expansion."
                "writer_encoder.WriterEncoder."
            )

    # ---- the corpus ------------------------------------------------------------------------------------------------

    def index(self, corpus: Any, *, encode_kwargs: Any = None, **place: Any) -> None:
        """Embed the documents, once for each store, and keep them. The form is that of `encode_document`, or MTEB's.

        Ids are those of MTEB's column "id" or of a BEIR corpus {id: document}, else "0", "1" and so on. `place` is what
        MTEB says of task, split and subset; nothing depends on it.
        """
        texts, single = documents_of(corpus)
        ids, given = _ids_and_titles([corpus] if single else corpus, len(texts))
        titles = [
            str(title).strip() if title else " ".join(text.split()[:_TITLE_WORDS])
            for title, text in zip(given, texts, strict=True)
        ]
        show = (encode_kwargs or {}).get("show_progress_bar")
        vectors = self.encode_document(texts, show_progress_bar=show)
        self._corpus = Indexed(ids, texts, titles, vectors, _digest([*texts, *titles]))

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        task_metadata: Any = None,
        encode_kwargs: Any = None,
        top_ranked: Any = None,
        on_thoughts: Callable[[Sequence[ExpandedThought]], Any] | None = None,
        think: Callable[..., list[ExpandedThought]] | None = None,
        **place: Any,
    ) -> dict[str, dict[str, float]]:
        """MTEB's search: by query id the cosines of the `top_k` nearest documents, or of the nearest candidates.

        `queries` is MTEB's dataset, or {id: text}. `on_thoughts` is called with what was written about the queries.
        `think` stands in the place of the method of that name, which it may call.
        """
        corpus = self._indexed()
        ids, texts, instructions = self._queries(queries, task_metadata)
        show = (encode_kwargs or {}).get("show_progress_bar")
        allowed = None if top_ranked is None else candidate_rows(top_ranked, ids, corpus.ids)
        try:
            self._allowed = None if allowed is None else _by_text(texts, [allowed[each] for each in ids])
            thoughts = (think or self.think)(texts, instruction=instructions, show_progress_bar=show)
        finally:
            self._allowed = None
        if on_thoughts is not None:
            on_thoughts(thoughts)
        vectors = np.array([thought.vector for thought in thoughts], np.float32).reshape(-1, self.dim)
        rows = None if allowed is None else [allowed[each] for each in ids]
        rankings = ranked_scores(vectors, corpus.vectors, corpus.ids, top_k, rows)
        return {
            query: ranking
            for query, ranking in zip(ids, rankings, strict=True)
            if top_ranked is None or query in top_ranked
        }

    def _indexed(self) -> Indexed:
        if self._corpus is None:
            raise ValueError(
                f"{self.name}: the method {self.method.name!r} looks at the nearest documents before it encodes a "
                "query, and there are none yet. Call index(documents) first."
            )
        return self._corpus

    def _queries(self, queries: Any, task_metadata: Any) -> tuple[list[str], list[str], list[str | None]]:
        if isinstance(queries, Mapping):
            return [*queries], [*queries.values()], [None] * len(queries)
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        # MTEB's own reading: turns of a conversation are joined, instructions stand apart.
        batches = create_dataloader(queries, task_metadata=task_metadata, prompt_type=PromptType.query, batch_size=32)
        texts, instructions = read_queries(batches, task_metadata if self.task_prompts else None)
        return list(queries["id"]), texts, instructions

    # ---- what it does with it --------------------------------------------------------------------------------------

    def nearest(self, texts: Sequence[str], queries: Vectors) -> list[list[int]]:
        """Rows of the documents that give feedback to each query, nearest first; `queries` are vectors (n, dim)."""
        corpus, most = self._indexed(), self._settings.feedback_documents
        # One document more, in the place of the query itself; more than one with its text is rare, and then fewer stay.
        found: Any
        if self._allowed is None:
            found = exact_search(queries, corpus.vectors, most + 1).rows
        else:
            found = [
                rank_candidates(query, corpus.vectors, self._allowed[text], most + 1)[0][: most + 1]
                for text, query in zip(texts, queries, strict=True)
            ]
        return [
            [int(row) for row in rows if corpus.texts[row].strip() != text.strip()][:most]
            for text, rows in zip(texts, found, strict=True)
        ]

    def _contexts(self, texts: Sequence[str], queries: Vectors) -> list[list[str]]:
        titles = self._indexed().titles
        return [[titles[row] for row in rows] for rows in self.nearest(texts, queries)]

    def _text_parts(self) -> dict[str, Any]:
        found = {
            "corpus": self._indexed().digest,
            "encoder": self.encoder.fingerprint,
            "feedback_documents": self._settings.feedback_documents,
        }
        return found if self._allowed is None else found | {"allowed": _allowed_digest(self._allowed)}

    def _thoughts(
        self,
        texts: list[str],
        instructions: list[str | None],
        given: Sequence[Any],
        queries: Vectors,
        show: bool | None,
    ) -> tuple[list[ExpandedThought], float]:
        self._indexed()
        if self.method.needs_writer:
            return super()._thoughts(texts, instructions, given, queries, show)
        for each in given:
            if each is not None:
                self._read(each)  # raises: there is no place for it
        vectors = self._indexed().vectors
        anchor = ROCCHIO_WEIGHT if self._settings.anchor is None else self._settings.anchor
        thoughts, began = [], time.perf_counter()
        for query, rows in zip(queries, self.nearest(texts, queries), strict=True):
            mean = vectors[rows].mean(axis=0) if rows else query
            vector = rocchio(query, vectors[rows], anchor)
            thoughts.append(ExpandedThought("", [], True, vector, direct=query, reasoned=mean))
        return thoughts, time.perf_counter() - began


def _ids_and_titles(corpus: Any, count: int) -> tuple[list[str], list[Any]]:
    """Ids and titles (or None) of documents in any form that `document_texts` reads."""
    names, columns = column_names(corpus), None
    if names is not None:
        columns = {name: column(corpus, name) for name in ("id", "title") if name in names}
    elif isinstance(corpus, Mapping) and has_columns(corpus):
        columns = {name: cells(corpus[name]) for name in ("id", "title") if name in corpus}
    if columns is not None:
        return [str(each) for each in columns.get("id", range(count))], columns.get("title", [None] * count)
    by_id = isinstance(corpus, Mapping)
    rows = list(corpus.values()) if by_id else corpus
    ids = [str(each) for each in (corpus if by_id else range(count))]
    return ids, [each.get("title") if isinstance(each, Mapping) else None for each in rows]


def _by_text(texts: Sequence[str], rows: Sequence[CandidateRows]) -> dict[str, CandidateRows]:
    """What the queries of each text may all find: what one of them must not find gives no feedback to any."""
    found: dict[str, CandidateRows] = {}
    for text, each in zip(texts, rows, strict=True):
        found[text] = np.intersect1d(found[text], each, assume_unique=True) if text in found else each
    return found


def _allowed_digest(allowed: Mapping[str, CandidateRows]) -> str:
    digest = hashlib.sha256()
    for text, rows in sorted(allowed.items()):
        digest.update(_digest([text]).encode() + rows.tobytes())
    return digest.hexdigest()


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
