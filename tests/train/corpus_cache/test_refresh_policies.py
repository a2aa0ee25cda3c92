"""Which rows a refresh takes, by hand: ranking, budget, neighbours, the sweep over the oldest."""

import numpy as np
import pytest

from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.refresh_policies import POLICIES, CorpusRows, Hits, RetrievalCounts, policy_of
from train.corpus_cache.row_ages import RowAges, scattered

N = 12


def corpus(step=10, row_step=None, tokens=None, retrieved=None, neighbors=None, hops=0, sweep_share=0.0, n=N):
    row_step = np.zeros(n, np.int32) if row_step is None else np.asarray(row_step, np.int32)
    return CorpusRows(
        n=n,
        step=step,
        row_step=row_step,
        token_counts=np.full(n, 1, np.int32) if tokens is None else np.asarray(tokens, np.int32),
        retrieved=np.zeros(n, np.int32) if retrieved is None else np.asarray(retrieved, np.int32),
        neighbors=np.full((n, 1), -1, np.int32) if neighbors is None else np.asarray(neighbors, np.int32),
        ages=RowAges(row_step),
        hops=hops,
        sweep_share=sweep_share,
        seed=0,
    )


def hits(rows, positives):
    rows = np.asarray(rows)
    return Hits(np.ones((len(rows), 2), np.float32), rows, positives)


def touched(rows, retrieved):
    """Rows that a batch retrieved so often, none of them a positive."""
    return RetrievalCounts(np.array(rows), np.array(retrieved), np.zeros(len(retrieved), int))


def select(name, counts, budget, **facts):
    return POLICIES[name].select(corpus(**facts), counts, budget).tolist()


NO_HITS = RetrievalCounts.none()


def test_the_seven_policies():
    assert list(POLICIES) == ["none", "random", "local", "random+map", "local+map", "full", "frozen"]
    assert [name for name, one in POLICIES.items() if one.uses_map] == ["random+map", "local+map"]
    assert [policy_of(CorpusCacheSettings(policy=name)).name for name in POLICIES] == list(POLICIES)
    with pytest.raises(ValueError, match=r"'locla' is none of the names none, random, local, random\+map"):
        CorpusCacheSettings(policy="locla")


def test_none_and_frozen_take_nothing_and_full_takes_all():
    for name in ("none", "frozen"):
        assert select(name, RetrievalCounts.of(hits([[1, 2]], [[3]])), 99) == []
    assert select("full", NO_HITS, 1) == list(range(N))


def test_positives_come_before_what_was_retrieved_and_the_more_often_retrieved_before_the_rest():
    counts = RetrievalCounts.of(hits([[5, 2], [5, 1], [5, 3]], [[7], [7], [8]]))
    assert select("local", counts, 3) == [7, 8, 5]
    assert select("local", counts, 6) == [7, 8, 5, 1, 2, 3]


def test_rank_is_staleness_times_frequency():
    """Row 1: 9 steps x 1 hit, row 2: 2 steps x 5 hits, row 3: 1 step x 8 hits; row 4 was encoded at this step."""
    counts = touched([1, 2, 3, 4], [1, 5, 8, 50])
    steps = [10, 1, 8, 9, 10, 10, 10, 10, 10, 10, 10, 10]
    assert select("local", counts, 9, row_step=steps) == [2, 1, 3]


def test_rows_retrieved_often_in_earlier_steps_rank_higher():
    counts = touched([1, 2], [1, 1])
    assert select("local", counts, 1) == [1]
    assert select("local", counts, 1, retrieved=[0, 0, 30] + [0] * 9) == [2]


def test_neighbors_within_hops_inherit_half_of_the_hit():
    chain = [[1], [2], [3], [-1]] + [[-1]] * 8
    counts = touched([0, 6, 7], [8, 3, 5])
    assert select("local", counts, 4, neighbors=chain, hops=0)[:3] == [0, 7, 6]
    assert select("local", counts, 4, neighbors=chain, hops=1) == [0, 7, 1, 6]
    assert select("local", counts, 5, neighbors=chain, hops=2) == [0, 7, 1, 6, 2]


