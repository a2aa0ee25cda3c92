"""The map recovers how documents moved, composes from originals, and forgets what no row needs."""

import numpy as np

from tests.vectors import unit
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache import drift_map
from train.corpus_cache.drift_map import DriftMap


def documents(n, dim, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


def drift(dim, seed=1, size=0.02):
    """A small affine move of unit vectors."""
    rng = np.random.default_rng(seed)
    matrix, shift = np.eye(dim) + size * rng.normal(size=(dim, dim)), size * rng.normal(size=dim)
    return lambda vectors: unit(vectors @ matrix + shift)


def everything_at(step):
    """`encoded_by` of a corpus whose rows were all encoded at `step`."""
    return lambda until: 100 if until >= step else 0


def test_by_hand():
    """One dimension, pairs 1 -> 2 and -1 -> 0: everything moves by 1; ridge 0.5 * (2 / 1 + 3) pulls towards no move.

    Gram [[2, 0], [0, 2]] + 2.5 on the diagonal = 4.5; right side [1 - 1, 1 + 1] = [0, 2]; move [0, 2 / 4.5].
    """
    chart = DriftMap(1, CorpusCacheSettings(map_ridge=0.5, map_memory=0.0))
    move, gram = chart.fit(np.array([[1.0], [-1.0]], np.float32), np.array([[2.0], [0.0]], np.float32))
    np.testing.assert_allclose(move, [[0.0], [2 / 4.5]], atol=1e-7)
    np.testing.assert_allclose(gram, [[2.0, 0.0], [0.0, 2.0]], atol=1e-7)


def test_memory_by_hand():
    """The same pairs again with memory 0.5: Gram 0.5 * 2 + 2 = 3, plus ridge 2.5, so the move is 2 / 5.5."""
    chart = DriftMap(1, CorpusCacheSettings(map_ridge=0.5))
    before, fresh = np.array([[1.0], [-1.0]], np.float32), np.array([[2.0], [0.0]], np.float32)
    move, gram = chart.fit(before, fresh)
    chart.extend(move, gram, chart.keys_after(1, everything_at(0)))
    np.testing.assert_allclose(chart.fit(before, fresh)[0], [[0.0], [2 / 5.5]], atol=1e-7)


def test_moves_the_rows_that_were_not_refreshed():
    dim, moved = 12, drift(12)
    originals = documents(400, dim)
    fresh = moved(originals)
    chart = DriftMap(dim, CorpusCacheSettings(map_ridge=1e-4))
    chart.extend(*chart.fit(originals[:100], fresh[:100]), chart.keys_after(1, everything_at(0)))
    mapped = chart.apply(originals[100:], np.zeros(300, int))
    stale = np.linalg.norm(originals[100:] - fresh[100:], axis=1).mean()
    assert np.linalg.norm(mapped - fresh[100:], axis=1).mean() < 0.15 * stale
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1.0, atol=1e-6)


def test_only_rows_encoded_before_a_map_move():
    dim = 6
    originals = documents(5, dim)
    chart = DriftMap(dim)
    for step in (1, 2, 3):
        chart.extend(
            *chart.fit(originals, drift(dim, seed=step)(originals)), chart.keys_after(step, lambda until: until + 1)
        )
    steps = np.array([0, 1, 2, 3, 4])
    values = chart.apply(originals, steps)
    assert chart.is_mapped(steps).tolist() == [True, True, True, False, False]
    assert (values[3:] == originals[3:]).all(), "bit for bit"
    assert (values[:3] != originals[:3]).any(axis=1).all()


def test_composed_map_equals_moving_step_by_step():
    dim = 8
    originals = documents(50, dim)
    chart, walked = DriftMap(dim, CorpusCacheSettings(map_memory=0.0)), originals.astype(np.float64)
    for step in range(1, 31):
        pairs = documents(40, dim, seed=step)
        move, gram = chart.fit(pairs, drift(dim, seed=step, size=0.01)(pairs))
        chart.extend(move, gram, chart.keys_after(step, everything_at(0)))
        walked = walked + walked @ move[:-1] + move[-1]
    walked /= np.linalg.norm(walked, axis=1, keepdims=True)
    np.testing.assert_allclose(chart.apply(originals, np.zeros(50, int)), walked, atol=1e-5)


