"""The two scripts as people start them; no folder of ours hides a library's module."""

import os

import pytest

from tests.programs import ROOT, mostly_slow, python

ROOMS = sorted(path.parent.name for path in (ROOT / "train").glob("*/__init__.py"))
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
# At the end of the process, when the script has set the search path: which file is a library's `import data`?
AT_EXIT = """
import atexit, importlib, os
def say():
    for room in os.environ["ROOMS"].split():
        print("FOUND", room, importlib.import_module(room).__file__)
atexit.register(say)
"""


def started(command, decoys):
    """Standard output of `python COMMAND --help` where a module of every room's name stands among the libraries."""
    for room in ROOMS:
        (decoys / f"{room}.py").write_text("")
    (decoys / "sitecustomize.py").write_text(AT_EXIT)
    path = os.pathsep.join([str(decoys), str(ROOT)])
    said = python(*command, "--help", PYTHONPATH=path, ROOMS=" ".join(ROOMS))
    assert "--config FILE" in said
    return dict(line.split()[1:] for line in said.splitlines() if line.startswith("FOUND "))


@pytest.mark.parametrize(
    ("how", "script"),
    mostly_slow([("file", "sft"), ("file", "rl"), ("module", "rl"), ("accelerate", "rl")], ("file", "rl")),
)
def test_each_way_to_start_finds_the_libraries_own_modules(how, script, tmp_path):
    file = str(ROOT / "train" / f"{script}.py")
    command = {"file": [file], "module": ["-m", f"train.{script}"], "accelerate": [*ACCELERATE, file]}
    found = started(command[how], tmp_path)
    assert found == {room: str(tmp_path / f"{room}.py") for room in ROOMS}


@pytest.mark.slow
def test_without_the_guard_our_folders_hide_them(tmp_path):
    """The control: the same script with its guard cut out."""
    text = (ROOT / "train" / "rl.py").read_text()
    guard = text[text.index("_FOLDER = ") : text.index("from search_r3_mteb")]
    (tmp_path / "decoys").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rl.py").write_text(text.replace(guard, ""))
    for room in ROOMS:
        (tmp_path / "train" / room).symlink_to(ROOT / "train" / room)
    found = started([tmp_path / "train" / "rl.py"], tmp_path / "decoys")
    assert found == {room: str(tmp_path / "train" / room / "__init__.py") for room in ROOMS}
