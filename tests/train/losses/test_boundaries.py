"""Bounds, divisors and refusals of the losses that a small change of the code would move without notice."""

import math

import numpy as np
import pytest
import torch

from train.config.grpo import PolicySettings
from train.losses.gradcache import Forward, cached_backward
from train.losses.grpo import PolicyBatch, group_advantages, grpo_loss
from train.losses.rewards import Rankings, dcg_scaled, grade, mrr
from train.losses.stage1 import info_nce, kl_to_base, reply_cross_entropy, token_scores, triplet_margin


def identity(hidden):
    return hidden


# ------------------------------------------------------------------------------------------------- tokens of a reply

LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
OTHERS = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 2.0, 0.0]])


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_the_entropy_is_that_of_each_position(chunk):
    found = token_scores(LOGITS, identity, torch.tensor([2, 0, 1]), chunk=chunk)
    expected = [-sum(p * math.log(p) for p in row.softmax(-1).tolist()) for row in LOGITS.double()]
    assert found.entropies.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.entropies[2].item() == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 256])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_kl_is_a_mean_over_positions(direction, chunk):
    found = kl_to_base(LOGITS, identity, OTHERS, identity, direction=direction, chunk=chunk)
    one, other = (OTHERS, LOGITS) if direction == "forward" else (LOGITS, OTHERS)
    p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    assert found.item() == pytest.approx(each.mean().item(), rel=1e-5)
    shared = kl_to_base(LOGITS, identity, OTHERS, identity, direction=direction, chunk=chunk, count=6.0)
    assert shared.item() == pytest.approx(each.sum().item() / 6, rel=1e-5)


def test_a_share_of_the_whole_is_divided_by_the_count_of_the_whole():
    targets = torch.tensor([0, 1, 2])
    vectors, mask = torch.eye(3), torch.tensor([[True, True], [True, False], [False, False]])
    hard = torch.stack([vectors.roll(1, 0), vectors.roll(2, 0)], dim=1)
    for loss in (
        lambda **count: reply_cross_entropy(LOGITS, identity, targets, **count),
        lambda **count: info_nce(vectors, vectors, temperature=0.7, **count),
        lambda **count: triplet_margin(vectors, vectors, hard, margin=1.5, mask=mask, **count),
    ):
        whole = loss().item()
        assert whole > 0.1
        assert loss(count=3.0).item() == pytest.approx(whole, rel=1e-6)
        assert loss(count=12.0).item() == pytest.approx(whole / 4, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 256])
def test_rows_that_do_not_belong_together_are_refused(chunk):
    """Chunk by chunk the surplus rows would be left out in silence."""
    with pytest.raises((ValueError, RuntimeError)):
        token_scores(LOGITS, identity, torch.tensor([0, 1]), chunk=chunk)
    with pytest.raises((ValueError, RuntimeError)):
        kl_to_base(LOGITS, identity, OTHERS[:2], identity, chunk=chunk)


def test_what_is_not_finite_is_named():
    bad = LOGITS.clone()
    bad[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"`hidden` \(3, 3\) holds nan at \[1, 2\]"):
        kl_to_base(bad, identity, OTHERS, identity)
    with pytest.raises(ValueError, match="`base_hidden`"):
        kl_to_base(OTHERS, identity, bad, identity)
    with pytest.raises(ValueError, match="`queries`"):
        triplet_margin(bad, OTHERS, OTHERS[:, None])


def test_the_first_column_past_the_documents_is_named():
    with pytest.raises(ValueError, match=r"positives\[1\] is 3, but there are 3 documents"):
        info_nce(LOGITS, OTHERS, positives=torch.tensor([0, 3, 1]))


# -------------------------------------------------------------------------------------------------------------- GRPO


def policy(ratios, advantages, mask=None, **settings):
    """The loss of rollouts whose probability ratios are given."""
    log_probs = torch.tensor(ratios).log()
    batch = PolicyBatch(
        log_probs=log_probs,
        old_log_probs=torch.zeros_like(log_probs),
        mask=torch.ones_like(log_probs, dtype=torch.bool) if mask is None else torch.tensor(mask),
        groups=torch.zeros(len(ratios), dtype=torch.long),
        rewards=torch.tensor(advantages),
    )
    return grpo_loss(batch, PolicySettings(**settings))


def test_the_deviation_is_that_of_a_sample():
    """Of four rewards: the mean 0.25, squares 3 / 16 + 9 / 16 = 3 / 4, divided by 3."""
    found = group_advantages(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long), standardise=True)
    assert found.values.tolist() == pytest.approx([x / (0.5 + 1e-4) for x in (-0.25, 0.75, -0.25, -0.25)], rel=1e-5)