def test_a_positives_weight_is_not_inherited():
    """Row 5, retrieved once, comes before the positive's neighbour 9, which counts half of one."""
    neighbors = np.full((N, 1), -1)
    neighbors[3] = 9
    assert select("local", RetrievalCounts.of(hits([[5]], [[3]])), 3, neighbors=neighbors, hops=1) == [3, 5, 9]


def test_the_budget_counts_tokens():
    counts = touched([1, 2, 3], [9, 5, 1])
    tokens = [100] + [4, 3, 2] + [100] * 8
    for budget, expected in [(1, []), (4, [1]), (6, [1]), (7, [1, 2]), (9, [1, 2, 3])]:
        assert select("local", counts, budget, tokens=tokens) == expected


def test_a_document_longer_than_the_budget_does_not_block_the_others():
    counts = touched([1, 2], [9, 5])
    assert select("local", counts, 5, tokens=[50, 50, 3] + [50] * 9) == [2]


def test_what_the_batch_leaves_goes_to_the_oldest():
    steps = np.array([9, 9, 3, 9, 1, 9, 9, 2, 9, 9, 9, 9])
    assert select("local", RetrievalCounts.of(hits([[0]], [[0]])), 4, row_step=steps) == [0, 4, 7, 2]


def test_the_sweep_has_its_share_even_when_the_batch_wants_everything():
    counts = touched(range(6), [5] * 6)
    steps = np.array([5] * 6 + [9, 9, 9, 9, 1, 2])
    assert select("local", counts, 4, row_step=steps) == [0, 1, 2, 3]
    assert select("local", counts, 4, row_step=steps, sweep_share=0.5) == [0, 1, 10, 11]


def test_a_sweep_passes_every_row_once_before_it_passes_one_twice():
    """1000 rows, 7 per step: after 143 steps each was taken once, in a scattered order; then the oldest come again."""
    n = 1000
    row_step = np.zeros(n, np.int32)
    ages, taken = RowAges(row_step), []
    for step in range(1, 300):
        facts = CorpusRows(n, step, row_step, np.ones(n, np.int32), np.zeros(n), np.full((n, 1), -1), ages, 0, 1.0, 0)
        rows = POLICIES["local"].select(facts, NO_HITS, 7)
        before = row_step[rows].copy()
        row_step[rows] = step
        ages.move(rows, before, step)
        taken.append(rows)
    order = np.concatenate(taken)
    assert sorted(order[:n].tolist()) == list(range(n))
    assert sorted(order[:1001].tolist()) != list(range(1001))
    assert order[:7].tolist() == np.argsort(scattered(np.arange(n)), kind="stable")[:7].tolist()
    assert (np.abs(np.diff(order[:n])) > 1).mean() > 0.9, "not in the order of the ids"


def test_random_rows_are_uniform_and_repeatable():
    drawn = np.concatenate([POLICIES["random"].select(corpus(step=s), NO_HITS, 3) for s in range(2000)])
    assert np.abs(np.bincount(drawn, minlength=N) / 500 - 1).max() < 0.15
    assert select("random", NO_HITS, 3, step=4) == select("random", NO_HITS, 3, step=4)
    assert select("random", NO_HITS, 3, step=4) != select("random", NO_HITS, 3, step=5)
    assert sorted(select("random", NO_HITS, 1000)) == list(range(N))


@pytest.mark.parametrize("name", ["random", "local", "random+map", "local+map"])
def test_no_row_is_taken_twice_and_the_budget_holds(name):
    rng = np.random.default_rng(0)
    n, tokens = 500, rng.integers(1, 30, size=500)
    neighbors = rng.integers(n, size=(n, 4))
    for trial in range(20):
        counts = RetrievalCounts.of(hits(rng.integers(n, size=(8, 5)), rng.integers(n, size=(8, 1)).tolist()))
        rows = select(
            name, counts, 400, tokens=tokens, neighbors=neighbors, hops=2, sweep_share=0.3, n=n, step=trial + 1
        )
        assert len(set(rows)) == len(rows) > 5
        assert 300 < tokens[rows].sum() <= 400


