"""CUDA graphs of decode steps: launching a step's hundreds of kernels one by one takes longer than running them."""

from collections.abc import Callable
from typing import Any

import torch


def capture(step: Callable[[], None], pool: Any) -> tuple[Callable[[], None], Any]:
    """Record the step on the current CUDA device without running it; returns its replay and the memory pool it uses."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay, graph.pool()


class Recorded:
    """A step that works in place on tensors that stay where they are, recorded once for every (rows, width).

    The first call of a size runs the step, which also lets libraries set themselves up; the second one records it. A
    step that cannot be recorded (because the model looks at values on the host) is run each time.
    """

    def __init__(self, step: Callable[[int, int], None], capture: Callable[..., Any] = capture) -> None:
        self.step, self.capture = step, capture
        self.failure: RuntimeError | None = None
        self._seen: set[tuple[int, int]] = set()
        self._replays: dict[tuple[int, int], Callable[[], None]] = {}
        self._pool: Any = None

    def __call__(self, rows: int, width: int) -> None:
        """One step of `rows` rows over `width` columns."""
        size = (rows, width)
        if size in self._seen and size not in self._replays and self.failure is None:
            try:
                self._replays[size], self._pool = self.capture(lambda: self.step(rows, width), self._pool)
            except RuntimeError as error:  # CUDA's refusal of what cannot be part of a graph
                self.failure = error
        if size in self._replays:
            self._replays[size]()
        else:
            self._seen.add(size)
            self.step(rows, width)

    def forget(self) -> None:
        """Drop all recordings, which are no longer valid after the tensors have moved."""
        self._seen.clear()
        self._replays.clear()
        self._pool = None
