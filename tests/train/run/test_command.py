"""The command line of both stages."""

import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest

from search_r3_mteb.tasks.beir_folder import write_beir
from tests.programs import free_port, launched, started
from tests.train.loops import EVALUATION, RL, SFT, byte_folder
from train import rl, sft
from train.config.stages import SftConfig
from train.run.command import _known_to_all, parse, start


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(SFT)
    return file


def test_overrides_and_dry_run(path):
    command = parse(
        "sft.py", SftConfig, ["--config", str(path), "--set", "optimization.steps=7", "--set", "loss.infonce=2"]
    )
    assert (command.config.optimization.steps, command.config.loss.infonce, command.dry_run) == (7, 2.0, False)
    assert parse("sft.py", SftConfig, ["--config", str(path), "--dry-run"]).dry_run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "optimization.stepz=7"], "Did you mean 'steps'?"),
        (["--set", "model.scratch.layers=0"], "layers"),
        (["--set", "loss.infonce=-1"], "infonce"),
        (["--set", "model.scratch.heads=5"], "does not divide"),
        (["--set", "nonsense"], "nonsense"),
    ],
)
def test_a_wrong_setting_ends_with_code_2_and_its_message(path, capsys, arguments, said):
    """Regression: the loader's own error was not the one that was caught, and a traceback came with code 1."""
    with pytest.raises(SystemExit) as end:
        parse("sft.py", SftConfig, ["--config", str(path), *arguments])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("sft.py: ")
    assert said in shown


def test_a_missing_file_and_an_unknown_option(tmp_path, capsys):
    for arguments in (["--config", str(tmp_path / "none.toml")], ["--conf"], []):
        with pytest.raises(SystemExit) as end:
            parse("rl.py", SftConfig, arguments)
        assert end.value.code == 2
    assert "none.toml" in capsys.readouterr().err


def test_none_is_a_value_where_it_is_one_of_them(tmp_path):
    """Regression: `corpus_cache.policy=none` took the key away, and the run went on under the default policy."""
    from train.config.stages import RlConfig

    path = tmp_path / "rl.toml"
    path.write_text(RL)
    for word in ("none", '"none"', " none"):
        config = parse("rl.py", RlConfig, ["--config", str(path), "--set", f"corpus_cache.policy={word}"]).config
        assert config.corpus_cache.policy == "none"
    given = ["--set", "data.sources.0.name=x", "--set", "data.sources.0.name=none", "--set", "model.revision=none"]
    config = parse("rl.py", RlConfig, ["--config", str(path), *given]).config
    assert config.data.sources[0].name is None
    assert config.model.revision is None