def test_the_policy_s_settings_reach_the_advantages():
    ratios, rewards = [[1.0], [1.0], [1.0], [1.0]], [0.0, 1.0, 0.0, 0.0]
    for standardise in (True, False):
        found = policy(ratios, rewards, standardise=standardise)
        expected = group_advantages(torch.tensor(rewards), torch.zeros(4, dtype=torch.long), standardise=standardise)
        assert torch.equal(found.advantages.values, expected.values)
        assert (found.advantages.groups, found.advantages.zero_variance_groups) == (1, 0)


@pytest.mark.parametrize(("difference", "equal"), [(0.25, 1), (0.2500001, 0)])
def test_rewards_are_equal_up_to_the_bound_and_at_it(difference, equal):
    rewards = torch.tensor([0.0, difference], dtype=torch.float64)
    found = group_advantages(rewards, torch.zeros(2, dtype=torch.long), equal_within=0.25)
    assert found.zero_variance_groups == equal


def test_no_rollout_and_one_rollout_are_two_mistakes():
    with pytest.raises(ValueError, match="There are no rollouts"):
        group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="Group 7 has one rollout"):
        group_advantages(torch.zeros(1), torch.tensor([7]))


def test_sequence_normalisation_divides_by_the_count_of_the_whole():
    settings = PolicySettings(normalisation="sequence")
    batch = PolicyBatch(
        log_probs=torch.zeros(2, 3),
        old_log_probs=torch.zeros(2, 3),
        mask=torch.tensor([[True] * 3, [True, False, False]]),
        groups=torch.zeros(2, dtype=torch.long),
        rewards=torch.tensor([0.0, 3.0]),
    )
    advantages = group_advantages(torch.tensor([0.0, 3.0]), torch.zeros(2, dtype=torch.long))
    uneven = advantages.__class__(torch.tensor([1.0, 2.0]), 1, 0)
    assert grpo_loss(batch, settings, advantages=uneven).loss.item() == pytest.approx(-(1 + 2) / 2)
    assert grpo_loss(batch, settings, advantages=uneven, count=12.0).loss.item() == pytest.approx(-(1 + 2) / 12)


def test_a_token_counts_as_clipped_only_where_the_clip_stops_its_gradient():
    """Below the clip with a negative advantage, above it with a positive one; never at it, nor at advantage 0."""
    ratios = [[0.5, 2.0], [0.5, 2.0], [0.5, 2.0]]
    found = policy(ratios, [2.0, 1.0, 0.0], clip_low=0.25, clip_high=0.5)  # advantages 1, 0 and -1
    assert found.advantages.values.tolist() == [1.0, 0.0, -1.0]
    assert (found.clipped_low, found.clipped_high) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    at_the_bound = policy([[0.75, 1.5]] * 3, [2.0, 1.0, 0.0], clip_low=0.25, clip_high=0.5)
    assert (at_the_bound.clipped_low, at_the_bound.clipped_high) == (0.0, 0.0)


def test_numbers_of_one_token_and_of_none():
    one = policy([[2.0], [2.0]], [1.0, 0.0], mask=[[True], [False]])
    assert one.tokens == 1
    assert (one.clipped_high, one.ratio_gap_mean) == (1.0, pytest.approx(math.log(2)))
    batch = PolicyBatch(
        log_probs=torch.zeros(2, 1),
        old_log_probs=torch.zeros(2, 1),
        mask=torch.zeros(2, 1, dtype=torch.bool),
        groups=torch.zeros(2, dtype=torch.long),
        rewards=torch.tensor([1.0, 0.0]),
    )
    none = grpo_loss(batch, PolicySettings(), count=5.0)  # other mini-batches have the tokens
    assert (none.loss.item(), none.ratio_gap_mean, none.ratio_gap_max, none.kl) == (0.0, 0.0, 0.0, 0.0)


def test_float64_rewards_leave_the_loss_in_float32():
    batch = PolicyBatch(
        log_probs=torch.zeros(2, 1),
        old_log_probs=torch.zeros(2, 1),
        mask=torch.ones(2, 1, dtype=torch.bool),
        groups=torch.zeros(2, dtype=torch.long),
        rewards=torch.tensor([1.0, 0.0], dtype=torch.float64),
    )
    assert grpo_loss(batch).loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["old_log_probs", "mask", "groups", "rewards"])
def test_each_shape_is_checked(name):
    given = {
        "log_probs": torch.zeros(2, 3),
        "old_log_probs": torch.zeros(2, 3),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "groups": torch.zeros(2, dtype=torch.long),
        "rewards": torch.zeros(2),
    }
    PolicyBatch(**given)
    with pytest.raises(ValueError, match=f"`{name}` has shape"):
        PolicyBatch(**(given | {name: given[name][:1]}))


# ----------------------------------------------------------------------------------------------------------- rewards

