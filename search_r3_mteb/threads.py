"""Threads of a processor: how they wait for each other, how many are best, and whether work has become slow.

The threads of OpenMP, which torch computes with, spin while they wait. Where another program has one of the cores, all
of them spin until the one that was put aside comes back, at every small operation: two threads on two cores can then be
many times slower than one. Threads that sleep at once are not, but waking them costs more than the small operations of
a small model. So ours spin briefly, and long encoding measures with how many it is fastest. `results/speed/threads.py`
measures all of it.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

WAIT_POLICY = "OMP_WAIT_POLICY"
COUNT = "OMP_NUM_THREADS"
SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""By OpenMP's library (GNU, then LLVM with its milliseconds). Our choice: about what one small operation takes."""
_CLEAR = 1.25
"""Our choice: a difference below this is one of these machines' noise, and no reason to change a setting."""
_SLOW = 4.0
"""Our choice: batches of other lengths differ in tokens per second by less than 2."""
_FIRST = 3
_ROUNDS = 2

_choosing = False
_at_first: list[int] = []  # torch's number of threads, from the first choice on


def spin_briefly() -> None:
    """Let OpenMP's threads sleep soon while they wait, unless the user has decided. Before torch is imported."""
    if "torch" not in sys.modules and not {WAIT_POLICY, *SPINS} & set(os.environ):
        os.environ.update(SPINS)


@contextmanager
def chosen_by_measurement() -> Iterator[None]:
    """Inside, `settle` may change this process's number of threads, unless the user has set OMP_NUM_THREADS.

    For programs: a library that changes it would change the rest of its user's process too.
    """
    global _choosing
    before, _choosing = _choosing, COUNT not in os.environ
    try:
        yield
    finally:
        _choosing = before
        if _at_first:
            sys.modules["torch"].set_num_threads(_at_first.pop())


def settle(work: Callable[[], object]) -> None:
    """Use as many threads as `work`, a small part of what comes, is fastest with just now; see chosen_by_measurement.

    It runs twice with each number (1, 2, 4 and so on, up to what torch had), in turns, and the faster time counts.
    """
    if not _choosing:
        return
    import torch

    if not _at_first:
        _at_first.append(torch.get_num_threads())
    most = _at_first[0]
    counts = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    if len(counts) < 2:
        return
    took = dict.fromkeys(counts, float("inf"))
    for _ in range(_ROUNDS):
        for count in counts:
            torch.set_num_threads(count)
            began = time.perf_counter()
            work()
            took[count] = min(took[count], time.perf_counter() - began)
    torch.set_num_threads(min(took, key=took.__getitem__))


def in_words() -> str:
    """The number of threads as the identity of a vector names it, the same before and after `settle` has chosen."""
    import torch

    most = _at_first[0] if _at_first else torch.get_num_threads()
    if _choosing and most > 1:
        return f"1 to {most} threads by measurement"
    return f"{torch.get_num_threads()} threads"


def cores() -> int:
    """Cores that this process may run on: in a container, or under taskset, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class ThreadSpeeds:
    """Tokens per second with one thread and with `threads`; `used` are those that a program has by itself here."""

    one: float
    all: float
    threads: int
    used: int

    def __str__(self) -> str:
        """Both speeds, and what to set where one is clearly faster."""
        if self.threads == 1:
            return f"1 thread {self.one:,.0f} tokens/s"
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
    threads = max(used, cores())
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
