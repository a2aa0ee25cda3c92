"""The progress line of a run: step, seconds per step, time left, and a few values.

On a terminal one line is written over; elsewhere (a file, a cluster's log) a line of its own follows at most every
`every` seconds, at the first step and at the last.
"""

import sys
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TextIO

from search_r3_mteb.terminal import visible

_STEPS = 100  # the mean of so many last steps says how long the rest takes; evaluation and checkpoints are among them


class Progress:
    """Progress from step `first` to `total` on standard error, or on `stream`; `clock` gives seconds."""

    def __init__(
        self,
        label: str,
        *,
        first: int,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = perf_counter,
        every: float = 30.0,
    ) -> None:
        self._label, self._step, self._total = label, first, total
        self._stream, self._clock, self._every = stream or sys.stderr, clock, every
        self._ends = deque([clock()], maxlen=_STEPS + 1)
        self._written: float | None = None
        self._width = 0

    def advance(self, values: Mapping[str, float]) -> None:
        """One step is done."""
        self._step += 1
        now = self._clock()
        self._ends.append(now)
        waited = self._written is None or now - self._written >= self._every
        if self._stream.isatty():
            self._over(self.line(values))
        elif waited or self._step == self._total:
            self._stream.write(self.line(values) + "\n")
            self._stream.flush()
            self._written = now

    def line(self, values: Mapping[str, float]) -> str:
        """The line as it stands now."""
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        left = clock_time(seconds * (self._total - self._step))
        rate = f"{seconds:.2f} s per step, {left} left"
        return f"{self._label}: step {self._step}/{self._total} ({self._step / self._total:.0%}), {rate}, {shown}"

    def say(self, text: str) -> None:
        """A line of its own, on standard output."""
        if self._stream.isatty():
            self._over("")
            self._stream.write("\r")
            self._stream.flush()
        print(visible(text), flush=True)

    def close(self) -> None:
        """End the line."""
        if self._stream.isatty() and self._width:
            self._stream.write("\n")

    def _over(self, text: str) -> None:
        """Write over the line that stands there."""
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def clock_time(seconds: float) -> str:
    """Seconds as minutes:seconds, hours:minutes:seconds, or days and hours."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
