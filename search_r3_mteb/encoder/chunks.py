"""Long work in chunks: texts of similar length together, every chunk stored before the next one starts."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from search_r3_mteb.encoder.processes import process_count, process_number, share_among_processes
from search_r3_mteb.encoder.store import Store

# Texts that are tokenised, encoded and stored together. A chunk is what a killed run loses.
CHUNK = {"query": 512, "document": 4096}


class Compute(Protocol):
    """Computes the rows of a chunk; `on_rows` is told how many are done, for the progress bar."""

    def __call__(self, part: Sequence[int], on_rows: Callable[[int], None]) -> Any:
        """Vectors (rows, dim), or a list of thoughts, in the order of `part`."""


def computed_chunks(
    texts: Sequence[str],
    instructions: Sequence[str | None],
    store: Store | None,
    size: int,
    compute: Compute,
    bar: Any,
) -> Iterator[tuple[Sequence[int], Any, float]]:
    """Compute what the store lacks (without one: everything), `size` texts at a time, the longest first.

    Yields (positions, results, seconds) of what was computed; positions that the store already had are not among them.
    """
    todo = list(range(len(texts))) if store is None else store.missing(texts, instructions)
    todo.sort(key=lambda position: (-len(texts[position]), position))
    bar.total = len(todo)
    for start in range(0, len(todo), size):
        part = todo[start : start + size]
        began = time.perf_counter()
        # Every process reports its own rows only; the bar is set right after each chunk.
        found = share_among_processes(part, partial(compute, on_rows=lambda rows: bar.update(rows * process_count())))
        seconds = time.perf_counter() - began
        if store is not None:
            thoughts = None if isinstance(found, np.ndarray) else found
            vectors = found if thoughts is None else np.stack([thought.vector for thought in thoughts])
            chosen = [texts[position] for position in part], [instructions[position] for position in part]
            store.append(chosen[0], vectors, thoughts, instructions=chosen[1], seconds=seconds)
        bar.n = start + len(part)
        bar.refresh()
        yield part, found, seconds


def progress_bar(what: str, unit: str, show: bool | None) -> Any:
    """A bar on standard error, of the first process only; None shows it on a terminal."""
    from tqdm.auto import tqdm

    if show is None:
        show = sys.stderr.isatty()
    return tqdm(total=0, desc=what, unit=unit, disable=not show or process_number() > 0, leave=False)
