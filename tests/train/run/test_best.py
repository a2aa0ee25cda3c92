"""The best checkpoint of a run, also of one that was killed and goes on."""

import pytest
import torch

from tests.programs import mostly_slow
from tests.train.loops import same_weights, sft_config, train_until, weights
from train.run import evaluation
from train.run.evaluation import Score
from train.sft import train


@pytest.fixture
def scored(monkeypatch):
    """`scored(values)` lets evaluations find these nDCG@10, one after the other, and keeps the weights of each."""

    def begin(*values):
        left, seen = iter(values), []

        def evaluate(checkpoint, *rest):
            seen.append(checkpoint.model.get_input_embeddings().weight.detach().clone())
            return [Score("hand", "reason", None, next(left), 1, 0.0, 0.0)]

        monkeypatch.setattr(evaluation, "evaluate", evaluate)
        return seen

    return begin


def embeddings(folder):
    return weights(folder)["model.embed_tokens.weight"]


def make(folder):
    return sft_config(
        folder, "evaluate.every=1", "optimization.steps=4", "optimization.schedule=constant", evaluation=True
    )


@pytest.mark.parametrize(
    ("values", "best"), [((0.2, 0.6, 0.4, 0.5), 1), ((0.6, 0.5, 0.4, 0.3), 0), ((0.1, 0.2, 0.3, 0.4), 3)]
)
def test_the_best_is_that_of_the_highest_score(tmp_path, scored, values, best):
    seen = scored(*values)
    train(make(tmp_path / "run"))
    assert torch.equal(embeddings(tmp_path / "run/best"), seen[best])
    assert torch.equal(embeddings(tmp_path / "run/last"), seen[3])
    assert len({tuple(one[0].tolist()) for one in seen}) == 4, "the control: every step's weights are their own"


@pytest.mark.parametrize("stop", mostly_slow([1, 2, 3], 2))
def test_a_resumed_run_knows_its_best_score(tmp_path, scored, monkeypatch, stop):
    """What is worse than the best from before the kill does not take its place; what is better does."""
    seen = scored(0.6, 0.5, 0.4, 0.3)
    train_until(stop, train, make(tmp_path / "run"), monkeypatch)
    train(make(tmp_path / "run"))
    assert torch.equal(embeddings(tmp_path / "run/best"), seen[0])
    better = scored(0.3, 0.2, 0.1, 0.7)
    train_until(stop, train, make(tmp_path / "other"), monkeypatch)
    train(make(tmp_path / "other"))
    assert torch.equal(embeddings(tmp_path / "other/best"), better[3])
    assert same_weights(tmp_path / "other/best", tmp_path / "other/last")
