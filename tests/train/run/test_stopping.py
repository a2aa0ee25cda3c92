"""Trainings as programs: two in one folder, and one that is stopped and goes on. Real processes, real signals."""

import json
import os
import signal
import socket
import subprocess

import pytest

from search_r3_mteb import locks
from search_r3_mteb.locks import OccupiedError, leave, occupy
from tests.programs import started
from tests.test_stopping import AS_IN_A_TERMINAL, stopped
from tests.train.loops import sft_config
from train.config.loading import dump, load_config
from train.config.stages import SftConfig
from train.sft import train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")
# A training that never gets beyond its second step: no test of this file depends on speed.
TRAINING = """
import runpy, time
import train.run.run as module
before = module.Run.after_step
def after_step(run, number, values):
    before(run, number, values)
    if number == 2:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
module.Run.after_step = after_step
runpy.run_path("train/sft.py", run_name="__main__")
"""
HOLDING = """
import pathlib, subprocess, sys
from search_r3_mteb.locks import occupy
occupy(pathlib.Path(sys.argv[1]), "training")
if sys.argv[2:]:
    import os
    if os.fork() == 0:
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_one_folder_one_training_and_a_stopped_one_goes_on(tmp_path):
    run, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(dump(sft_config(tmp_path / "unused", "checkpoint.every=1", "optimization.steps=3")))
    given = ["--config", config, "--set", f"output.folder={run}"]
    first = started("-c", AS_IN_A_TERMINAL, "-c", TRAINING, *given)
    try:
        assert first.stdout.readline() == "ready\n", first.communicate()[1][-3000:]
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        second = started("train/sft.py", *given)
        _, errors = second.communicate()
        assert second.returncode == 2
        assert errors.splitlines()[-1] == (
            f"sft.py: {run}: another training works in this folder, process {first.pid} on {socket.gethostname()}. Two "
            "of them would destroy each other's files. Wait for it, stop it, or name another folder."
        )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate()
    finally:
        first.kill()
    command = f"python train/sft.py --config {config} --set output.folder={run}"
    kept = run / "checkpoints" / "step-000002"
    assert errors.splitlines()[-1] == (
        f"sft.py: stopped by SIGTERM. The checkpoint {kept} is kept. Go on from it with: {command}"
    )
    assert first.returncode == 143
    assert "Traceback" not in errors
    (run / ".last.123abc.unfinished").mkdir()  # of a killed one
    assert train(load_config(config, [f"output.folder={run}"], SftConfig)) == run / "last"
    assert run.resolve() not in {place.parent for _, place in locks._occupied}, "whoever is done leaves"
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    assert not list(run.rglob(".last*"))


@pytest.mark.parametrize("child", [False, True], ids=["", "whose child lives on"])
def test_the_lock_dies_with_its_process(tmp_path, child):
    owner = started("-c", HOLDING, tmp_path, *["child"] * child, stdin=subprocess.PIPE)
    try:
        assert owner.stdout.readline() == "ready\n"
        with pytest.raises(OccupiedError, match=f"process {owner.pid} on "):
            occupy(tmp_path, "training")
        occupy(tmp_path, "tuning")  # something else
        leave(tmp_path, "tuning")
        assert [path.name for path in tmp_path.iterdir()] == [".training.lock"]
        owner.kill()
        owner.wait()
        occupy(tmp_path, "training")
        occupy(tmp_path, "training")  # this process is in already
    finally:
        leave(tmp_path, "training")
        owner.communicate("")
    assert not list(tmp_path.iterdir())


def test_a_start_that_fails_leaves_nothing_and_nobody_in_the_folder(tmp_path):
    config = sft_config(tmp_path / "run", model=tmp_path / "no model")
    with pytest.raises(FileNotFoundError):
        train(config)
    assert not (tmp_path / "run").exists()
    assert tmp_path / "run" not in {place.parent for _, place in locks._occupied}


def test_a_stop_without_a_checkpoint_and_with_resume_never(tmp_path):
    from train.run import command

    config = sft_config(tmp_path / "run", 'checkpoint.resume="never"')
    given = command.Command(config, dry_run=False)
    assert "holds no checkpoint yet, so the same command begins again: python train/sft.py" in command._kept(
        "sft.py", given
    )
    (tmp_path / "run" / "checkpoints" / "step-000004").mkdir(parents=True)
    assert command._kept("sft.py", given).endswith("--set checkpoint.resume=auto")
    assert command._kept("sft.py", command.Command(config, dry_run=True)).startswith("A dry run writes nothing.")


@pytest.mark.slow
def test_evaluate_stopped_by_ctrl_c_goes_on_with_the_command_that_it_names(tmp_path):
    output = tmp_path / "out"
    given = ["evaluate", "--model", "nano", "--task", "hopworld:500", "--mode", "direct", "--output", output]
    slow = """
import runpy, sys, time
from search_r3_mteb.encoder import store
def append(self, *arguments, before=store.Store.append, **keywords):
    before(self, *arguments, **keywords)
    print("ready", flush=True)
    time.sleep(1000)
store.Store.append = append
sys.argv[0] = "search-r3"
runpy.run_module("search_r3_mteb", run_name="__main__", alter_sys=True)
"""
    process = started("-c", AS_IN_A_TERMINAL, "-c", slow, *given)
    code, errors = stopped(process, signal.SIGINT)
    assert code == 130
    assert errors.splitlines()[-1] == (
        "search-r3: stopped by Ctrl-C. What is complete is kept, and so is every chunk of vectors and reasoning. Go on "
        f"with: search-r3 evaluate --model nano --task hopworld:500 --mode direct --output {output}"
    )
    assert "Traceback" not in errors
    assert len(list((output / "store").rglob("chunk.json"))) == 1
    assert not [path for path in output.rglob(".*") if path.name != ".lock"]
