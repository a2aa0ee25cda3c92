"""Long work in chunks: texts of similar length together, every chunk stored before the next one starts."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from search_r3_mteb.encoder.processes import gathered, own_share, process_count, process_number
from search_r3_mteb.encoder.store import Store

# Texts that are tokenised, encoded and stored together. A chunk is what a killed run loses.
CHUNK = {"query": 512, "document": 4096}

Part = TypeVar("Part")
Prepared = TypeVar("Prepared")


class Compute(Protocol):
    """Computes the rows of a chunk from their prompts; `on_rows` is told how many are done, for the progress bar."""

    def __call__(self, part: Sequence[int], prompts: list[list[int]], on_rows: Callable[[int], None]) -> Any:
        """Vectors (rows, dim), or a list of thoughts, in the order of `part`."""


def computed_chunks(
    texts: Sequence[str],
    instructions: Sequence[str | None],
    store: Store | None,
    size: int,
    render: Callable[[Sequence[int]], list[list[int]]],
    compute: Compute,
    bar: Any,
) -> Iterator[tuple[Sequence[int], Any, float]]:
    """Compute what the store lacks (without one: everything), `size` texts at a time, the longest first.

    `render` tokenises a chunk while the model computes the one before it. Yields (positions, results, seconds) of what was
    computed; positions that the store already had are not among them.
    """
    todo = list(range(len(texts))) if store is None else store.missing(texts, instructions)
    todo.sort(key=lambda position: (-len(texts[position]), position))
    bar.total = len(todo)
    parts = [todo[start : start + size] for start in range(0, len(todo), size)]
    done, began = 0, time.perf_counter()
    for part, prompts in one_ahead(parts, lambda part: render(own_share(part))):
        # Every process reports its own rows only; the bar is set right after each chunk.
        own = own_share(part)
        found = compute(own, prompts, lambda rows: bar.update(rows * process_count())) if own else []
        found = gathered(part, found)
        seconds = time.perf_counter() - began
        if store is not None:
            thoughts = None if isinstance(found, np.ndarray) else found
            vectors = found if thoughts is None else np.stack([thought.vector for thought in thoughts])
            chosen = [texts[position] for position in part], [instructions[position] for position in part]
            store.append(chosen[0], vectors, thoughts, instructions=chosen[1], seconds=seconds)
        done += len(part)
        bar.n = done
        bar.refresh()
        yield part, found, seconds
        began = time.perf_counter()


def one_ahead(parts: Sequence[Part], prepare: Callable[[Part], Prepared]) -> Iterator[tuple[Part, Prepared]]:
    """Each part with what `prepare` makes of it, in order; a thread prepares one part ahead of the caller."""
    if len(parts) < 2:
        yield from ((part, prepare(part)) for part in parts)
        return
    with ThreadPoolExecutor(1) as thread:
        prepared = thread.submit(prepare, parts[0])
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            ready = prepared.result()
            if after is not None:
                prepared = thread.submit(prepare, after)
            yield part, ready


def progress_bar(what: str, unit: str, show: bool | None) -> Any:
    """A bar on standard error, of the first process only; None shows it on a terminal."""
    from tqdm.auto import tqdm

    if show is None:
        show = sys.stderr.isatty()
    return tqdm(total=0, desc=what, unit=unit, disable=not show or process_number() > 0, leave=False)