JUDGED = {"q": {"a": 2, "b": 1, "c": 0}}


def test_a_cosine_may_exceed_1_by_rounding_and_counts_as_1():
    best = Rankings(["q"], [["a", "b"]], [[1.0005, 1.0005]])
    assert dcg_scaled(grade(best, JUDGED)).tolist() == [1.0]
    grade(Rankings(["q"], [["a", "b"]], [[1 + 1e-3, 0.5]]), JUDGED)
    for cosine in (1.01, -1.01, 2.0):
        with pytest.raises(ValueError, match=r"similarities\[0, 1\] is .*not a cosine"):
            grade(Rankings(["q"], [["a", "b"]], [[0.5, cosine]]), JUDGED)


def test_rewards_are_computed_in_float64():
    graded = grade(Rankings(["q"], [["a", "b"]], np.array([[0.1, 0.1]], dtype=np.float32)), JUDGED)
    assert graded.similarities.dtype == np.float64
    assert dcg_scaled(graded).dtype == mrr(graded).dtype == np.float64


def test_only_relevant_documents_must_be_in_the_corpus():
    """A document that was judged not relevant may have been left out of the corpus."""
    ranking = Rankings(["q"], [["a", "b"]], [[0.5, 0.4]])
    grade(ranking, JUDGED, corpus={"a", "b"})
    with pytest.raises(ValueError, match="Document 'b', relevant for query 'q', is not in the corpus"):
        grade(ranking, JUDGED, corpus={"a", "c"})


def test_an_index_that_fills_up_with_minus_1_is_refused():
    with pytest.raises(ValueError, match="the empty document id -1"):
        grade(Rankings(["q"], [[3, -1]], [[0.5, 0.4]]), {"q": {3: 1}})


def test_no_rollouts_are_refused():
    with pytest.raises(ValueError, match="k=0, but 0 documents were retrieved"):
        grade(Rankings([], [], np.zeros((0, 0))), JUDGED)


# --------------------------------------------------------------------------------------------------- cached gradients


def changing(first, second, dtype=torch.float32):
    """A column of two mini-batches; the first gives `first`, and `second` when it is asked again."""
    weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
    given = iter((first, second))
    return [
        lambda: Forward(torch.tensor(next(given), dtype=dtype) * weight),
        lambda: Forward(torch.eye(2, dtype=dtype) * weight),
    ]


@pytest.mark.parametrize(
    ("dtype", "change", "refused"),
    [
        (torch.float32, 0.0005, False), (torch.float32, 0.002, True), (torch.float64, 0.002, True),
        (torch.bfloat16, 0.03, False), (torch.bfloat16, 0.1, True),
    ],
)  # fmt: skip
def test_the_second_forward_may_differ_by_rounding(dtype, change, refused):
    """Of the largest value of a row, whatever the scale of the row itself or of the others."""
    for scale in (1e-3, 1.0, 1e3):
        first = [[scale, 0.5 * scale], [0.0, 0.0], [1e3, 1e3]]
        second = [[scale, (0.5 + change) * scale], *first[1:]]

        def run(column):
            return cached_backward({"q": column}, lambda v: v["q"].square().sum())

        if refused:
            with pytest.raises(ValueError, match="Mini-batch 0 of column 'q' gave other vectors the second time"):
                run(changing(first, second, dtype))
        else:
            run(changing(first, second, dtype))


def test_a_loss_without_any_gradient_is_refused():
    weight = torch.nn.Parameter(torch.ones(3))
    column = [lambda: Forward(torch.eye(3) * weight)]
    with pytest.raises(ValueError, match="does not depend on column 'q'"):
        cached_backward({"q": column}, lambda v: torch.zeros(()))


@pytest.mark.parametrize("parts", [1, 3])
def test_both_losses_are_given_back(parts):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    column = [lambda: Forward(torch.eye(2) * weight, lambda: weight.sum().double())] * parts
    found = cached_backward({"q": column}, lambda v: v["q"].square().sum())
    assert found.contrastive.item() == 5.0 * parts
    assert (found.local.item(), found.local.dtype) == (3.0 * parts, found.contrastive.dtype)
    assert not found.contrastive.requires_grad


def test_the_last_mini_batch_alone_is_synchronised():
    """It is the one in which DDP averages: no other may be, and it may not be left out."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    inside, backwards = [], []

    class NoSync:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *error):
            inside.pop()

    def backward(loss):
        backwards.append(bool(inside))
        loss.backward()

    column = [lambda: Forward(torch.eye(2) * weight)] * 2
    cached_backward({"q": column, "d": column}, lambda v: (v["q"] * v["d"]).sum(), backward=backward, no_sync=NoSync)
    assert backwards == [True, True, True, False]
