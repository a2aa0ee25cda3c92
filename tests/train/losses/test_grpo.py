"""GRPO: golden values worked out by hand for two groups, unequal lengths and one masked token."""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from train.config.grpo import PolicySettings
from train.losses.grpo import PolicyBatch, group_advantages, grpo_loss

# Four rollouts of two prompts (ids 7 and 3), interleaved. Ratios of new to old probability, token by token:
#   row 0, prompt 7, reward 1.0: 1.5, 1.0
#   row 1, prompt 3, reward 0.2: 0.5, 1.0, 2.0
#   row 2, prompt 7, reward 0.0: 1.0
#   row 3, prompt 3, reward 0.6: 1.0 and a forced token with ratio 3.0, which is masked
RATIOS = [[1.5, 1.0], [0.5, 1.0, 2.0], [1.0], [1.0, 3.0]]
PADDING = math.nan  # what padding holds must never be read


def example(pad="right"):
    def padded(rows, fill):
        rows = [row + [fill] * (3 - len(row)) if pad == "right" else [fill] * (3 - len(row)) + row for row in rows]
        return torch.tensor(rows)

    old = padded([[-1.0] * len(row) for row in RATIOS], PADDING)
    new = padded([[-1.0 + math.log(ratio) for ratio in row] for row in RATIOS], PADDING)
    mask = padded([[1.0] * len(row) for row in RATIOS], 0.0)
    mask[3, 1 if pad == "right" else 2] = 0.0
    return PolicyBatch(
        log_probs=new.requires_grad_(),
        old_log_probs=old,
        mask=mask.bool(),
        groups=torch.tensor([7, 3, 7, 3]),
        rewards=torch.tensor([1.0, 0.2, 0.0, 0.6]),
    )


