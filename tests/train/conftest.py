"""One small trained model for all tests of the loops, and a clean state of accelerate for each of them."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its settings for the life of the process; a test must not inherit them."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run folder of a short stage 1: its model says something like traces and emits the embed token."""
    from tests.train.loops import sft_config
    from train.sft import train

    folder = tmp_path_factory.mktemp("stage-1") / "run"
    train(
        sft_config(
            folder, "optimization.steps=40", "optimization.batch_size=16", "evaluate.every=20", "checkpoint.every=20",
            evaluation=True,
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def model(trained):
    """The folder of the model that stage 1 wrote."""
    return trained / "last"
