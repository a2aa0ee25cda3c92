"""The neighbour graph: which documents lie near which. It says which rows to refresh; it is not the search structure.

`neighbors` is an (n, m) int32 array, row i holding the rows most similar to document i, best first, -1 where there are
fewer. It is built once (exactly for small corpora, by random-projection trees for large ones) and then kept by local
repair: each re-encoded row looks for its neighbours among its old ones, a few of theirs, and the rows that were
refreshed with it. The cost of a repair depends on the rows repaired, never on n. Edges that point *to* a refreshed row
are not updated: they are repaired when their own row is refreshed, which is when they are next needed.

Source: our choice. The paper says "selective local graph refresh" and neither the graph nor its repair is public; the
projection trees are those of Annoy (two random points, split at the median) with one matrix product per leaf as in
PiPNN (arXiv 2602.21247), which is the cheapest build in multiply-adds per edge.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped

from search_r3_mteb.search.arrays import RowNumbers
from search_r3_mteb.search.exact import exact_search
from search_r3_mteb.search.storage import unpack

Neighbors = Int[np.ndarray, "rows m"]
VectorsOf = Callable[[RowNumbers], Float[np.ndarray, "rows dim"]]

EXACT_BELOW = 16384
LEAF = 512
TREES = 3
_REPAIRED_AT_ONCE = 256
_PER_NEIGHBOR = 2  # neighbours of neighbours that a repair looks at: the best ones of each


def columns(n: int, m: int) -> int:
    """Width of the graph of `n` documents with `m` wanted neighbours: no document is its own neighbour."""
    return max(1, min(m, n - 1))


def build_graph(
    vectors: Shaped[np.ndarray, "rows dim"], neighbors: Neighbors, *, seed: int = 0, exact_below: int = EXACT_BELOW
) -> None:
    """Fill `neighbors` (n, m), in place since it may be a memory map, with each row's most similar rows.

    Exact up to `exact_below` rows. Above, the best of three random-projection trees with leaves of 256 to 512 rows,
    about n * 512 * dim multiply-adds each. The same seed gives the same graph. `vectors` are unit vectors in any
    storage type.
    """
    if len(vectors) <= exact_below:
        _exact_graph(vectors, neighbors)
        return
    rng = np.random.default_rng(seed)
    scores = np.full(neighbors.shape, -np.inf, dtype=np.float32)
    neighbors[:] = -1
    for _ in range(TREES):
        for leaf in _leaves(vectors, rng):
            _join_leaf(vectors, leaf, neighbors, scores)


def expand(rows: RowNumbers, neighbors: Neighbors, hops: int) -> tuple[RowNumbers, Int[np.ndarray, " rows"]]:
    """All rows within `hops` edges of `rows`, and each one's distance from them in edges. Rows in ascending order."""
    known = np.unique(rows)
    distance = np.zeros(len(known), dtype=np.int64)
    frontier = known
    for hop in range(1, hops + 1):
        reached = np.unique(neighbors[frontier])
        frontier = np.setdiff1d(reached[reached >= 0], known, assume_unique=True)
        if len(frontier) == 0:
            break
        together = np.concatenate([known, frontier])
        order = np.argsort(together, kind="stable")
        known = together[order]
        distance = np.concatenate([distance, np.full(len(frontier), hop)])[order]
    return known, distance


def repaired_edges(rows: RowNumbers, neighbors: Neighbors, vectors_of: VectorsOf) -> Neighbors:
    """New neighbours (rows, m) of re-encoded `rows`, best first; `vectors_of(rows)` gives the present float32 vectors.

    Rows that were selected together stand together, so a row is compared with the 256 of its own group, its old
    neighbours and the best neighbours of those.
    """
    m = neighbors.shape[1]
    repaired = np.empty((len(rows), m), dtype=np.int32)
    for start in range(0, len(rows), _REPAIRED_AT_ONCE):
        group = rows[start : start + _REPAIRED_AT_ONCE]
        own = np.asarray(neighbors[group])
        further = np.asarray(neighbors[np.maximum(own, 0), :_PER_NEIGHBOR])
        further[own < 0] = -1
        candidates = np.concatenate([own, further.reshape(len(group), -1)], axis=1)
        unique, place = np.unique(np.maximum(candidates, 0), return_inverse=True)
        vectors = vectors_of(group)
        near = np.einsum("gd,gcd->gc", vectors, vectors_of(unique)[place.reshape(candidates.shape)])
        near[candidates < 0] = -np.inf
        column, together = _nearest(vectors, m)
        candidates = np.concatenate([candidates, group[column]], axis=1)
        scores = np.concatenate([near, together], axis=1)
        repaired[start : start + len(group)] = _best(group, candidates, scores, m)[0]
    return repaired


