"""Rollouts as rows of the training forward."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.engine import Engine, Rollouts
from search_r3_mteb.encoder.prompts import Renderer
from train.config.grpo import RolloutSettings
from train.data.rows import TrainingRow
from train.model.scratch import SCRATCH_PROFILE
from train.stage2.rollouts import padded, sample, sampled_log_probs

ROWS = [TrainingRow(f"what is {name}", "text") for name in ("a river", "a stone", "the sea", "rain")]
SETTINGS = RolloutSettings(group_size=3, max_reasoning_tokens=6)


@pytest.fixture
def parts(make_model, tiny_tokenizer):
    model = make_model()
    renderer = Renderer(tiny_tokenizer, SCRATCH_PROFILE, 128)
    return model, renderer, Engine(model, renderer.embed_token_id, stop_token_ids=(2,))


def drawn(parts, rows=ROWS, *, step=1, seed=0, process=0):
    return sample(*parts, rows, SETTINGS, step=step, seed=seed, process=process)


def test_shapes_and_spans(parts):
    groups = drawn(parts)
    assert groups.prompt == [p for p in range(4) for _ in range(3)]
    np.testing.assert_allclose(np.linalg.norm(groups.vectors, axis=1), 1, atol=1e-6)
    for rollout, rendered in enumerate(groups.rendered):
        ids = groups.rollouts.token_ids[rollout]
        start, end = rendered.spans["assistant"]
        assert rendered.token_ids[start:end] == ids
        assert rendered.token_ids[-1] == parts[1].embed_token_id
        assert groups.reasoning_tokens[rollout] == len(ids) - 1 == end - start - 1
        assert groups.query(rollout) is ROWS[groups.prompt[rollout]]


def test_the_mode_is_put_back(parts):
    parts[0].train()
    drawn(parts)
    assert parts[0].training


def test_draws_depend_on_seed_step_and_query_alone(parts):
    """Two processes with half of the prompts sample what one process samples, under the same group ids."""
    whole = drawn(parts)
    halves = [drawn(parts, ROWS[2 * p : 2 * p + 2], process=p) for p in range(2)]
    assert [ids for half in halves for ids in half.rollouts.token_ids] == whole.rollouts.token_ids
    assert torch.equal(torch.cat([half.group for half in halves]), whole.group)
    assert whole.group.tolist() == whole.prompt
    state = torch.get_rng_state()
    assert drawn(parts).rollouts.token_ids == whole.rollouts.token_ids
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn(parts, step=2).rollouts.token_ids != whole.rollouts.token_ids
    assert drawn(parts, seed=1).rollouts.token_ids != whole.rollouts.token_ids
    assert len({tuple(ids) for ids in whole.rollouts.token_ids[:3]}) > 1, "a group's rollouts are all the same"


def test_a_vector_that_is_not_finite_stops(parts):
    with torch.no_grad():
        parts[0].base_model.norm.weight.fill_(float("nan"))
    with pytest.raises((FloatingPointError, RuntimeError)):
        drawn(parts)


ROLLOUTS = Rollouts(
    vectors=torch.zeros(2, 1),
    token_ids=[[5, 6, 9], [9]],
    log_probs=[[-0.5, -1.0, -3.0], [-0.25]],
    finished=[False, True],
    prompt_index=[0, 0],
    forward_tokens=0,
    computed_tokens=0,
)


def test_a_forced_embed_token_is_not_the_model_s_choice():
    values, mask = sampled_log_probs(ROLLOUTS, [1, 0])
    torch.testing.assert_close(values, torch.tensor([[-0.25, 0, 0], [-0.5, -1.0, -3.0]]))
    assert mask.tolist() == [[True, False, False], [True, True, False]]


def test_padded_rows_keep_their_gradient():
    flat = torch.arange(4.0, requires_grad=True)
    matrix = padded(flat, [3, 1])
    assert matrix.tolist() == [[0, 1, 2], [3, 0, 0]]
    matrix[1, 0].backward()
    assert flat.grad.tolist() == [0, 0, 0, 1]
