"""The two scripts as people start them; no folder of ours hides a library's module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "train").glob("*/__init__.py"))
PYTHON = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
# At the end of the process, when the script has set the search path: which file is a library's `import data`?
AT_EXIT = """
import atexit, importlib, os
def say():
    for room in os.environ["ROOMS"].split():
        print("FOUND", room, importlib.import_module(room).__file__)
atexit.register(say)
"""


def started(command, decoys, cwd=ROOT):
    """Standard output of `command --help` where a module of every room's name stands among the libraries."""
    for room in ROOMS:
        (decoys / f"{room}.py").write_text("")
    (decoys / "sitecustomize.py").write_text(AT_EXIT)
    path = os.pathsep.join([str(decoys), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "ROOMS": " ".join(ROOMS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--help"], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config FILE" in done.stdout
    return dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND "))


@pytest.mark.parametrize(("how", "script"), [("file", "sft"), ("file", "rl"), ("module", "rl"), ("accelerate", "rl")])
def test_each_way_to_start_finds_the_libraries_own_modules(how, script, tmp_path):
    file = str(ROOT / "train" / f"{script}.py")
    command = {"file": [*PYTHON, file], "module": [*PYTHON, "-m", f"train.{script}"], "accelerate": [*ACCELERATE, file]}
    found = started(command[how], tmp_path)
    assert found == {room: str(tmp_path / f"{room}.py") for room in ROOMS}


def test_without_the_guard_our_folders_hide_them(tmp_path):
    """The control: the same script with its guard cut out."""
    text = (ROOT / "train" / "rl.py").read_text()
    guard = text[text.index("_FOLDER = ") : text.index("from search_r3_mteb")]
    (tmp_path / "decoys").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rl.py").write_text(text.replace(guard, ""))
    for room in ROOMS:
        (tmp_path / "train" / room).symlink_to(ROOT / "train" / room)
    found = started([*PYTHON, str(tmp_path / "train" / "rl.py")], tmp_path / "decoys")
    assert found == {room: str(tmp_path / "train" / room / "__init__.py") for room in ROOMS}
