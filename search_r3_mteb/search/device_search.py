"""Exact search on a device: the answer of `exact_search`, over blocks that the device holds or is sent.

    for each block:  scores = queries @ block;  keep the best few of these and of those so far
    score every pair within the scan's error of the k-th best again, from float32 vectors in float64; take the k best

The scan keeps more pairs than are asked for. Where even the worst of them could still be among the k best (many
documents of nearly equal score), a second scan collects all pairs above the bound that the first one has found.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.search.arrays import RowNumbers
from search_r3_mteb.search.device_rows import DeviceRows
from search_r3_mteb.search.exact import QUERIES_PER_PASS, Found, best_pairs, checked_queries, scan_error
from search_r3_mteb.search.products import plain_arithmetic, product

SCORES_AT_ONCE = 1 << 26
"""Scores of one product, 4 bytes each: 256 MiB of the device."""
_FURTHER = 64
_PAIRS_AT_ONCE = 1 << 14


def device_search(
    queries: Float[np.ndarray, "queries dim"],
    corpus: DeviceRows,
    k: int,
    *,
    exact_rows: Callable[[RowNumbers], Tensor] | None = None,
    scores_at_once: int = SCORES_AT_ONCE,
) -> Found:
    """The `k` most similar rows of `corpus` for each unit vector: see `exact_search`, whose errors it raises.

    `exact_rows(rows)` returns the float32 vectors behind a corpus in half precision, as a tensor on its device.
    """
    queries = checked_queries(queries, corpus.host.shape[1])
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r}: ask for at least one row.")
    k = min(int(k), len(corpus))
    if len(queries) == 0:
        return Found(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    slack = 2 * scan_error(corpus.host, corpus.device.type, exact_rows is not None)
    vectors_of = exact_rows or (lambda rows: corpus.take(rows).float())
    parts = []
    with plain_arithmetic(corpus.device):
        for start in range(0, len(queries), QUERIES_PER_PASS):
            own = queries[start : start + QUERIES_PER_PASS]
            query, row = _candidates(own, corpus, k, slack, scores_at_once)
            parts.append(best_pairs(query, row, _exact_scores(own, query, row, corpus.device, vectors_of), len(own), k))
    return Found(np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts]))


def _candidates(
    queries: Float[np.ndarray, "queries dim"], corpus: DeviceRows, k: int, slack: float, scores_at_once: int
) -> tuple[RowNumbers, RowNumbers]:
    """The (query, row) pairs that may be among the k best."""
    asked = torch.from_numpy(queries).to(corpus.device)
    best, rows = _best_scanned(asked, corpus, min(len(corpus), max(2 * k, k + _FURTHER)), scores_at_once)
    bound = best[:, k - 1] - slack
    query, place = torch.nonzero(best >= bound[:, None], as_tuple=True)
    found_query, found_row = query.cpu().numpy(), rows[query, place].cpu().numpy()
    # A query of which the worst kept score is within the bound may have further pairs.
    open_queries = torch.nonzero(best[:, -1] >= bound).flatten().cpu().numpy()
    if len(open_queries) == 0 or best.shape[1] == len(corpus):
        return found_query, found_row
    closed = ~np.isin(found_query, open_queries)
    further_query, further_row = _above(asked[open_queries], bound[open_queries], corpus, scores_at_once)
    return (
        np.concatenate([found_query[closed], open_queries[further_query]]),
        np.concatenate([found_row[closed], further_row]),
    )


def _exact_scores(
    queries: Float[np.ndarray, "queries dim"],
    query: RowNumbers,
    row: RowNumbers,
    device: torch.device,
    vectors_of: Callable[[RowNumbers], Tensor],
) -> Float[np.ndarray, " pairs"]:
    """Inner products of the pairs in float64, rounded to float32."""
    asked = torch.from_numpy(queries).to(device, torch.float64)
    scores = np.empty(len(row), dtype=np.float32)
    for start in range(0, len(row), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        unique, place = np.unique(row[part], return_inverse=True)
        vectors = vectors_of(unique)[torch.from_numpy(place).to(device)]
        left = asked[torch.from_numpy(query[part]).to(device)]
        scores[part] = (left * vectors).sum(dim=1).float().cpu().numpy()
    return scores


def _best_scanned(asked: Tensor, corpus: DeviceRows, keep: int, scores_at_once: int) -> tuple[Tensor, Tensor]:
    """The `keep` largest scanned scores of each query, descending, and their rows."""
    best = asked.new_full((len(asked), keep), -torch.inf)
    rows = torch.full(best.shape, -1, dtype=torch.int64, device=asked.device)
    for first, scores in _scores(asked, corpus, scores_at_once):
        top, column = torch.topk(scores, min(keep, scores.shape[1]), dim=1)
        best, place = torch.topk(torch.cat([best, top], dim=1), keep, dim=1)
        rows = torch.cat([rows, column + first], dim=1).gather(1, place)
    return best, rows


def _above(asked: Tensor, bound: Tensor, corpus: DeviceRows, scores_at_once: int) -> tuple[RowNumbers, RowNumbers]:
    """All pairs whose scanned score reaches the query's bound."""
    found = []
    for first, scores in _scores(asked, corpus, scores_at_once):
        query, column = torch.nonzero(scores >= bound[:, None], as_tuple=True)
        found.append((query.cpu().numpy(), column.cpu().numpy() + first))
    return np.concatenate([queries for queries, _ in found]), np.concatenate([rows for _, rows in found])


def _scores(asked: Tensor, corpus: DeviceRows, scores_at_once: int) -> Iterator[tuple[int, Tensor]]:
    """`(first row, scores (queries, rows) float32)` over the corpus."""
    for first, block in corpus.blocks(merged=True):
        own = asked.to(block.dtype)
        rows = max(1, scores_at_once // len(asked))
        for start in range(0, len(block), rows):
            yield first + start, product(own, block[start : start + rows].T)
