"""Ages of the rows, kept so that a refresh finds the oldest without looking at all of them.

Rows wait in a queue in the order of the step that encoded them. Refreshed rows move to its end by being entered again:
an entry whose step is not the row's present one is skipped when its turn comes. A row has one entry per step: encoded
again in its own step, as the given rows of a first refresh are after the build, it keeps its place. Within a step, rows
stand in a fixed pseudo-random order, so that a sweep over rows of equal age is a random sample, not in the order of
their ids. The order is a function of (step, row) alone, however many refreshes a step has: a queue made from a loaded
cache equals the one that was saved.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from search_r3_mteb.search.arrays import RowNumbers


@dataclass(frozen=True)
class Age:
    """Optimizer steps since the rows were encoded, and the share of rows that the drift map has moved since."""

    mean: float
    median: int
    p90: int
    maximum: int
    mapped_share: float


def scattered(rows: RowNumbers) -> Int[np.ndarray, " rows"]:
    """A pseudo-random key per row, the same everywhere (the finaliser of MurmurHash3)."""
    key = np.asarray(rows).astype(np.uint32)
    key ^= key >> np.uint32(16)
    key *= np.uint32(0x85EBCA6B)
    key ^= key >> np.uint32(13)
    key *= np.uint32(0xC2B2AE35)
    key ^= key >> np.uint32(16)
    return key


class RowAges:
    """Number of rows per step, and the queue. `row_step` (n,) int32 is read, never written."""

    def __init__(self, row_step: Int[np.ndarray, " rows"]) -> None:
        self._row_step = row_step
        steps, counts = np.unique(row_step, return_counts=True)
        self._counts: dict[int, int] = dict(zip(steps.tolist(), counts.tolist(), strict=True))
        self._enter_all()

    def move(self, rows: RowNumbers, before: RowNumbers, step: int) -> None:
        """Enter `rows` again: `row_step` already holds their new `step`; `before` are the steps that they had."""
        rows, before = rows[before != step], before[before != step]
        for old, count in zip(*np.unique(before, return_counts=True), strict=True):
            self._counts[int(old)] -= int(count)
            if not self._counts[int(old)]:
                del self._counts[int(old)]
        if len(rows):
            self._counts[step] = self._counts.get(step, 0) + len(rows)
            self._enter(rows, step)
        if self._entries > 3 * len(self._row_step):  # old entries of rows that are always refreshed early
            self._enter_all()

    def oldest(self, enough: Callable[[RowNumbers], int], newest: int) -> RowNumbers:
        """The oldest rows in order, none encoded after step `newest`.

        `enough(rows)` is how many of the rows found so far are wanted; a number below their count ends the walk.
        """
        found: RowNumbers = np.zeros(0, np.int64)
        self._drop_stale_front()
        part, at = 0, self._at
        while part < len(self._queue):
            rows, steps = self._queue[part]
            if at >= len(rows):
                part, at = part + 1, 0
                continue
            window = slice(at, at + 1024)
            current = self._row_step[rows[window]]
            entered = steps if isinstance(steps, int) else steps[window]
            if int(np.min(entered)) > newest:
                break
            found = np.concatenate([found, rows[window][(current == entered) & (current <= newest)].astype(np.int64)])
            wanted = enough(found)
            if wanted < len(found):
                return found[:wanted]
            at = window.stop
        return found

    def encoded_by(self, step: int) -> int:
        """How many rows were encoded at `step` or before."""
        return sum(count for encoded, count in self._counts.items() if encoded <= step)

    def age(self, step: int, mapped_until: int | None = None) -> Age:
        """Ages at `step`. Rows encoded at `mapped_until` or before have been moved by the drift map."""
        ages = sorted((max(0, step - encoded), count) for encoded, count in self._counts.items())
        values = np.array([age for age, _ in ages])
        cumulative = np.cumsum([count for _, count in ages])
        n = int(cumulative[-1])
        return Age(
            mean=float(sum(age * count for age, count in ages) / n),
            median=int(values[np.searchsorted(cumulative, 0.5 * n)]),
            p90=int(values[np.searchsorted(cumulative, 0.9 * n)]),
            maximum=int(values[-1]),
            mapped_share=0.0 if mapped_until is None else self.encoded_by(mapped_until) / n,
        )

    def _enter_all(self) -> None:
        """Make the queue again, with one entry per row."""
        order = np.lexsort((scattered(np.arange(len(self._row_step))), self._row_step)).astype(np.int32)
        self._queue: list[tuple[RowNumbers, RowNumbers | int]] = [(order, np.asarray(self._row_step)[order])]
        self._at = 0
        self._entries = len(order)

    def _enter(self, rows: RowNumbers, step: int) -> None:
        """Put rows at the end of the queue, among those of the same step."""
        if self._queue:
            last, entered = self._queue[-1]
            if not isinstance(entered, int):
                if int(entered[-1]) == step:
                    self._enter_all()  # which finds these rows in `row_step`, too
                    return
            elif entered == step:
                self._queue.pop()
                self._entries -= len(last)
                self._at = self._at if self._queue else 0
                rows = np.concatenate([last, rows])
        self._queue.append((rows[np.argsort(scattered(rows), kind="stable")], step))
        self._entries += len(rows)

    def _drop_stale_front(self) -> None:
        """Forget entries at the front whose rows were entered again: each is passed once."""
        while self._queue:
            rows, steps = self._queue[0]
            while self._at < len(rows):
                window = slice(self._at, self._at + 1024)
                entered = steps if isinstance(steps, int) else steps[window]
                valid = np.flatnonzero(self._row_step[rows[window]] == entered)
                if len(valid):
                    self._at += int(valid[0])
                    return
                self._at = min(window.stop, len(rows))
            self._queue.pop(0)
            self._at = 0
