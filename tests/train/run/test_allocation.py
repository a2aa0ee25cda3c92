"""Freed memory that is kept: seen from outside as pages that are not faulted in again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from train.run.allocation import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    held = [bytearray(16 << 20) for _ in range(4)]
    del held
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_pages_are_faulted_in_once():
    (kept, few), (_, many) = run("keep"), run("leave")
    assert kept == "True"
    assert few < many / 4


def test_the_users_own_settings_are_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="4")[0] == "False"