def test_advantages_golden_by_id_not_by_position():
    # Means 0.5 (prompt 7) and 0.4 (prompt 3).
    advantages = group_advantages(torch.tensor([1.0, 0.2, 0.0, 0.6]), torch.tensor([7, 3, 7, 3]))
    torch.testing.assert_close(advantages.values, torch.tensor([0.5, -0.2, -0.5, 0.2]))
    assert (advantages.groups, advantages.zero_variance_groups) == (2, 0)
    # By position the groups would be (1.0, 0.2) and (0.0, 0.6): another answer.
    by_position = group_advantages(torch.tensor([1.0, 0.2, 0.0, 0.6]), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(by_position.values, torch.tensor([0.4, -0.4, -0.3, 0.3]))


def test_advantages_golden_standardised():
    # Sample deviations of two values x, y are |x - y| / sqrt 2: 0.7071068 and 0.2828427; epsilon 1e-4.
    advantages = group_advantages(torch.tensor([1.0, 0.2, 0.0, 0.6]), torch.tensor([7, 3, 7, 3]), standardise=True)
    expected = torch.tensor([0.5 / 0.7072068, -0.2 / 0.2829427, -0.5 / 0.7072068, 0.2 / 0.2829427])
    torch.testing.assert_close(advantages.values, expected, rtol=1e-6, atol=1e-6)


def test_zero_variance_groups_are_counted_and_teach_nothing():
    rewards = torch.tensor([0.3, 0.1, 0.3, 0.7, 0.3 + 5e-8])  # the last differs by rounding only
    for standardise in (False, True):
        advantages = group_advantages(rewards, torch.tensor([4, 9, 4, 9, 4]), standardise=standardise)
        assert advantages.values[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]
        assert advantages.values[1] < 0 < advantages.values[3]
        assert (advantages.groups, advantages.zero_variance_groups) == (2, 1)


def test_group_of_one_is_refused():
    with pytest.raises(ValueError, match="Group 5 has one rollout"):
        group_advantages(torch.tensor([0.3, 0.1, 0.3]), torch.tensor([4, 5, 4]))


def test_grpo_golden_token_level():
    # Clip [0.8, 1.28]. Losses -min(r A, clip(r) A):
    #   row 0, A = 0.5: -0.64 (clipped from 0.75), -0.5; row 1, A = -0.2: 0.16 (clipped from 0.1), 0.2, 0.4
    #   row 2, A = -0.5: 0.5;                            row 3, A = 0.2: -0.2, masked
    # Sum -0.08 over 7 tokens.
    result = grpo_loss(example())
    assert result.loss.item() == pytest.approx(-0.08 / 7, abs=1e-6)
    assert result.tokens == 7
    assert result.clipped_high == pytest.approx(1 / 7)  # ratio 1.5
    assert result.clipped_low == pytest.approx(1 / 7)  # ratio 0.5
    assert result.ratio_gap_mean == pytest.approx((math.log(1.5) + math.log(2) + math.log(2)) / 7)
    assert result.ratio_gap_max == pytest.approx(math.log(2))  # not ln 3: that token is masked


def test_grpo_golden_sequence_level():
    # Means of the rows: -0.57, 0.2533333, 0.5, -0.2; their mean.
    result = grpo_loss(example(), PolicySettings(normalisation="sequence"))
    assert result.loss.item() == pytest.approx(-0.0166667 / 4, abs=1e-6)


def test_grpo_golden_gradient():
    # d loss / d log_prob = -r A / 7 where the clip does not hold, 0 where it does, at masked tokens and at padding.
    batch = example()
    grpo_loss(batch).loss.backward()
    expected = torch.tensor([[0.0, -0.5, 0.0], [0.0, 0.2, 0.4], [0.5, 0.0, 0.0], [-0.2, 0.0, 0.0]]) / 7
    torch.testing.assert_close(batch.log_probs.grad, expected)


def test_grpo_golden_kl():
    # Reference twice as probable at row 2's token: k3 = 2 - ln 2 - 1 = 0.3068528; equal elsewhere (0).
    batch = example()
    reference = batch.log_probs.detach().clone()
    reference[2, 0] += math.log(2)
    result = grpo_loss(replace(batch, reference_log_probs=reference), PolicySettings(kl_weight=0.1))
    assert result.kl == pytest.approx(0.3068528 / 7, abs=1e-6)
    assert result.loss.item() == pytest.approx((-0.08 + 0.03068528) / 7, abs=1e-6)


def test_on_policy_gradient_is_reinforce_with_a_baseline():
    batch = example()
    batch = replace(batch, old_log_probs=batch.log_probs.detach())
    grpo_loss(batch).loss.backward()
    expected = torch.tensor([[-0.5, -0.5, 0.0], [0.2, 0.2, 0.2], [0.5, 0.0, 0.0], [-0.2, 0.0, 0.0]]) / 7
    torch.testing.assert_close(batch.log_probs.grad, expected)


def test_padding_side_and_row_order_change_nothing():
    right, left = grpo_loss(example("right")).loss, grpo_loss(example("left")).loss
    torch.testing.assert_close(left, right)
    order = torch.tensor([2, 0, 3, 1])
    batch = example()
    shuffled = PolicyBatch(
        *(getattr(batch, name)[order] for name in ("log_probs", "old_log_probs", "mask", "groups", "rewards"))
    )
    torch.testing.assert_close(grpo_loss(shuffled).loss, right)
    # Negative control: rewards that stay where they were belong to other rollouts.
    assert not torch.isclose(grpo_loss(replace(shuffled, rewards=batch.rewards)).loss, right)


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
@pytest.mark.parametrize("standardise", [True, False])
def test_grpo_gradient_against_finite_differences(normalisation, standardise):
    generator = torch.Generator().manual_seed(0)
    old, reference = (-torch.rand(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    new = (old + 0.5 * torch.randn(6, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    mask = torch.rand(6, 4, generator=generator) > 0.3
    rewards = torch.rand(6, dtype=torch.float64, generator=generator)
    settings = PolicySettings(normalisation=normalisation, standardise=standardise, kl_weight=0.3)

    def loss(log_probs):
        batch = PolicyBatch(log_probs, old, mask, torch.tensor([0, 1, 2, 0, 1, 2]), rewards, reference)
        return grpo_loss(batch, settings).loss

    assert gradcheck(loss, (new,))


def test_mini_batches_add_up_to_the_batch():
    batch = example()
    whole = grpo_loss(batch)
    advantages = group_advantages(batch.rewards, batch.groups)
    total = torch.zeros(())
    for rows in (slice(0, 1), slice(1, 4)):  # splits prompt 7's group
        part = PolicyBatch(
            *(getattr(batch, name)[rows] for name in ("log_probs", "old_log_probs", "mask", "groups", "rewards"))
        )
        part_advantages = replace(advantages, values=advantages.values[rows])
        total = total + grpo_loss(part, advantages=part_advantages, count=whole.tokens).loss
    torch.testing.assert_close(total, whole.loss)


def test_grpo_refuses():
    batch = example()
    with pytest.raises(ValueError, match=r"kl_weight=0.1 needs reference_log_probs"):
        grpo_loss(batch, PolicySettings(kl_weight=0.1))
    with pytest.raises(ValueError, match=r"All tokens of these 4 rollouts are masked"):
        grpo_loss(replace(batch, mask=torch.zeros(4, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"`rewards` \(4,\) holds nan at \[2\]"):
        grpo_loss(replace(batch, rewards=torch.tensor([1.0, 0.2, math.nan, 0.6])))
    with pytest.raises(ValueError, match=r"`old_log_probs\[mask\]`"):
        replace(batch, old_log_probs=torch.full((4, 3), -math.inf))
    with pytest.raises(ValueError, match=r"`groups` has shape \(3,\)"):
        replace(batch, groups=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"`mask` is torch\.int64"):
        replace(batch, mask=batch.mask.long())
    with pytest.raises(ValueError, match=r"normalisation\n.*'token' or 'sequence'"):
        PolicySettings(normalisation="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clip_low\n.*less than"):
        PolicySettings(clip_low=1.5)
