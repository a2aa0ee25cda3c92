"""Programs in fresh interpreters that import this checkout."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def started(*arguments, stdin=subprocess.DEVNULL, **environment):
    """A process that runs `python ARGUMENTS`, with these environment variables beside our own."""
    settings = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1} | environment
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | {k: str(v) for k, v in settings.items()},
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def printed(*processes, timeout=900):
    """What each process prints, once all have ended well; where one does not, none is left running."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), [e[-3000:] for _, e in outputs]
    return [output for output, _ in outputs]


def python(*arguments, timeout=900, **environment):
    """What `python ARGUMENTS` prints."""
    return printed(started(*arguments, **environment), timeout=timeout)[0]


def loaded_after(statement, names):
    """Which of the modules `names` a fresh interpreter has loaded after `statement`."""
    said = python("-c", f"{statement}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))")
    return set(said.splitlines()[-1].split())


def mostly_slow(values, *kept):
    """The values as parameters of a test, all but those `kept` marked slow: in the suite these stand for their kind."""
    marks = {value: [] if value in kept else [pytest.mark.slow] for value in values}
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks[value]) for value in values]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launched(number, count, port):
    """The environment variables that torchrun and `accelerate launch` give to process `number` of `count`."""
    return {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
