"""Chunks of long work: their sizes, their preparation one ahead of the model, and the progress bar."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from search_r3_mteb.encoder.processes import process_number

# Number of texts that are tokenised, encoded and stored together. A killed run loses one chunk.
CHUNK = {"query": 512, "document": 4096}


def one_ahead(
    parts: Sequence[list[int]], prepare: Callable[[list[int]], list[list[int]]]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Each part with the result of `prepare`, in order; a thread prepares one part ahead of the caller."""
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
    """A bar on standard error, shown by the first process only; `show` None means on a terminal only."""
    from tqdm.auto import tqdm

    if show is None:
        show = sys.stderr.isatty()
    return tqdm(total=0, desc=what, unit=unit, disable=not show or process_number() > 0, leave=False)