def ends(capsys, main, *arguments):
    """The message of a command that ends with code 2: standard error, whose last line begins with the program."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    said = [line for line in shown.splitlines() if line.startswith(("sft.py: ", "rl.py: "))]
    assert len(said) == 1
    return shown[shown.index(said[0]) :]


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    write_beir(folder, corpus=[("d", "", "text")], queries=[("q", "query")], qrels={"train": [("q", "d", 1)]})
    return folder


@pytest.mark.parametrize("dry", [True, False])
def test_what_is_not_there_is_one_message_and_code_2(tmp_path, capsys, path, beir, dry):
    """Regression: only mistakes in the file itself were caught, and these ended in a traceback with code 1."""
    more = ["--dry-run"] * dry
    run = ["--set", f"output.folder={tmp_path / 'run'}", *more]
    two = tmp_path / "two.toml"
    two.write_text(RL.replace("MODEL", "runs/no/such"))
    assert "There is no model 'runs/no/such'" in ends(capsys, rl.main, "--config", str(two), *run)

    rows = tmp_path / "beir.toml"
    one = f'[[data.sources]]\nkind = "beir"\npath = "{beir}"\nsplit = "SPLIT"\n'
    rest = "\n[loss]" + SFT.split("[loss]", 1)[1]
    rows.write_text(SFT.split("[[data.sources]]")[0] + one.replace("SPLIT", "dev") + rest)
    assert "dev" in ends(capsys, sft.main, "--config", str(rows), *run)
    judged = f'[[data.evaluation]]\nkind = "beir"\npath = "{beir}"\nsplit = "test"\n'
    rows.write_text(SFT + judged)
    assert "test" in ends(capsys, sft.main, "--config", str(rows), *run)
    if not dry:  # a dry run lists what is not here
        rows.write_text(SFT.split("[[data.sources]]")[0] + one.replace(str(beir), "away") + rest)
        assert "away" in ends(capsys, sft.main, "--config", str(rows), *run)

    (tmp_path / "file").write_text("")
    blocked = ["--set", f"output.folder={tmp_path / 'file' / 'run'}", *more]
    assert "cannot be written" in ends(capsys, sft.main, "--config", str(path), *blocked)
    for folder in ('""', '" "'):
        said = ends(capsys, sft.main, "--config", str(path), "--set", f"output.folder={folder}", *more)
        assert "[output] folder: got" in said
        assert "must not be blank" in said
    path.write_text(SFT + EVALUATION)
    for key in ("data.sources.0.hops", "data.evaluation.0.hops"):
        said = ends(capsys, sft.main, "--config", str(path), "--set", f"{key}=[1, 5]", *run)
        assert "hops" in said
        assert "at most 4" in said
        assert "1 or more values" in ends(capsys, sft.main, "--config", str(path), "--set", f"{key}=[]", *run)

    target = ["--set", f"model.path={byte_folder(tmp_path / 'base')}", "--set", "model.lora.rank=2", *run]
    target += ["--set", 'model.lora.target_modules=["q_proj", "query"]']
    said = ends(capsys, rl.main, "--config", str(two), *target)
    assert "names 'query', but no linear layer of Qwen2ForCausalLM has that name" in said
    assert "It has down_proj, gate_proj, k_proj" in said
    assert not (tmp_path / "run").exists()


def test_hops_are_those_of_the_world():
    from search_r3_mteb.tasks.hopworld import HOPS
    from train.config.data import JudgedSetSettings

    assert JudgedSetSettings(kind="hopworld", hops=HOPS).hops == HOPS
    for hops in ((min(HOPS) - 1,), (max(HOPS) + 1,)):
        with pytest.raises(ValueError, match="hops"):
            JudgedSetSettings(kind="hopworld", hops=hops)


def test_debug_shows_where_it_happened(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        sft.main(["--config", str(path), "--debug", "--set", f"output.folder={tmp_path / 'file' / 'run'}"])


def test_where_a_failed_step_s_batch_lies_is_said(path, capsys):
    """The run notes it on the error; one message without the note would leave the file to be found by chance."""

    def train(config):
        error = ValueError("the loss is not finite")
        error.add_note("Step 3 failed, its batch is in runs/x/failed-batch-step-3-process-0.json.")
        raise error

    with pytest.raises(SystemExit) as end:
        start("sft.py", SftConfig, train, ["--config", str(path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "sft.py: the loss is not finite\nStep 3 failed, its batch is in runs/x/failed-batch-step-3-process-0.json.\n"
    )


def test_a_file_of_the_other_stage_gives_a_hint(tmp_path, capsys, path):
    two = tmp_path / "two.toml"
    two.write_text(RL.replace("MODEL", "somewhere"))
    said = ends(capsys, sft.main, "--config", str(two))
    assert f"{two} is a configuration of stage 2: start it with python train/rl.py" in said
    assert "rollout: there is no such key" in said
    said = ends(capsys, rl.main, "--config", str(path))
    assert f"{path} is a configuration of stage 1: start it with python train/sft.py" in said
    path.write_text(SFT.replace("steps = 3", "stepz = 3"))
    assert "is a configuration of" not in ends(capsys, sft.main, "--config", str(path))


def test_the_estimate_s_options_reach_it(tmp_path, capsys, path):
    shown = []
    for more in ([], ["--gpus", "2"], ["--peak-tflops", "1"], ["--utilisation", "1"]):
        sft.main(["--config", str(path), "--dry-run", *more])
        shown.append(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("# time estimate")))
    assert len(set(shown)) == len(shown)
    assert "sft.py: --utilisation = 2.0" in ends(
        capsys, sft.main, "--config", str(path), "--dry-run", "--utilisation", "2"
    )
    assert json.dumps(shown)


# The main process waits for the other one, in a collective or in the share of a corpus, and that one fails.
FAILING = """
import sys
import numpy as np
import torch.distributed as dist
from train.config.stages import SftConfig
from train.processes.replicas import all_processes, on_all
from train.run.command import start

def share():
    if dist.get_rank() == 1:
        raise ValueError("no document is judged")
    return {"found": np.zeros(1)}

def train(config):
    dist.init_process_group("gloo")
    all_processes().barrier()
    if config.optimization.seed == 1:
        share()
        all_processes().barrier()
    on_all(share, all_processes(), "encode its share")

