"""Ctrl-C and SIGTERM end a program with one line and its exit code, wherever they come. Processes are real."""

import os
import random
import signal
import sys
import time

import pytest

from tests.programs import started

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Whoever runs this suite in the background has Ctrl-C ignored, and children would inherit that.
AS_IN_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setpgid(0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Runs a program as `python ...` does, and stays for ever in the import of one module.
IN_AN_IMPORT = """
import runpy, sys, time
module, way, *arguments = sys.argv[1:]
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            print("ready", flush=True)
            time.sleep(1000)
sys.meta_path.insert(0, Watch())
sys.argv = arguments
run = runpy.run_module if way == "module" else runpy.run_path
run(arguments[0], run_name="__main__")
"""
PROGRAM = """
import ctypes, os, sys, time
from search_r3_mteb import stopping
stopping.end_on_signals("program", lambda: "Go on with: it")
def ready():
    print("ready", flush=True)
def for_ever():
    while True:
        time.sleep(0.01)
"""
PATIENCE = "stopping._PATIENCE = 1\n"


def stopped(process, number, line="ready\n", *, group=False):
    """Exit code and standard error of a process that gets the signal once it has printed the line."""
    try:
        for said in process.stdout:
            if said == line:
                break
        else:
            pytest.fail(process.communicate()[1][-3000:])
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, errors


def program(code):
    return started("-c", AS_IN_A_TERMINAL, "-c", PROGRAM + code)


@pytest.mark.parametrize("number", CODES)
def test_a_program_ends_with_one_line_and_its_code(number):
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    code, errors = stopped(program("ready()\nfor_ever()"), number)
    assert (code, errors) == (CODES[number], f"program: stopped by {name}. Go on with: it\n")


def test_without_it_the_same_program_ends_with_a_traceback():
    process = started("-c", AS_IN_A_TERMINAL, "-c", "import time\nprint('ready', flush=True)\ntime.sleep(1000)")
    code, errors = stopped(process, signal.SIGINT)
    assert code != 130
    assert "Traceback" in errors


SWALLOWED = """
ready()
while True:
    try:
        for_ever()
    except BaseException:
        pass
"""
IN_C = """
lock = ctypes.create_string_buffer(64)
lock_it = ctypes.CDLL(None).pthread_mutex_lock
lock_it(lock)
ready()
lock_it(lock)  # waits for itself, and no signal wakes it
"""
IN_A_FINALIZER = """
class Slow:
    def __del__(self):
        ready()
        for_ever()
Slow()
for_ever()
"""
AT_EXIT = """
import atexit
@atexit.register
def slow():
    ready()
    for_ever()
"""
IN_A_CHILD_TOO = """
if os.fork() == 0:
    ready()
for_ever()
"""


@pytest.mark.parametrize(
    "code", [PATIENCE + SWALLOWED, PATIENCE + IN_C, IN_A_FINALIZER, AT_EXIT, IN_A_CHILD_TOO],
    ids=["swallowed", "inside C", "in a finalizer", "at exit", "in a forked child"],
)  # fmt: skip
def test_wherever_the_signal_comes_there_is_one_line(code):
    assert stopped(program(code), signal.SIGINT, group=True) == (130, "program: stopped by Ctrl-C. Go on with: it\n")


def test_the_signal_of_a_child_is_not_the_parents():
    code = PATIENCE + "child = os.fork()\nif child == 0:\n    for_ever()\nos.kill(child, 15)\n"
    code += "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\ntime.sleep(0.5)\nprint('lives')"
    process = program(code)
    assert process.communicate() == ("-15\nlives\n", "")


def test_a_second_signal_does_not_wait_for_the_first():
    code = "try:\n    ready()\n    for_ever()\nfinally:\n    ready()\n    for_ever()"
    process = program(code)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert stopped(process, signal.SIGTERM) == (130, "program: stopped by Ctrl-C. Go on with: it\n")


def test_what_whoever_started_it_wants_ignored_stays_ignored():
    process = started("-c", f"import signal\nsignal.signal(2, signal.SIG_IGN)\n{PROGRAM}ready()\nfor_ever()")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == ("", "program: stopped by SIGTERM. Go on with: it\n")
    assert process.returncode == 143


def test_the_second_process_of_a_group_says_nothing():
    process = started("-c", AS_IN_A_TERMINAL, "-c", f"{PROGRAM}ready()\nfor_ever()", RANK=1)
    assert stopped(process, signal.SIGTERM) == (143, "")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent died")
def test_a_process_ends_with_its_launcher():
    launcher = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {PROGRAM + 'ready(); for_ever()'!r}])"
    process = started("-c", launcher, ACCELERATE_MIXED_PRECISION="no")
    assert stopped(process, signal.SIGKILL)[1] == "program: stopped by SIGTERM. Go on with: it\n"