def test_errors_do_not_pile_up():
    """300 steps in float16: values computed from the original have the error of one rounding, moved values of 300."""
    dim, steps = 16, 300
    truth = documents(200, dim).astype(np.float64)
    originals, walked = truth.astype(np.float32), truth.astype(np.float16)
    chart = DriftMap(dim, CorpusCacheSettings(map_memory=0.0, map_ridge=1e-9))
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        skew = 0.01 * rng.normal(size=(dim, dim))
        turn = np.linalg.qr(np.eye(dim) + skew - skew.T)[0]
        turn *= np.sign(np.diag(turn))
        before, truth = truth, truth @ turn
        move, gram = chart.fit(before.astype(np.float32), truth.astype(np.float32))
        chart.extend(move, gram, chart.keys_after(step, everything_at(0)))
        values = walked.astype(np.float32)
        walked = unit(values + values @ move[:-1] + move[-1]).astype(np.float16)
    composed = chart.apply(originals, np.zeros(200, int)).astype(np.float16)
    assert np.abs(composed - truth).max() < 1e-3
    assert np.abs(walked - truth).max() > 3e-3


def error_after(steps, pairs, *, memory, dim=40):
    """Mean distance to the truth, as a share of that without a map, when `pairs` of 500 rows are seen per step."""
    rng = np.random.default_rng(0)
    originals = documents(500, dim)
    chart, truth = DriftMap(dim, CorpusCacheSettings(map_memory=memory)), originals.copy()
    for step in range(1, steps + 1):
        truth = unit(drift(dim, seed=7, size=0.003)(truth) + 0.1 * rng.normal(size=truth.shape) / dim**0.5)
        rows = rng.choice(500, pairs, replace=False)
        before = chart.apply(originals[rows], np.zeros(pairs, int))
        chart.extend(*chart.fit(before, truth[rows]), chart.keys_after(step, everything_at(0)))
    mapped = chart.apply(originals, np.zeros(500, int))
    return np.linalg.norm(mapped - truth, axis=1).mean() / np.linalg.norm(originals - truth, axis=1).mean()


def test_fewer_pairs_than_dimensions_need_memory_and_evidence(monkeypatch):
    """10 pairs per step in 40 dimensions: each fit alone follows the noise."""
    ours = error_after(40, 10, memory=0.5)
    monkeypatch.setattr(drift_map, "PRIOR", 0.0)
    alone = error_after(40, 10, memory=0.0)
    assert ours < 0.65
    assert alone > 0.85
    assert error_after(40, 10, memory=0.5) < 0.9 * alone


def test_maps_that_no_row_needs_are_dropped():
    chart = DriftMap(2)
    for step, encoded in [(1, {0: 10}), (2, {0: 5, 1: 5}), (3, {1: 5, 2: 5})]:
        keys = chart.keys_after(step, lambda until, e=encoded: sum(rows for at, rows in e.items() if at <= until))
        chart.extend(np.zeros((3, 2), np.float32), chart.gram, keys)
    assert chart.keys.tolist() == [1, 2]
    assert chart.composed.shape == (2, 3, 2)


def test_the_fewest_rows_over_the_shortest_time_share_a_map():
    """Rows of steps 0, 10 and 11 with room for two maps: the 3 rows of step 10 share the map of step 11."""
    chart = DriftMap(
        2, CorpusCacheSettings(max_maps=2), keys=np.array([0, 10]), composed=np.zeros((2, 3, 2), np.float32)
    )
    encoded = {0: 90, 10: 3, 11: 7}
    keys = chart.keys_after(12, lambda until: sum(rows for at, rows in encoded.items() if at <= until))
    assert keys.tolist() == [0, 11]
    chart.extend(np.ones((3, 2), np.float32), chart.gram, keys)
    assert np.searchsorted(chart.keys, [0, 10, 11, 12]).tolist() == [0, 1, 1, 2]


def test_a_fit_changes_nothing():
    chart = DriftMap(3)
    chart.fit(documents(9, 3), documents(9, 3, seed=1))
    assert len(chart.keys) == 0
    assert not chart.gram.any()
