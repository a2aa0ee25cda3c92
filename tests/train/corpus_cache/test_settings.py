"""Settings of the cache that must reach the refresh and the audit: the rows and factors that each of them gives."""

import numpy as np
import pytest

from tests.vectors import unit
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.texts import CorpusTexts

N, EDGES = 40, 2
# Points on a circle, so that a document's neighbours are the one before and the one after it.
BASE = np.stack([np.cos(np.arange(N) * 2 * np.pi / N), np.sin(np.arange(N) * 2 * np.pi / N)], axis=1)


def encode(texts):
    return BASE[[int(text.split()[-1]) for text in texts]]


def moved(texts):
    """The same model later: half of the documents have turned by a right angle."""
    rows = np.array([int(text.split()[-1]) for text in texts])
    turned = BASE[rows] @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.where(rows[:, None] % 2 == 0, turned, BASE[rows])


def build(folder, **settings):
    corpus = CorpusTexts([f"document {row}" for row in range(N)], token_counts=[1] * N)
    chosen = CorpusCacheSettings(**({"policy": "local", "neighbors": EDGES, "budget_limit_tokens": 10**9} | settings))
    return CorpusCache.build(corpus, encode, folder=folder, settings=chosen)


def hits(*rows):
    """One rollout for each row, which it retrieved and which is right for it."""
    return Hits(unit(BASE[list(rows)]), np.array([[row] for row in rows]), [[row] for row in rows])


@pytest.mark.parametrize(
    ("hops", "rows"), [(0, {20}), (1, {19, 20, 21}), (2, {18, 19, 20, 21, 22}), (3, {17, 18, 19, 20, 21, 22, 23})]
)
def test_neighbours_within_so_many_edges_are_refreshed(tmp_path, hops, rows):
    cache = build(tmp_path, hops=hops, sweep_share=0.0)
    assert sorted(cache.neighbors[20].tolist()) == [19, 21]
    report = cache.refresh(hits(20), encode, budget=len(rows))
    assert set(report.rows.tolist()) == rows


@pytest.mark.parametrize(("share", "local"), [(0.0, 8), (0.25, 6), (0.5, 4), (1.0, 0)])
def test_the_share_of_the_budget_that_goes_to_the_oldest_rows(tmp_path, share, local):
    """Rows 0 to 19 are touched, and fresher than rows 20 to 39, which are not: those are the oldest."""
    cache = build(tmp_path, hops=0, sweep_share=share)
    touched = list(range(20))
    cache.refresh(hits(*touched), encode, budget=1, step=1, given=np.array(touched))
    report = cache.refresh(hits(*touched), encode, budget=8, step=2)
    assert len(report.rows) == 8
    assert (report.rows < 20).sum() == local


def test_no_budget_is_left_unspent_where_the_sweep_has_a_share_and_nothing_is_touched(tmp_path):
    cache = build(tmp_path, hops=0, sweep_share=0.5)
    assert len(cache.refresh(hits(7), encode, budget=10).rows) == 10


def error_of(cache):
    cache.refresh(hits(2, 4, 6), encode, budget=3, step=1)
    return cache.audit(N, moved, step=2)


@pytest.mark.parametrize(("bound", "factor"), [(0.5, 2.0), (0.99, 2.0), (1.01, 1.0), (2.5, 1.0)])
def test_the_bound_above_which_the_budget_grows(tmp_path, bound, factor):
    """`bound` as a multiple of the error that the audit finds."""
    error = error_of(build(tmp_path / "measured")).reward_error
    assert error > 0.05
    cache = build(tmp_path / "run", error_bound=bound * error)
    found = error_of(cache)
    assert found.reward_error == pytest.approx(error)
    assert found.budget_factor == cache.budget_factor == factor


def test_growth_and_limit_of_the_budget(tmp_path):
    cache = build(tmp_path, error_bound=1e-6, budget_growth=3.0, budget_tokens=10, budget_limit_tokens=60)
    factors = [error_of(cache).budget_factor]
    found = [cache.audit(N, moved, step=step) for step in (3, 4)]
    assert factors + [audit.budget_factor for audit in found] == [3.0, 6.0, 6.0]
    assert [audit.rebuild_advised for audit in found] == [False, True]
    report = cache.refresh(hits(0), encode, budget=5, step=5)
    assert (report.budget, len(report.rows)) == (30, 30)
