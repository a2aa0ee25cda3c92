"""CUDA graphs of decode steps: a step is some hundred kernels, and launching them one by one takes longer than running them."""

from collections.abc import Callable
from typing import Any

import torch


def capture(step: Callable[[], None], pool: Any) -> tuple[Callable[[], None], Any]:
    """Record the step on the current CUDA device without running it; gives its replay and the memory pool it uses."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay, graph.pool()


class Recorded:
    """A step that works in place on tensors that stay where they are, recorded once for every (rows, width).

    The first call of a size runs as it is, which also lets libraries set themselves up; the second records; a step that cannot be
    recorded (a model that looks at values on the host) goes on running as it is.
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
            except RuntimeError as error:  # how CUDA refuses what cannot be part of a graph
                self.failure = error
        if size in self._replays:
            self._replays[size]()
        else:
            self._seen.add(size)
            self.step(rows, width)

    def forget(self) -> None:
        """The tensors have moved: nothing recorded is valid any more."""
        self._seen.clear()
        self._replays.clear()
        self._pool = None