def test_counts_of_processes_add_up():
    first, second = hits([[1, 2]], [[3]]), hits([[2, 5]], [[3]])
    merged = RetrievalCounts.merged([RetrievalCounts.of(first).arrays(), RetrievalCounts.of(second).arrays()])
    whole = RetrievalCounts.of(hits([[1, 2], [2, 5]], [[3], [3]]))
    for one, other in zip(merged.arrays().values(), whole.arrays().values(), strict=True):
        assert one.tolist() == other.tolist()
    assert whole.rows.tolist() == [1, 2, 3, 5]
    assert whole.retrieved.tolist() == [1, 2, 0, 1]
    assert whole.positive.tolist() == [0, 0, 2, 0]


def test_hits_are_checked():
    with pytest.raises(ValueError, match="Rollout 1 has no positive document"):
        hits([[1], [2]], [[3], []])
    with pytest.raises(ValueError, match="do not fit together"):
        hits([[1], [2]], [[3]])
    with pytest.raises(ValueError, match="names row 12, but the corpus has rows 0 to 11"):
        hits([[1, 12]], [[3]]).check(N)
    with pytest.raises(ValueError, match="positives names row -1"):
        hits([[1]], [[-1]]).check(N)


def test_ages_by_hand():
    row_step = np.array([0, 0, 4, 10], np.int32)
    ages = RowAges(row_step)
    age = ages.age(10, mapped_until=3)
    assert (age.mean, age.median, age.p90, age.maximum, age.mapped_share) == (6.5, 6, 10, 10, 0.5)
    row_step[0] = 10
    ages.move(np.array([0]), np.array([0]), 10)
    assert ages.age(10).mean == 4.0
    assert ages.encoded_by(4) == 2


def test_the_queue_of_a_loaded_cache_is_the_one_that_was_saved():
    rng = np.random.default_rng(1)
    row_step = np.zeros(300, np.int32)
    ages = RowAges(row_step)
    for step in range(1, 80):  # enough for the queue to be made again on the way
        rows = np.unique(rng.integers(300, size=40))
        before = row_step[rows].copy()
        row_step[rows] = step
        ages.move(rows, before, step)
        reloaded = RowAges(row_step.copy())
        wanted = [queue.oldest(lambda found: min(len(found), 25), step - 1).tolist() for queue in (ages, reloaded)]
        assert wanted[0] == wanted[1]
        assert ages.age(step) == reloaded.age(step)


def test_a_row_that_is_encoded_again_in_its_own_step_waits_once():
    row_step = np.zeros(6, np.int32)
    ages = RowAges(row_step)
    ages.move(np.array([1, 2]), np.array([0, 0]), 0)
    assert sorted(ages.oldest(len, 5).tolist()) == list(range(6))
    assert ages.oldest(len, 5).tolist() == RowAges(row_step).oldest(len, 5).tolist()
    row_step[[1, 2]] = 3
    ages.move(np.array([1, 2]), np.array([0, 0]), 3)
    assert sorted(ages.oldest(len, 5)[-2:].tolist()) == [1, 2], "a later step does move them"


def test_several_refreshes_of_one_step_are_one_group_of_the_queue():
    """From the build's step on, each step has up to three refreshes whose rows overlap."""
    rng = np.random.default_rng(2)
    row_step = np.zeros(300, np.int32)
    ages = RowAges(row_step)
    for step in [each for each in range(40) for _ in range(1 + each % 3)]:
        rows = np.unique(rng.integers(300, size=20))
        before = row_step[rows].copy()
        row_step[rows] = step
        ages.move(rows, before, step)
        reloaded = RowAges(row_step.copy())
        assert sorted(ages.oldest(len, step).tolist()) == list(range(300))
        for newest in (step, step - 1):
            assert ages.oldest(len, newest).tolist() == reloaded.oldest(len, newest).tolist()
        assert ages.age(step) == reloaded.age(step)
        if step == 20:
            ages = RowAges(row_step)  # a resumed run, whose next refresh may belong to the step that was saved
