import doctest
import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from search_r3_mteb.evaluation import significance
from search_r3_mteb.evaluation.significance import align, compare, holm, interval


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(significance).failed == 0


def test_results_are_plain_numbers_that_json_takes():
    result = compare([[0.1, 0.9], [0.3, 0.2]], [0.2, 0.1])
    json.dumps({**asdict(result), "significant": result.significant, **asdict(interval([0.5, 0.7]))})


def test_two_queries_by_hand():
    # Differences 1 and 0: the resampled mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    result = compare([1.0, 0.5], [0.0, 0.5])
    assert result.difference == 0.5
    assert (result.low, result.high) == (0.0, 1.0)
    assert result.p == pytest.approx(0.5, abs=0.02)
    assert not result.significant
    assert (result.queries, result.seeds) == (2, (1, 1))


def test_three_queries_by_hand():
    # Differences 1, 1, -1: the mean is -1, -1/3, 1/3, 1 with probability 1, 6, 12, 8 of 27. P(mean <= 0) = 7/27.
    result = compare([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], resamples=40_000)
    assert result.difference == pytest.approx(1 / 3)
    assert result.p == pytest.approx(14 / 27, abs=0.01)


def test_seeds_are_a_second_level_by_hand():
    # Two seeds, one right everywhere and one wrong everywhere: the mean of the drawn seeds is 0, 1/2, 1 (1/4, 1/2,
    # 1/4).
    seeds = np.array([[1.0] * 50, [0.0] * 50])
    result = compare(seeds, np.zeros(50))
    assert (result.low, result.high) == pytest.approx((0.0, 1.0))
    assert result.p == pytest.approx(0.5, abs=0.02)
    assert result.seeds == (2, 1)
    # Negative control: averaging the seeds first hides all of it.
    flat = compare(seeds.mean(axis=0), np.zeros(50))
    assert (flat.low, flat.high) == pytest.approx((0.5, 0.5))
    assert flat.significant


@pytest.mark.parametrize("shape", [(40,), (300,)])
def test_one_seed_agrees_with_scipy(shape):
    rng = np.random.default_rng(1)
    a, b = rng.beta(2, 1, shape), rng.beta(2, 1.3, shape)
    ours = compare(a, b, resamples=20_000)
    theirs = stats.bootstrap(
        (a - b,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    # The sign-flip permutation test is another road to the same p.
    permuted = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(3), vectorized=True
    ).pvalue
    assert ours.p == pytest.approx(permuted, abs=0.02)


def test_pairing_matters():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 1, 200)
    a, b = difficulty + 0.05 + rng.normal(0, 0.01, 200), difficulty + rng.normal(0, 0.01, 200)
    assert compare(a, b).significant
    assert not compare(a, rng.permutation(b)).significant  # negative control: the same numbers, unpaired


def test_false_alarms_stay_near_five_in_a_hundred():
    rng = np.random.default_rng(0)
    alarms = sum(
        compare(rng.normal(size=60), rng.normal(size=60), resamples=800, seed=trial).significant for trial in range(300)
    )
    assert 5 <= alarms <= 30


def test_identical_systems_do_not_differ():
    values = np.random.default_rng(0).random((3, 30))
    assert compare(values[0], values[0]).p == 1.0
    assert not compare(values, values).significant


def test_interval_of_a_mean():
    values = np.random.default_rng(5).normal(0.6, 0.2, 400)
    result = interval(values)
    standard_error = values.std() / 20
    assert result.mean == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert result.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.2 * standard_error)
    narrow = interval(values, confidence=0.5)
    assert result.low < narrow.low < narrow.high < result.high


def test_same_seed_same_answer_and_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50)), rng.random(50)
    assert compare(a, b) == compare(a, b)
    assert compare(a, b, seed=1) != compare(a, b)
    whole = interval(b, resamples=500)
    monkeypatch.setattr(significance, "_CELLS_PER_CHUNK", 700)
    chunked = interval(b, resamples=500)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_align_keeps_what_every_run_has():
    ids, (a, b) = align(
        [{"q1": 0.1, "q2": 0.2, "q3": 0.3}, {"q3": 0.6, "q2": 0.5, "q1": 0.4}],
        [{"q2": 1.0, "q1": 0.0, "q4": 1.0, "q3": float("nan")}],
    )
    assert ids == ["q1", "q2"]
    assert a.tolist() == [[0.1, 0.2], [0.4, 0.5]]
    assert b.tolist() == [[0.0, 1.0]]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare([0.1, 0.2], [0.1]), "same queries on both sides, got 2 and 1"),
        (lambda: compare([0.1, float("nan")], [0.1, 0.2]), "first holds 1 values that are not finite"),
        (lambda: interval([]), "at least one query"),
        (lambda: interval(np.zeros((2, 2, 2))), r"got shape \(2, 2, 2\)"),
        (lambda: interval([1.0], resamples=0), "resamples must be at least 1"),
        (lambda: interval([1.0], confidence=95), "write 0.95"),
        (lambda: align([]), "no run for system 0"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
