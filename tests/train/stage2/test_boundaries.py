"""Details of stage 2 that a small change of the code would move without notice."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from tests.train.loops import rl_config
from tests.train.stage2.test_step import OneStep
from tests.train.worlds import plane
from train.config.data import RlDataSettings, SourceSettings
from train.config.grpo import RolloutSettings
from train.data.rows import TrainingRow
from train.losses.grpo import Advantages
from train.model.scratch import SCRATCH_PROFILE
from train.stage2.corpus import SearchedCorpus
from train.stage2.rollouts import sample


def test_two_worlds_are_two_corpora():
    """Of another seed or another size; two hop counts of one world are one."""
    kinds = [{"world_seed": 0}, {"world_seed": 1}, {"documents": 600}, {"hops": (3,)}]
    sources = tuple(
        SourceSettings(**({"kind": "hopworld", "documents": 500, "name": f"source {n}"} | kind))
        for n, kind in enumerate(kinds)
    )
    corpus = SearchedCorpus(RlDataSettings(sources=sources), lambda texts: [1] * len(texts))
    assert len(corpus.texts) == 500 + 500 + 600
    ids = {corpus.positive_id(TrainingRow("q", "p", "fact-000007", source=source.label)) for source in sources}
    assert len(ids) == 3


@pytest.mark.parametrize("index", ["exact", "ivf"])
def test_the_index_that_is_asked(tmp_path, index):
    environment, groups = plane(tmp_path, {"a": 0, "b": 60, "x": 90}, {"p": {"a": 1}}, [("p", 0)], index=index)
    asked = []
    search = environment.cache.search
    environment.cache.search = lambda vectors, k, exact: asked.append(exact) or search(vectors, k, exact=True)
    environment.judge(groups, 1)
    assert asked == [index == "exact"] * 2


def test_vectors_shorter_than_1_are_vectors(make_model, tiny_tokenizer):
    model = make_model()
    with torch.no_grad():
        model.base_model.norm.weight.mul_(1e-3)
    renderer = Renderer(tiny_tokenizer, SCRATCH_PROFILE, 128)
    engine = Engine(model, renderer.embed_token_id, stop_token_ids=(2,))
    settings = RolloutSettings(group_size=2, max_reasoning_tokens=4)
    groups = sample(model, renderer, engine, [TrainingRow("a river", "p")], settings, step=1, seed=0, process=0)
    assert 0 < np.linalg.norm(groups.rollouts.vectors.numpy(), axis=1).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(groups.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("parts", [0, 5])
def test_the_share_of_clipped_tokens(tmp_path, model, parts):
    """Rollout 0 is now e times as likely, rollout 5 e times less; the clip stops the gradient of both."""
    settings = ["contrastive.weight=0", "policy.skip_zero_variance=false"]
    settings += [f"optimization.mini_batch_size={parts}"] if parts else []
    one = OneStep(rl_config(tmp_path / "run", model, *settings))
    rollouts = one.groups.rollouts
    for rollout, shift in ((0, -1.0), (5, 1.0)):
        rollouts.log_probs[rollout] = [value + shift for value in rollouts.log_probs[rollout]]
    values = torch.zeros(16)
    values[0], values[5] = 1.0, -1.0
    losses, _ = one.gradient(Advantages(values, groups=4, zero_variance_groups=2))
    chosen = [len(ids) - (not own) for ids, own in zip(rollouts.token_ids, rollouts.finished, strict=True)]
    assert losses["clipped"] == pytest.approx((chosen[0] + chosen[5]) / sum(chosen), rel=1e-4)
    assert losses["gap_mean"] == pytest.approx((chosen[0] + chosen[5]) / sum(chosen), rel=1e-3)
    assert losses["gap_max"] == pytest.approx(1.0, abs=1e-3)
