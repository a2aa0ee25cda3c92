"""The graph names near rows, its repair is local, and tiny corpora have one."""

import numpy as np
import pytest

from tests.vectors import unit
from train.corpus_cache import neighbor_graph
from train.corpus_cache.neighbor_graph import _best, build_graph, columns, expand, repaired_edges


def clustered(n, dim=16, clusters=40, seed=0):
    rng = np.random.default_rng(seed)
    return unit(unit(rng.normal(size=(clusters, dim)))[np.arange(n) % clusters] + 0.2 * rng.normal(size=(n, dim)))


def graph(vectors, m, **settings):
    neighbors = np.empty((len(vectors), columns(len(vectors), m)), np.int32)
    build_graph(vectors, neighbors, **settings)
    return neighbors


def graph_recall(neighbors, truth):
    """Share of the true neighbours that the graph names."""
    return (neighbors[:, :, None] == truth[:, None, :]).any(axis=1).mean()


def test_by_hand():
    """Four points on a circle, at 0, 10, 30 and 90 degrees."""
    angles = np.radians([0, 10, 30, 90])
    neighbors = graph(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), 2)
    assert neighbors.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


@pytest.mark.parametrize(("n", "expected"), [(1, [[-1]]), (2, [[1], [0]])])
def test_tiny_corpora(n, expected):
    assert graph(unit(np.eye(n, 3) + 0.1), 16).tolist() == expected


def test_a_row_with_fewer_candidates_than_edges_ends_in_none():
    chosen, best = _best(np.array([5, 6]), np.array([[6, 7], [6, 5]]), np.array([[0.25, 0.5], [0.75, 0.5]]), 3)
    assert chosen.tolist() == [[7, 6, -1], [5, -1, -1]]
    assert best.tolist() == [[0.5, 0.25, -np.inf], [0.5, -np.inf, -np.inf]]


def test_equal_documents_are_neighbors_but_not_of_themselves():
    neighbors = graph(np.tile(unit(np.ones((1, 4))), (5, 1)), 3)
    assert all(row not in edges and len(set(edges)) == 3 for row, edges in enumerate(neighbors.tolist()))


def test_projection_trees_find_most_neighbors():
    vectors = clustered(3000)
    truth = graph(vectors, 8)
    approximate = graph(vectors, 8, exact_below=0)
    assert graph_recall(approximate, truth) > 0.8
    assert graph_recall(np.random.default_rng(0).integers(3000, size=truth.shape), truth) < 0.05
    assert (approximate != np.arange(3000)[:, None]).all()


def test_same_seed_same_graph():
    vectors = clustered(2000)
    assert (graph(vectors, 4, exact_below=0, seed=3) == graph(vectors, 4, exact_below=0, seed=3)).all()
    assert (graph(vectors, 4, exact_below=0, seed=3) != graph(vectors, 4, exact_below=0, seed=4)).any()


def test_expand_counts_edges():
    """A chain 0 -> 1 -> 2 -> 3 with an end, and 4 apart."""
    neighbors = np.array([[1], [2], [3], [-1], [0]])
    for hops, expected in [(0, {0: 0}), (1, {0: 0, 1: 1}), (2, {0: 0, 1: 1, 2: 2}), (9, {0: 0, 1: 1, 2: 2, 3: 3})]:
        rows, distance = expand(np.array([0, 0]), neighbors, hops)
        assert dict(zip(rows.tolist(), distance.tolist(), strict=True)) == expected


def test_repair_follows_documents_that_moved():
    """One cluster's documents go over to another; repaired edges name the rows around them, stale edges do not."""
    vectors = clustered(800)
    neighbors = graph(vectors, 8)
    moved = np.arange(0, 800, 40)
    vectors[moved] = unit(clustered(800, seed=5)[moved])
    truth = graph(vectors, 8)
    stale = graph_recall(neighbors[moved], truth[moved])
    repaired = repaired_edges(moved, neighbors, lambda rows: vectors[rows])
    assert graph_recall(repaired, truth[moved]) > stale + 0.5


def test_repair_looks_at_few_rows_however_large_the_corpus():
    looked_at = {}
    for n in (1000, 4000):
        vectors = clustered(n)
        neighbors = graph(vectors, 8)
        seen = set()

        def vectors_of(rows, vectors=vectors, seen=seen):
            seen.update(rows.tolist())
            return vectors[rows]

        repaired_edges(np.arange(20), neighbors, vectors_of)
        looked_at[n] = len(seen)
    limit = 20 * (1 + 8 + 8 * neighbor_graph._PER_NEIGHBOR)
    assert max(looked_at.values()) <= limit


def test_repair_changes_nothing_by_itself():
    vectors = clustered(100)
    neighbors = graph(vectors, 4)
    before = neighbors.copy()
    repaired = repaired_edges(np.arange(10), neighbors, lambda rows: vectors[rows])
    assert (neighbors == before).all()
    assert (np.sort(repaired) == np.sort(before[:10])).all(), "documents that did not move keep their exact neighbours"
