"""The map recovers how documents moved, composes from originals, and forgets what no row needs."""

import numpy as np

from train.drift_map import DriftMap


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


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
    """One dimension, pairs 1 -> 2 and -1 -> 0: everything moves by 1; ridge 0.5 * 2 / 1 pulls towards no move.

    Gram [[2, 0], [0, 2]] + 1 on the diagonal = 3; right side [1 - 1, 1 + 1] = [0, 2]; move [0, 2 / 3].
    """
    chart = DriftMap(1, ridge=0.5, memory=0.0)
    move, gram = chart.fit(np.array([[1.0], [-1.0]], np.float32), np.array([[2.0], [0.0]], np.float32))
    np.testing.assert_allclose(move, [[0.0], [2 / 3]], atol=1e-7)
    np.testing.assert_allclose(gram, [[2.0, 0.0], [0.0, 2.0]], atol=1e-7)


def test_memory_by_hand():
    """The same pairs again with memory 0.5: Gram 0.5 * 2 + 2 = 3, plus ridge 1, so the move is 2 / 4."""
    chart = DriftMap(1, ridge=0.5, memory=0.5)
    before, fresh = np.array([[1.0], [-1.0]], np.float32), np.array([[2.0], [0.0]], np.float32)
    move, gram = chart.fit(before, fresh)
    chart.extend(move, gram, chart.keys_after(1, everything_at(0)))
    np.testing.assert_allclose(chart.fit(before, fresh)[0], [[0.0], [0.5]], atol=1e-7)


def test_moves_the_rows_that_were_not_refreshed():
    dim, moved = 12, drift(12)
    originals = documents(400, dim)
    fresh = moved(originals)
    chart = DriftMap(dim, ridge=1e-4)
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
    chart, walked = DriftMap(dim, memory=0.0), originals.astype(np.float64)
    for step in range(1, 31):
        pairs = documents(40, dim, seed=step)
        move, gram = chart.fit(pairs, drift(dim, seed=step, size=0.01)(pairs))
        chart.extend(move, gram, chart.keys_after(step, everything_at(0)))
        walked = walked + walked @ move[:-1] + move[-1]
    walked /= np.linalg.norm(walked, axis=1, keepdims=True)
    np.testing.assert_allclose(chart.apply(originals, np.zeros(50, int)), walked, atol=1e-5)


def test_errors_do_not_pile_up():
    """300 steps, values stored in float16: from the original each time the error stays that of one rounding; stored values
    that are moved on, the way not taken, collect 300 of them."""
    dim, steps = 16, 300
    truth = documents(200, dim).astype(np.float64)
    originals, walked = truth.astype(np.float32), truth.astype(np.float16)
    chart = DriftMap(dim, memory=0.0, ridge=1e-9)
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


def test_fewer_pairs_than_dimensions_need_memory():
    """30 pairs a step in 40 dimensions: what earlier refreshes saw keeps the fit from following the noise."""
    dim, errors = 40, {}
    for memory in (0.0, 0.5):
        rng = np.random.default_rng(0)
        originals = documents(500, dim)
        chart, truth = DriftMap(dim, memory=memory), originals.copy()
        for step in range(1, 41):
            truth = unit(drift(dim, seed=7, size=0.003)(truth) + 0.1 * rng.normal(size=truth.shape) / dim**0.5)
            rows = rng.choice(500, 30, replace=False)
            before = chart.apply(originals[rows], np.zeros(30, int))
            chart.extend(*chart.fit(before, truth[rows]), chart.keys_after(step, everything_at(0)))
        errors[memory] = np.linalg.norm(chart.apply(originals, np.zeros(500, int)) - truth, axis=1).mean()
    assert errors[0.5] < 0.9 * errors[0.0]
    assert errors[0.5] < 0.7 * np.linalg.norm(originals - truth, axis=1).mean()


def test_maps_that_no_row_needs_are_dropped():
    chart = DriftMap(2)
    for step, encoded in [(1, {0: 10}), (2, {0: 5, 1: 5}), (3, {1: 5, 2: 5})]:
        keys = chart.keys_after(step, lambda until, e=encoded: sum(rows for at, rows in e.items() if at <= until))
        chart.extend(np.zeros((3, 2), np.float32), chart.gram, keys)
    assert chart.keys.tolist() == [1, 2]
    assert chart.composed.shape == (2, 3, 2)


def test_the_fewest_rows_over_the_shortest_time_share_a_map():
    """Rows of steps 0, 10 and 11 with room for two maps: the 3 rows of step 10 share the map of step 11, one step off."""
    chart = DriftMap(2, max_maps=2, keys=np.array([0, 10]), composed=np.zeros((2, 3, 2), np.float32))
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
