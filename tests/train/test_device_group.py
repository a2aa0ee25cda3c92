"""Both stages on a process group without a backend for the CPU, as nccl is: what shows on several GPUs, shown here."""

import json
from pathlib import Path

import pytest

from tests.programs import mostly_slow, python
from tests.train.loops import sft_config
from train.run.run import Run

WORKER = Path(__file__).with_name("device_group_worker.py")


def work(what, folder, model, *sizes):
    return json.loads(python(WORKER, what, folder, model, *sizes).splitlines()[-1])


@pytest.mark.parametrize(
    ("stage", "sizes"), mostly_slow([("sft", (1, 2, 3)), ("rl", (1, 2, 3)), ("rl", (2,))], ("rl", (2,)))
)
def test_processes_without_cpu_collectives_are_one_process(tmp_path, trained, stage, sizes):
    """To the end, stopped and resumed once, evaluated and exported: the weights of one process without a group.

    In stage 2 one half of the first step's prompts has nothing to teach: those processes gather all the same.
    """
    found = work(stage, tmp_path, trained / "last", *sizes)
    assert found["moved"] > 1e-3, "the control: training moves the weights"
    for size in sizes:
        one = found[f"of-{size}"]
        assert one["said"] == ["No backend type associated with device type cpu"] * size, "the control"
        assert one["steps"] == [1, 2, 3]
        assert one["weights"] < 1e-6
        for name in ("losses", "reading"):
            assert one[name][0] == pytest.approx(one[name][1], rel=1e-5, abs=1e-6)
    if stage == "sft":
        assert min(found["of-2"]["reading"][0]) > 0
    else:
        assert found["best"][0] != pytest.approx(found["best"][1]), "one half is above the bound, the other is not"
        assert max(found[f"of-{size}"]["cache"] for size in sizes) < 1e-6
        assert found["gap_max"] == pytest.approx(0.5, abs=1e-3), "the largest gap of all processes, not their mean"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_shards_learn_what_one_process_learns(tmp_path, trained, stage):
    """FSDP2 through a whole run, stopped and resumed once: weights, losses, and the outputs of the export."""
    found = work(f"{stage}-sharded", tmp_path, trained / "last", 2)
    one = found["of-2"]
    assert found["moved"] > 1e-3
    assert one["weights"] < 1e-6
    assert one["outputs"] < 1e-4
    assert one["steps"] == [1, 2, 3]
    assert one["losses"][0] == pytest.approx(one["losses"][1], rel=1e-5, abs=1e-6)
    assert one["said"] == ["DTensor"] * 2, "the control: the weights lie in shards"
    if stage == "sft":
        assert one["idle"] > 0, "the control: a process had fewer mini-batches than the other"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
    ],
)
def test_engines_that_keep_the_update_to_themselves_are_refused(tmp_path, monkeypatch, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=named):
        Run.begin(sft_config(tmp_path / "run"))


def test_when_one_process_fails_the_others_end_and_say_so(tmp_path, trained):
    found = work("lost", tmp_path, trained / "last")
    assert found["codes"] == [3, 3]
    (other, message), failed = found["said"]
    assert failed == ["ValueError", "no document is judged"]
    assert other == found["expected"]
    assert message.startswith("Process 0 of 2 waited for the others")
    assert found["written"] == ["failed-batch-step-2-process-1.json"], "the batch of the process that failed"
