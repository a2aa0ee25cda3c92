"""The blockwise search finds what a matrix of all scores gives, for any blocks, storage and order of the corpus."""

import tracemalloc

import numpy as np
import pytest

from search_r3_mteb.search import exact as module
from search_r3_mteb.search.exact import exact_search
from search_r3_mteb.search.storage import STORAGES, numpy_dtype, pack, rounding, unpack
from tests.vectors import unit


def clustered(n, dim=16, seed=0, width=0.05):
    """Unit vectors in tight clusters: many scores lie closer together than half precision resolves."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(5, dim)))
    return unit(centres[rng.integers(5, size=n)] + width * rng.normal(size=(n, dim)))


def brute_force(queries, corpus, k):
    scores = (queries.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("block_bytes", [1, 40_000, 1 << 24])
def test_equals_a_full_matrix(storage, block_bytes):
    corpus, queries = clustered(3000), clustered(40, seed=1)
    rows, scores = brute_force(queries, corpus, 25)
    found = exact_search(
        queries, pack(corpus, storage), 25, exact_rows=lambda wanted: corpus[wanted], block_bytes=block_bytes
    )
    assert (found.rows == rows).all()
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


def test_without_room_for_rounding_half_precision_loses_rows(monkeypatch):
    corpus, queries = clustered(3000), clustered(40, seed=1)
    monkeypatch.setattr(module, "rounding", lambda stored: 0.0)
    found = exact_search(queries, pack(corpus, "bfloat16"), 25, exact_rows=lambda wanted: corpus[wanted])
    assert (np.sort(found.rows) != np.sort(brute_force(queries, corpus, 25)[0])).any()


def test_stored_values_are_what_counts_without_exact_rows():
    corpus, queries = clustered(500), clustered(3, seed=1)
    stored = pack(corpus, "float16")
    assert (exact_search(queries, stored, 5).rows == brute_force(queries, unpack(stored), 5)[0]).all()


def test_order_of_the_corpus_does_not_matter():
    """Scores that rise through the corpus let every block pass the threshold."""
    queries = clustered(1)
    unordered = clustered(4000, seed=2)
    rising = unordered[np.argsort(unordered @ queries[0])]
    for corpus in (rising, rising[::-1]):
        found = exact_search(queries, corpus, 10, block_bytes=1)
        assert (found.rows == brute_force(queries, corpus, 10)[0]).all()


def test_equal_scores_are_ordered_by_row():
    corpus = np.tile(unit(np.array([[1.0, 0.0], [0.0, 1.0]])), (400, 1))
    found = exact_search(corpus[:1], corpus, 5, block_bytes=1)
    assert found.rows.tolist() == [[0, 2, 4, 6, 8]]
    assert found.scores.tolist() == [[1.0] * 5]


def test_by_hand():
    corpus = unit(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    found = exact_search(np.array([[0.0, 1.0], [1.0, 0.0]]), corpus, 2)
    assert found.rows.tolist() == [[2, 1], [0, 1]]
    np.testing.assert_allclose(found.scores, [[1.0, 0.8], [1.0, 0.6]], atol=1e-7)


def test_more_wanted_than_there_are_gives_all():
    corpus = clustered(7)
    found = exact_search(clustered(3, seed=1), corpus, 100)
    assert found.rows.shape == found.scores.shape == (3, 7)
    assert np.sort(found.rows, axis=1).tolist() == [list(range(7))] * 3


def test_nothing_asked_or_nothing_there():
    assert exact_search(np.zeros((0, 16)), clustered(7), 3).rows.shape == (0, 3)
    assert exact_search(clustered(2), np.zeros((0, 16), np.float32), 3).rows.shape == (2, 0)


def test_a_memory_map_is_searched_in_place(tmp_path):
    corpus, queries = clustered(3000), clustered(4, seed=1)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    assert (exact_search(queries, mapped, 9).rows == brute_force(queries, corpus, 9)[0]).all()


def test_never_a_matrix_of_queries_times_corpus():
    corpus, queries = clustered(60_000), clustered(1500, seed=1)
    tracemalloc.start()
    exact_search(queries, corpus, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * 4 * len(corpus) * len(queries)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 3), np.float32), 1, "same model"),
        (np.full((1, 16), np.nan, np.float32), 1, "look for NaN"),
        (np.ones((1, 16), np.float32), 1, "Normalise the queries"),
        (clustered(1), 0, "at least one row"),
        (clustered(1), 2.5, "at least one row"),
    ],
)
def test_bad_input(queries, k, message):
    with pytest.raises(ValueError, match=message):
        exact_search(queries, clustered(5), k)


def test_float64_storage_is_refused():
    with pytest.raises(TypeError, match="float16 or uint16"):
        exact_search(clustered(1), clustered(5).astype(np.float64), 1)


def test_bfloat16_bits():
    """1.0, the tie between 1 and the next bfloat16 (to even), just above that tie, and -2."""
    values = np.array([[1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-8 + 2.0**-16, -2.0]], np.float32)
    assert [f"{bits:04x}" for bits in pack(values, "bfloat16")[0]] == ["3f80", "3f80", "3f81", "c000"]
    assert unpack(pack(values, "bfloat16")).tolist() == [[1.0, 1.0, 1.0 + 2.0**-7, -2.0]]


@pytest.mark.parametrize("storage", STORAGES)
def test_storage_keeps_its_promise_on_rounding(storage):
    vectors = clustered(500)
    stored = pack(vectors, storage)
    assert stored.dtype == numpy_dtype(storage)
    assert (np.abs(unpack(stored) - vectors) <= np.abs(vectors) * rounding(stored) + 1e-7).all()
    assert (pack(unpack(stored), storage) == stored).all()


def test_unknown_storage():
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        numpy_dtype("int8")


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_rows_that_are_not_living_are_as_if_they_were_not_there(storage, share):
    rng = np.random.default_rng(3)
    rows = unit(rng.normal(size=(3000, 24)))
    queries = unit(rng.normal(size=(7, 24)))
    living = rng.random(3000) < share
    living[:600] = False  # whole blocks
    stored = pack(rows, storage)
    found = exact_search(queries, stored, 10, living=living, block_bytes=1)
    wanted = exact_search(queries, stored[living], 10, block_bytes=1)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(living)[wanted.rows])
    np.testing.assert_array_equal(found.scores, wanted.scores)