def _exact_graph(vectors: Shaped[np.ndarray, "rows dim"], neighbors: Neighbors) -> None:
    n, m = neighbors.shape
    for start in range(0, n, 4096):
        rows = np.arange(start, min(start + 4096, n))
        queries = unpack(vectors[start : start + 4096])
        # A row stored in half precision is not exactly of length 1.
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        found = exact_search(queries, vectors, m + 1)
        neighbors[rows] = _best(rows, found.rows, found.scores, m)[0]


def _leaves(vectors: Shaped[np.ndarray, "rows dim"], rng: np.random.Generator) -> list[RowNumbers]:
    """Groups of 256 to 512 rows that lie together: halved at the median along the line through two random rows."""
    waiting = [np.arange(len(vectors), dtype=np.int32)]
    leaves = []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= LEAF:
            leaves.append(np.sort(rows))
            continue
        ends = unpack(vectors[np.sort(rng.choice(rows, 2, replace=False))])
        direction = ends[0] - ends[1]
        along = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), 1 << 16):
            part = rows[start : start + (1 << 16)]
            along[start : start + len(part)] = unpack(vectors[part]) @ direction
        order = np.argpartition(along, len(rows) // 2)
        # Sorted again, so that reading the rows walks through the file in one direction.
        waiting += [np.sort(rows[order[: len(rows) // 2]]), np.sort(rows[order[len(rows) // 2 :]])]
    return leaves


def _join_leaf(
    vectors: Shaped[np.ndarray, "rows dim"], leaf: RowNumbers, neighbors: Neighbors, scores: Float[np.ndarray, "rows m"]
) -> None:
    """Let the rows of one leaf be candidates for each other."""
    column, near = _nearest(unpack(vectors[leaf]), neighbors.shape[1])
    candidates = np.concatenate([neighbors[leaf], leaf[column]], axis=1)
    found = np.concatenate([scores[leaf], near], axis=1)
    neighbors[leaf], scores[leaf] = _best(leaf, candidates, found, neighbors.shape[1])


def _nearest(
    group: Float[np.ndarray, "rows dim"], m: int
) -> tuple[Int[np.ndarray, "rows few"], Float[np.ndarray, "rows few"]]:
    """For each of a group its at most `m` most similar others of the group, unordered, and their similarities."""
    near = group @ group.T
    np.fill_diagonal(near, -np.inf)
    few = min(m, len(group) - 1)
    column = np.argpartition(near, -few, axis=1)[:, len(group) - few :]
    return column, np.take_along_axis(near, column, axis=1)


def _best(
    rows: RowNumbers, candidates: Int[np.ndarray, "rows many"], scores: Float[np.ndarray, "rows many"], m: int
) -> tuple[Neighbors, Float[np.ndarray, "rows m"]]:
    """The `m` best different candidates of each row, without the row itself; -1 where there are fewer."""
    order = np.argsort(candidates, axis=1, kind="stable")
    candidates = np.take_along_axis(candidates, order, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    bad = (candidates < 0) | (candidates == rows[:, None])
    bad[:, 1:] |= candidates[:, 1:] == candidates[:, :-1]
    scores = np.where(bad, -np.inf, scores).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :m]
    best = np.take_along_axis(scores, order, axis=1)
    chosen = np.where(np.isneginf(best), -1, np.take_along_axis(candidates, order, axis=1)).astype(np.int32)
    if chosen.shape[1] < m:
        chosen = np.pad(chosen, ((0, 0), (0, m - chosen.shape[1])), constant_values=-1)
        best = np.pad(best, ((0, 0), (0, m - best.shape[1])), constant_values=-np.inf)
    return chosen, best
