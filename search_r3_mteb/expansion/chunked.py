"""Work on texts chunk by chunk, each chunk stored when it is done, so that a killed run resumes at its last chunk."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from search_r3_mteb.encoder.chunks import progress_bar
from search_r3_mteb.encoder.processes import gathered, own_share
from search_r3_mteb.encoder.store import Store


def chunked(
    texts: Sequence[str],
    instructions: Sequence[str | None],
    store: Store | None,
    size: int,
    compute: Callable[[Sequence[int]], Any],
    *,
    thoughts: bool = False,
    what: str,
    show: bool | None,
) -> tuple[list[Any], float]:
    """Results in the order of the texts, and seconds; with a store both are read from it, and the list is empty.

    `compute` gives one result for each of the positions that it is handed: vectors (n, dim), or `thoughts`, which are
    stored with vectors of one zero. Under `accelerate launch` each process computes its share. The longest come first.
    """
    todo = list(range(len(texts))) if store is None else store.missing(texts, instructions)
    order = sorted(todo, key=lambda position: (-len(texts[position]), position))
    results: list[Any] = [None] * (len(texts) if store is None else 0)
    seconds = 0.0
    with progress_bar(what, "text", show) as bar:
        bar.total = len(order)
        for start in range(0, len(order), size):
            chunk, began = order[start : start + size], time.perf_counter()
            found = gathered(chunk, compute(own_share(chunk)))
            took = time.perf_counter() - began
            if store is None:
                seconds += took
                for position, result in zip(chunk, found, strict=True):
                    results[position] = result
            else:
                vectors = np.zeros((len(chunk), store.dim), np.float32) if thoughts else found
                store.append(
                    [texts[i] for i in chunk],
                    vectors,
                    found if thoughts else None,
                    instructions=[instructions[i] for i in chunk],
                    seconds=took,
                )
            bar.update(len(chunk))
    return results, seconds if store is None else store.seconds(texts, instructions)