WRITING = """
import pathlib
from search_r3_mteb import atomic
place = pathlib.Path(sys.argv[1])
with atomic.replaced_folder(place / "model") as folder, atomic.written_file(place / "file") as stream:
    stream.write(b"half")
    (folder / "file").write_text("half")
    ready()
    for_ever()
"""


def test_in_the_middle_of_a_write_the_old_stays_and_nothing_beside_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")
    process = started("-c", AS_IN_A_TERMINAL, "-c", PROGRAM + WRITING, tmp_path)
    assert stopped(process, signal.SIGTERM) == (143, "program: stopped by SIGTERM. Go on with: it\n")
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "model"]


FINISHING = """
going = True
def finish():
    global going
    going = False
    print("asked", flush=True)
with stopping.finishing(finish, patience=60):
    ready()
    while going or os.environ.get("STUCK"):
        time.sleep(0.01)
    print("finished what ran", flush=True)
print("not reached")
"""


@pytest.mark.parametrize("number", CODES)
def test_who_owes_answers_finishes_them_and_ends_with_the_same_code(number):
    process = program(FINISHING)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (CODES[number], "asked\nfinished what ran\n")
    assert errors.endswith("Go on with: it\n")


@pytest.mark.parametrize("again", [True, False])
def test_what_does_not_finish_is_ended_by_a_second_signal_or_the_patience(again):
    code = FINISHING if again else FINISHING.replace("patience=60", "patience=2")
    process = program("os.environ['STUCK'] = '1'\n" + code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    if again:
        process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (143, "")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "command", "said"),
    [
        ("typer", ["module", "search_r3_mteb", "doctor"], "search-r3: stopped by Ctrl-C. Nothing had begun. Start it"),
        ("torch", ["file", "train/rl.py", "--config", "no"], "rl.py: stopped by Ctrl-C. Nothing had begun. St"),
        ("train.config", ["file", "train/sft.py", "--dry-run"], "sft.py: stopped by Ctrl-C. Nothing had begun. Start"),
        ("train.public_sets", ["module", "train.prepare", "scifact"], "train.prepare: stopped by Ctrl-C. What was re"),
    ],
)
def test_programs_are_ready_before_they_import_what_takes_time(module, command, said):
    process = started("-c", AS_IN_A_TERMINAL, "-c", IN_AN_IMPORT, module, *command)
    code, errors = stopped(process, signal.SIGINT)
    assert code == 130, errors
    assert errors.startswith(said)
    assert errors.endswith(f"{command[-1]}\n")
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_twenty_moments_of_starting_and_training_each_give_one_line(number, tmp_path):
    """From the first line of the script to its steps; before it Python itself starts, which says nothing of ours."""
    from tests.train.loops import sft_config
    from train.config.loading import dump

    config = tmp_path / "config.toml"
    config.write_text(dump(sft_config(tmp_path / "unused", "optimization.steps=100000", "checkpoint.every=0")))
    draw = random.Random(int(number))
    for moment in range(20):
        code = "import runpy\nprint('ready', flush=True)\nrunpy.run_path('train/sft.py', run_name='__main__')"
        given = ["--config", config, "--set", f"output.folder={tmp_path / str(moment)}"]
        process = started("-c", AS_IN_A_TERMINAL, "-c", code, *given)
        process.stdout.readline()
        time.sleep(draw.uniform(0.2, 6))
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
        said = [line for line in errors.splitlines() if line.startswith("sft.py: stopped by ")]
        assert (process.returncode, len(said)) == (CODES[number], 1), errors
        assert "Traceback" not in errors
