"""Ranking where a query may find only some of the documents: excluded ids (BRIGHT), and candidates to be ranked again.

MTEB calls both `top_ranked`: for each query the ids of the documents that it may find.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from search_r3_mteb.search.exact import exact_search

CandidateRows = Int32[np.ndarray, " candidates"]


def candidate_rows(
    top_ranked: Mapping[str, Sequence[str]], query_ids: Iterable[str], document_ids: Sequence[str]
) -> dict[str, CandidateRows]:
    """The rows of each query's candidates, in increasing order; a query that `top_ranked` lacks has none.

    Raises ValueError for a candidate that is not among the documents.
    """
    row_of = {document: row for row, document in enumerate(document_ids)}
    # By list, which is kept: BRIGHT's queries without excluded ids share one of all documents.
    known: dict[int, tuple[Sequence[str], CandidateRows]] = {}
    found = {}
    for query in query_ids:
        ids = top_ranked.get(query, ())
        if id(ids) not in known:
            try:
                known[id(ids)] = ids, np.unique(np.array([row_of[each] for each in ids], np.int32))
            except KeyError as error:
                raise ValueError(
                    f"Query {query!r} may find document {error.args[0]!r}, which the corpus lacks. The task's "
                    "candidates (top_ranked) belong to another corpus, or the corpus is incomplete."
                ) from error
        found[query] = known[id(ids)][1]
    return found


def rank_candidates(
    query: Float[np.ndarray, " dim"],
    documents: Float[np.ndarray, "documents dim"],
    rows: CandidateRows,
    k: int,
) -> tuple[Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """The candidates with the `k` largest inner products, best first; equal scores by row.

    All that tie with the last of them are there too, so that there may be more than `k`.
    """
    few = 2 * len(rows) < len(documents)
    scores = documents[rows] @ query if few else (documents @ query)[rows]
    if len(rows) > k:
        kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def ranked_scores(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    ids: Sequence[str],
    k: int,
    allowed: Sequence[CandidateRows] | None = None,
) -> list[dict[str, float]]:
    """For each query the inner products of its `k` nearest documents by id, best first; of its `allowed` rows alone."""
    if allowed is None:
        found = exact_search(queries, documents, k)
        pairs: Any = zip(found.rows, found.scores, strict=True)
    else:
        ranked = (rank_candidates(query, documents, rows, k) for query, rows in zip(queries, allowed, strict=True))
        pairs = ((rows[:k], scores[:k]) for rows, scores in ranked)
    return [{ids[row]: float(score) for row, score in zip(*pair, strict=True)} for pair in pairs]
