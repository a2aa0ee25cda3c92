"""What stage 2 writes down about a step: the numbers of the log and the rollouts to read, of a world known by hand."""

import json
from math import cos, log2, radians

import pytest
import torch

from tests.train.worlds import plane
from train.config.grpo import RewardSettings
from train.config.run import RlOutputSettings
from train.losses.grpo import Advantages
from train.stage2.rollout_log import RolloutLog
from train.stage2.step import PolicyStep

DEGREES = {"a": 0, "b": 60, "c": 30, "x": 90}
JUDGED = {"p": {"a": 2, "b": 1}, "q": {"c": 1, "a": 1}}
ROLLOUTS = [("p", 0), ("p", 90), ("q", 40)]
# Ranked a c b x, of which a has grade 2 and b grade 1; ranked x b c a; ranked c b a x, of which c and a have grade 1.
REWARDS = [
    (2 + 0.5 / log2(4)) / (2 + 1 / log2(3)),
    cos(radians(30)) / log2(3) / (2 + 1 / log2(3)),
    (cos(radians(10)) + cos(radians(40)) / log2(4)) / (1 + 1 / log2(3)),
]


@pytest.fixture
def step(tmp_path):
    reward = RewardSettings(k=4, margin=0.5, forced_penalty=0.25)
    environment, groups = plane(tmp_path, DEGREES, JUDGED, ROLLOUTS, reward=reward, lengths=[3, 8, 1])
    groups.rollouts.finished[1] = False
    judged = environment.judge(groups, 1)
    return PolicyStep(None, environment, groups, None), judged, Advantages(torch.tensor([0.5, -0.5, 0.0]), 4, 1)


def test_the_numbers_of_a_step(step):
    policy, judged, advantages = step
    numbers = policy.numbers(judged, advantages)
    margins = [
        (1 - cos(radians(30)) + 2) / 4,
        (cos(radians(30)) - 1 + 2) / 4,
        (cos(radians(10)) - cos(radians(20)) + 2) / 4,
    ]
    assert numbers.pop("refresh_seconds") >= 0
    assert numbers == {
        "reward_dcg_scaled": pytest.approx(sum(REWARDS) / 3, abs=1e-6),
        "reward_margin": pytest.approx(sum(margins) / 3, abs=1e-6),
        "reward": pytest.approx((sum(REWARDS) + 0.5 * sum(margins) - 0.25) / 3, abs=1e-6),
        "finished_share": pytest.approx(2 / 3),
        "length": 4.0,
        "zero_variance_share": 0.25,
        "documents_encoded": 4.0,
    }


def test_the_rollouts_that_are_written(step, tmp_path, tiny_tokenizer):
    policy, judged, advantages = step
    settings = RlOutputSettings(folder=str(tmp_path), rollouts=2, rollouts_every=3)
    log = RolloutLog(tmp_path, tiny_tokenizer, settings, step=0, active=True)
    for number in (1, 2, 3, 4):
        log.write(policy.groups, judged, advantages, number)
    RolloutLog(tmp_path, tiny_tokenizer, settings, step=3, active=False).write(policy.groups, judged, advantages, 6)
    first, second = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    top = first.pop("top")
    assert first == {
        "step": 3,
        "query": "query p",
        "hops": None,
        "reasoning": tiny_tokenizer.decode([5] * 3),
        "finished": True,
        "reward": pytest.approx(judged.rewards.total[0]),
        "advantage": 0.5,
        "relevant": ["a", "b"],
    }
    assert [one["id"] for one in top] == ["a", "c", "b", "x"]
    assert [one["text"] for one in top] == ["text of a", "text of c", "text of b", "text of x"]
    assert [one["cosine"] for one in top] == pytest.approx([cos(radians(d)) for d in (0, 30, 60, 90)], abs=1e-6)
    # One of each prompt: the second rollout of p comes after the first of q.
    assert (second["step"], second["query"], second["finished"], second["advantage"]) == (3, "query q", True, 0.0)
