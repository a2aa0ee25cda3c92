"""Threads of a processor: how they wait for each other, how many are best, and whether work has become slow.

The threads of OpenMP, which torch computes with, spin while they wait. Where another program has one of the cores, all
of them spin until the one that was put aside comes back, at every small operation: two threads on two cores with other
load then decode many times slower than one (`results/speed/threads.py` measures it). Threads that sleep do not.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

WAIT_POLICY = "OMP_WAIT_POLICY"
_CLEAR = 1.25
"""Our choice: a difference below this is one of these machines' noise, and no reason to change a setting."""
_SLOW = 4.0
"""Our choice: batches of other lengths differ in tokens per second by less than 2."""
_FIRST = 3


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has decided. Before torch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault(WAIT_POLICY, "PASSIVE")


@dataclass(frozen=True)
class ThreadSpeeds:
    """Tokens per second with one thread and with `threads`; `used` are those that a program has by itself here."""

    one: float
    all: float
    threads: int
    used: int

    def __str__(self) -> str:
        """Both speeds, and what to set where one is clearly faster."""
        said = f"1 thread {self.one:,.0f}, {self.threads} threads {self.all:,.0f} tokens/s"
        if self.one > _CLEAR * self.all and self.used > 1:
            quiet = "" if os.environ.get(WAIT_POLICY, "").upper() == "PASSIVE" else f" or {WAIT_POLICY}=PASSIVE"
            return f"{said}: set OMP_NUM_THREADS=1{quiet}; another program may want the same cores"
        if self.all > _CLEAR * self.one and self.used < self.threads:
            return f"{said}: set OMP_NUM_THREADS={self.threads} where nothing else runs"
        return said


def thread_speeds(decode: Callable[[], float], rounds: int = 3) -> ThreadSpeeds:
    """Medians of `decode`, which returns tokens per second, with one thread and with one for each core, in turns."""
    import torch

    used = torch.get_num_threads()
    threads = max(used, os.cpu_count() or 1)
    found: dict[int, list[float]] = {1: [], threads: []}
    try:
        for _ in range(rounds):
            for count, speeds in found.items():
                torch.set_num_threads(count)
                speeds.append(decode())
    finally:
        torch.set_num_threads(used)
    return ThreadSpeeds(median(found[1]), median(found[threads]), threads, used)


class SpeedWatch:
    """Speeds of the parts of one work, in tokens per second, and one hint when they fall far below the first ones."""

    def __init__(self) -> None:
        self._best, self._parts, self._slow, self._said = 0.0, 0, 0, False

    def hint(self, tokens: int, seconds: float) -> str | None:
        """What to say after a part with so many tokens took so long: once, when two in a row were that slow."""
        if not tokens or not seconds > 0:
            return None
        speed = tokens / seconds
        self._parts += 1
        if self._parts <= _FIRST:
            self._best = max(self._best, speed)
        self._slow = self._slow + 1 if speed * _SLOW < self._best else 0
        if self._slow < 2 or self._said:
            return None
        self._said = True
        return (
            f"{speed:,.0f} tokens/s, and {self._best:,.0f} at the start: another program may want the same cores. "
            f"Threads that spin while they wait make that worse: OMP_NUM_THREADS=1, or {WAIT_POLICY}=PASSIVE. "
            "`search-r3 doctor` measures it."
        )