start("sft.py", SftConfig, train, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        pytest.param(
            1, "sft.py: Process 0 of 2 waited for the others in a barrier", id="collective", marks=pytest.mark.slow
        ),
        pytest.param(2, "sft.py: Process 1 could not encode", id="share", marks=pytest.mark.slow),
    ],
)
def test_a_process_whose_partner_failed_says_so_in_one_line(path, seed, said):
    """Regression: forty lines of traceback, below which the one line that says why was lost."""
    port, arguments = free_port(), ["--config", path, "--set", f"optimization.seed={seed}"]
    members = [started("-c", FAILING, *arguments, **launched(rank, 2, port)) for rank in range(2)]
    try:
        shown = [member.communicate(timeout=120)[1] for member in members]
    finally:
        for member in members:
            member.kill()
    assert [member.returncode for member in members] == [1, 2]
    lines = [[line for line in text.splitlines() if line.startswith("sft.py") or "File " in line] for text in shown]
    assert lines[1] == ["sft.py: no document is judged"]
    assert len(lines[0]) == 1
    assert lines[0][0].startswith(said)


def test_debug_shows_the_traceback_of_a_process_that_waited(path):
    from train.processes.errors import OtherProcessError
    from train.run.command import start

    def train(config):
        raise OtherProcessError("another process has stopped")

    with pytest.raises(OtherProcessError):
        start("sft.py", SftConfig, train, ["--config", str(path), "--debug"])
    with pytest.raises(SystemExit) as end:
        start("sft.py", SftConfig, train, ["--config", str(path)])
    assert end.value.code == 1


def test_a_full_disk_in_another_thread_is_not_hidden():
    """TensorBoard's writer hands its error to the next caller; any other thread's would be lost."""
    shown = []
    hook = _known_to_all(shown.append)
    full, other = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events"), ValueError("x")
    handing = type("Writer", (threading.Thread,), {"__module__": "tensorboard.summary.writer"})()
    for thread in (handing, threading.Thread()):
        for value in (full, other):
            hook(SimpleNamespace(exc_value=value, thread=thread))
    assert [(each.thread is handing, each.exc_value) for each in shown] == [
        (True, other),
        (False, full),
        (False, other),
    ]


def test_stage_two_without_stage_one_names_the_command_that_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text(SFT + 'folder = "runs/one"\n')
    (tmp_path / "two.toml").write_text(RL.replace("MODEL", "runs/one/last"))
    said = ends(capsys, rl.main, "--config", "two.toml")
    assert "runs/one/last is what stage 1 writes. Run that first: python train/sft.py --config one.toml" in said
    byte_folder(tmp_path / "runs/one/last")
    said = ends(capsys, rl.main, "--config", "two.toml", "--set", "data.sources.0.documents=-1")
    assert "Run that first" not in said


def test_a_configuration_of_stage_one_is_named_as_that(tmp_path, capsys):
    """Without a section of its own too: its keys alone are unknown to stage 2."""
    file = tmp_path / "own.toml"
    sections = '[model]\npath = "m"\n[[data.sources]]\nkind = "hopworld"\n[optimization]\nbatch_size = 8\n'
    file.write_text(sections)
    said = ends(capsys, rl.main, "--config", str(file))
    assert f"{file} is a configuration of stage 1: start it with python train/sft.py --config {file}" in said
    file.write_text(sections.replace("batch_size", "batch_sizes"))
    assert "is a configuration of" not in ends(capsys, rl.main, "--config", str(file))


def test_a_base_of_two_parts_that_is_nowhere_is_no_hub_id_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "one.toml").write_text('[model]\npath = "runs/start"\n[[data.sources]]\nkind = "hopworld"\n')
    for more in ([], ["--dry-run"]):
        said = ends(capsys, sft.main, "--config", "one.toml", *more)
        assert "'runs/start'" in said
        assert "is neither a folder here nor found on the hub" in said


def test_a_set_that_is_not_here_names_the_command_that_makes_it(tmp_path, capsys, monkeypatch):
    from search_r3_mteb.tasks.beir_folder import read_qrels
    from train import prepare

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`python -m train.prepare scifact` in a checkout makes it"):
        list(read_qrels("data/scifact"))
    with pytest.raises(FileNotFoundError, match=r"qrels/\.$"):
        list(read_qrels("elsewhere/mine"))
    with pytest.raises(SystemExit):
        prepare.main(["scifact", "--check"])
    assert "There is no folder 'data/scifact'" in capsys.readouterr().err
    (tmp_path / "data/scifact").mkdir(parents=True)
    with pytest.raises(SystemExit):
        prepare.main(["scifact", "--check"])
    assert "has no manifest.json" in capsys.readouterr().err
