"""Both loops in processes of their own: killed and resumed, and two that share the work of one."""

import json
from pathlib import Path

import pytest

from tests.programs import python
from tests.train.loops import EVALUATION, RL, SFT, events

WORKER = Path(__file__).with_name("loop_worker.py")


def work(*arguments):
    return json.loads(python(WORKER, *arguments, timeout=3600).splitlines()[-1])


def check_kills(found, count):
    assert found["kills"] == count
    assert found["runs"] >= 1
    for equal in found["equal"]:
        assert all(equal.values()), found


@pytest.mark.slow  # the moments are drawn from a measured duration, which other load can make useless
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_three_kills(tmp_path, trained, stage):
    """kill -9 at random moments: weights, best model, log, cache and rollouts are those of an uninterrupted run."""
    check_kills(work("kills", stage, tmp_path, trained / "last", 3), 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_twenty_kills(tmp_path, trained, stage):
    found = work("kills", stage, tmp_path, trained / "last", 20)
    check_kills(found, 20)
    assert len(set(found["steps_at_death"])) > 2, "all kills fell at the same place"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_two_processes_are_one(tmp_path, trained, stage):
    """Half of the batch each: the same loss, gradient and scores; and one process takes over a run of two."""
    found = work("processes", stage, tmp_path, trained / "last")
    assert found["gradient"] < 1e-5 < 1e-2 < found["scale"]
    assert found["ranks"] < 1e-6
    for name, (one, two) in found["first"].items():
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5), name
    assert found["steps"] == {name: [1, 2, 3, 4, 5, 6] for name in ("one", "two", "taken")}
    assert found["scores"]["one"] == pytest.approx(found["scores"]["two"], abs=1e-6)
    assert found["weights"] < 2e-4
    assert found["taken"] < 2e-4
    assert found["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_accelerate_launch(tmp_path, trained, stage):
    """The command that users type."""
    text = SFT if stage == "sft" else RL.replace("MODEL", str(trained / "last"))
    (tmp_path / "tiny.toml").write_text(text + EVALUATION)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    program = [f"train/{stage}.py", "--config", tmp_path / "tiny.toml", "--set", f"output.folder={tmp_path / 'run'}"]
    python(*launch, *program)
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2, 3]
    assert (tmp_path / "run/last/model.safetensors").exists()
