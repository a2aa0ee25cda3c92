"""A scorer of query vectors on one split of a task, which holds its judged queries and encoded documents."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.abstaining import top_margins
from search_r3_mteb.evaluation.queries import CUTOFF, as_scored, hops_of_query, query_text, score
from search_r3_mteb.evaluation.readiness import load_task
from search_r3_mteb.search.candidates import CandidateRows, candidate_rows, rank_candidates
from search_r3_mteb.search.exact import exact_search

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.expansion.writer_encoder import WriterEncoder

_KEPT = 50  # documents per query that are scored at least: ten, and those that some tasks leave out
_DECIDING = CUTOFF + 2  # of these places two may be left out: the query itself, and the first document


@dataclass(frozen=True)
class Quality:
    """The quality of each query's vector.

    `margin`: cosine of the nearest relevant document minus cosine of the nearest other one, which still varies where
    nDCG@10 is 1 or 0; NaN where there is no such pair.
    """

    ndcg_at_10: Float[np.ndarray, " queries"]
    margin: Float[np.ndarray, " queries"]


@dataclass(frozen=True)
class _Part:
    """One subset: its documents, and the chosen queries that belong to it."""

    rows: Int[np.ndarray, " part"]
    corpus: Any  # as the task has it
    ids: Sequence[str]
    judgements: Mapping[str, Mapping[str, int]]
    documents: Sequence[str]
    place: Mapping[str, int]  # of each document
    vectors: Float32[np.ndarray, "documents dim"]
    candidates: Mapping[str, CandidateRows] | None


class QueryScorer:
    """The judged queries of one split, at most `max_queries` of them (drawn with `seed`), and their documents' vectors.

    `texts`, `instructions`, `ids` and `hops` (None where the task has none) are parallel; ids carry the subset's name
    where the task has several. Documents are embedded by `encoder`, once; all of their vectors stay in memory.

    Raises ValueError for a task with several splits (choose one), and for one with fewer than two judged queries.
    """

    def __init__(
        self,
        task: "AbsTaskRetrieval",
        encoder: "SearchR3Encoder | WriterEncoder",
        max_queries: int | None = None,
        seed: int = 0,
    ) -> None:
        splits = list(task.eval_splits)
        if len(splits) != 1:
            raise ValueError(f"{task.metadata.name} has the splits {', '.join(splits)}; name one of them with --split.")
        self.task, self.split = task, splits[0]
        load_task(task)
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        subsets = {name: data[self.split] for name, data in task.dataset.items() if self.split in data}
        every = [(name, row) for name, data in subsets.items() for row in _judged_rows(data)]
        if len(every) < 2:
            raise ValueError(f"{task.metadata.name} ({self.split}) has {len(every)} judged queries; two are needed.")
        self.queries_in_task = len(every)
        chosen = _chosen(len(every), max_queries, seed)
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.instructions: list[str | None] = []
        self.hops: list[int | None] = []
        self.documents = 0
        self._parts: list[_Part] = []
        for name, data in subsets.items():
            rows = [every[index][1] for index in chosen if every[index][0] == name]
            if rows:
                self._add(f"{name}/" if len(subsets) > 1 else "", data, rows, encoder)

    def __len__(self) -> int:
        return len(self.ids)

    def corpora(self) -> Iterator[tuple[Int[np.ndarray, " part"], Any]]:
        """For each subset the rows of its queries, and its documents as the task has them (MTEB's dataset)."""
        return ((part.rows, part.corpus) for part in self._parts)

    def quality(self, vectors: Float32[np.ndarray, "queries dim"]) -> Quality:
        """nDCG@10 (pytrec_eval, as in `search-r3 evaluate`) and margin of unit vectors, one for each query."""
        ndcg, margin = np.zeros(len(self)), np.full(len(self), np.nan)
        for part in self._parts:
            ranking = self._ranking(part, vectors[part.rows])
            scores = score(part.judgements, as_scored(self.task, ranking))
            ndcg[part.rows] = [scores[query]["ndcg_cut_10"] for query in part.ids]
            margin[part.rows] = self._margins(part, vectors[part.rows], ranking)
        return Quality(ndcg, margin)

    def top_margins(self, vectors: Float32[np.ndarray, "queries dim"]) -> Float[np.ndarray, " queries"]:
        """How sure each ranking is: the cosine of its first document minus that of the second (see `abstaining`)."""
        found = np.zeros(len(self))
        for part in self._parts:
            ranking = as_scored(self.task, self._ranking(part, vectors[part.rows]))
            found[part.rows] = top_margins([ranking[query] for query in part.ids])
        return found

    def _add(self, prefix: str, data: Any, rows: Sequence[int], encoder: "SearchR3Encoder | WriterEncoder") -> None:
        from search_r3_mteb.encoder.inputs import read_queries

        queries = data["queries"].select(rows)
        ids, texts = list(queries["id"]), [query_text(text) for text in queries["text"]]
        batch: dict[str, Any] = {"text": texts, "query": texts}
        if "instruction" in queries.column_names:
            batch["instruction"] = queries["instruction"]
        metadata = self.task.metadata if encoder.task_prompts else None
        texts, instructions = read_queries([batch], metadata)
        start = len(self)
        self.ids += [prefix + query for query in ids]
        self.texts += texts
        self.instructions += instructions
        self.hops += [hops_of_query(self.task, query) for query in ids]
        corpus = data["corpus"]
        titles = corpus["title"] if "title" in corpus.column_names else [None] * len(corpus)
        bodies = [join_title(title, text or "") for title, text in zip(titles, corpus["text"], strict=True)]
        documents = list(corpus["id"])
        self.documents += len(documents)
        candidates = data.get("top_ranked")
        part = _Part(
            rows=np.arange(start, len(self)),
            corpus=corpus,
            ids=ids,
            judgements={query: data["relevant_docs"][query] for query in ids},
            documents=documents,
            place={document: row for row, document in enumerate(documents)},
            vectors=encoder.encode_document(bodies),
            candidates=None if candidates is None else candidate_rows(candidates, ids, documents),
        )
        self._parts.append(part)

    def _ranking(self, part: _Part, vectors: Float32[np.ndarray, "part dim"]) -> dict[str, dict[str, float]]:
        if part.candidates is None:
            return best_documents(part.ids, vectors, part.documents, part.vectors)
        ranking = {}
        for query, vector in zip(part.ids, vectors, strict=True):
            rows, values = rank_candidates(vector, part.vectors, part.candidates[query], _KEPT)
            ranking[query] = {part.documents[row]: float(value) for row, value in zip(rows, values, strict=True)}
        return ranking

    def _margins(
        self, part: _Part, vectors: Float32[np.ndarray, "part dim"], ranking: Mapping[str, Mapping[str, float]]
    ) -> list[float]:
        margins = []
        for query, vector in zip(part.ids, vectors, strict=True):
            relevant = {document for document, grade in part.judgements[query].items() if grade > 0}
            rows = [part.place[document] for document in relevant if document in part.place]
            others = [value for document, value in ranking[query].items() if document not in relevant | {query}]
            known = bool(rows and others)
            margins.append(float((part.vectors[rows] @ vector).max()) - max(others) if known else float("nan"))
        return margins


def best_documents(
    query_ids: Sequence[str],
    queries: Float32[np.ndarray, "queries dim"],
    document_ids: Sequence[str],
    documents: Float32[np.ndarray, "documents dim"],
) -> dict[str, dict[str, float]]:
    """Query -> document -> cosine of the documents that can count among the first ten, ties for those places included.

    Vectors are of unit length, their rows in the order of the ids.
    """
    found = exact_search(queries, documents, _KEPT)
    return {
        query: {
            document_ids[row]: float(value)
            for row, value in zip(*_with_ties(vector, documents, rows, values), strict=True)
        }
        for query, vector, rows, values in zip(query_ids, queries, found.rows, found.scores, strict=True)
    }


def _with_ties(
    vector: Float32[np.ndarray, " dim"],
    documents: Float32[np.ndarray, "documents dim"],
    rows: Int[np.ndarray, " kept"],
    scores: Float[np.ndarray, " kept"],
) -> tuple[Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """The found rows, and where a tie for the places that count goes beyond them all rows of that score.

    trec_eval orders equal scores by the documents' ids, so that a document of the same score may come first.
    """
    if len(rows) in (0, len(documents)) or scores[-1] < scores[min(_DECIDING, len(scores)) - 1]:
        return rows, scores
    every = np.einsum("d,nd->n", vector, documents, dtype=np.float64, casting="unsafe").astype(np.float32)
    tied = np.setdiff1d(np.flatnonzero(every == scores[-1]), rows)
    return np.concatenate([rows, tied]), np.concatenate([scores, every[tied]])


def _judged_rows(data: Any) -> list[int]:
    """Rows of the queries that have judgements: MTEB scores no others."""
    judged = {query for query, documents in data["relevant_docs"].items() if documents}
    return [row for row, query in enumerate(data["queries"]["id"]) if query in judged]


def _chosen(count: int, most: int | None, seed: int) -> list[int]:
    if most is not None and most < 2:
        raise ValueError(f"max_queries={most}: at least two, since one query is given the other's reasoning.")
    if most is None or most >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, most, replace=False).tolist())
