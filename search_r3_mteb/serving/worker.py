"""The one thread that runs the model: the rows of all requests, in turns, and together as far as they can be.

    direct rows   (documents, direct queries) in batches of one forward pass
    reason rows   in one open decode loop (`encoder/open_decode.py`), which they join and leave while others decode

Batches of direct rows are run between the steps of the loop, and each kind gets half of the time while both wait.
Requests of several rows take turns: a small one is not kept waiting by a large one. A request whose future was
cancelled is dropped, also in the middle of its reasoning.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.backbone import Backbone
from search_r3_mteb.encoder.open_decode import OpenDecode
from search_r3_mteb.encoder.packing import PackedLinears
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.scheduling import prefill_budget
from search_r3_mteb.serving.metrics import Metrics

RowKind = Literal["direct", "reason"]
# Rows that an engine without an open loop reasons about at once (our choice).
_WAVE = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A row's vector (dim,), float32 of unit length; what was generated, the embed token last; and whether it ended."""

    vector: Float32[np.ndarray, " dim"]
    token_ids: list[int]
    finished: bool


class Job:
    """The rows of one request: (kind, prompt) each; `future` gives their outcomes in the same order.

    `on_written` is called in the worker's thread with what the reasoning row has generated so far, where there is one.
    Cancelling the future drops the rows.
    """

    def __init__(
        self, rows: Sequence[tuple[RowKind, list[int]]], on_written: Callable[[list[int]], None] | None = None
    ) -> None:
        self.rows, self.on_written = rows, on_written
        self.future: Future[list[Outcome]] = Future()
        self._outcomes: dict[int, Outcome] = {}
        self.pending: dict[RowKind, deque[int]] = {"direct": deque(), "reason": deque()}
        for row, (kind, _) in enumerate(rows):
            self.pending[kind].append(row)

    def finish(self, row: int, outcome: Outcome) -> None:
        """Keep a row's outcome; the last one resolves the future."""
        self._outcomes[row] = outcome
        if len(self._outcomes) == len(self.rows):
            with suppress(InvalidStateError):  # it was cancelled just now
                self.future.set_result([self._outcomes[each] for each in range(len(self.rows))])

    def fail(self, error: Exception) -> None:
        """Let the future raise; rows that are left are not computed."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass
class Worker:
    """Computes jobs, from `start` to `close`, in a thread of its own. `encoder` is used by nobody else meanwhile."""

    encoder: Any
    metrics: Metrics
    _arrived: deque[Job] = field(default_factory=deque)
    _queues: dict[RowKind, deque[Job]] = field(default_factory=lambda: {"direct": deque(), "reason": deque()})
    _running: dict[int, tuple[Job, int]] = field(default_factory=dict)  # by ticket
    rows_done: int = 0
    busy_seconds: float = 0.0

    def __post_init__(self) -> None:
        settings, self.engine = self.encoder.settings, self.encoder.engine
        self.sampling = Sampling(settings["max_reasoning_tokens"], settings["temperature"], settings["seed"])
        self.decode: OpenDecode | None = None
        self._packed: PackedLinears | None = None
        self._owed = 0.0  # seconds that direct rows have had more than reasoning ones
        self._open = isinstance(self.engine, Backbone)
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> Job:
        """Let a job be computed. Raises RuntimeError where the worker does not run."""
        with self._condition:
            if not self.alive:
                raise RuntimeError("The worker does not run: nothing would compute this.")
            self._arrived.append(job)
            self._condition.notify()
        return job

    def close(self, patience: float = 10.0) -> None:
        """End the thread after the step that runs; what is not finished fails."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(patience)
        for job in self._jobs():
            job.fail(RuntimeError("The server was stopped."))

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self.engine.evaluating() if self._open else nullcontext():
                while self._wait():
                    self._turn()
        except Exception as error:  # noqa: BLE001  its words may quote a text
            _log.critical("The model's thread ended: %s", type(error).__name__)
        finally:
            with self._condition:
                self._closing, self._packed = True, None
            for job in self._jobs():
                job.fail(RuntimeError("The server was stopped."))

    def _turn(self) -> None:
        """A batch of direct rows, unless the reasoning rows are still owed time, and a step of these."""
        self._drop_unwanted()
        began = time.perf_counter()
        if not (self._running and self._owed > 0):
            self._embed()
        middle = time.perf_counter()
        self._reason()
        end = time.perf_counter()
        # A batch may take as long as many steps: each kind gets half of the time while both wait.
        self._owed = max(0.0, self._owed + (middle - began) - (end - middle)) if self._running else 0.0
        self.busy_seconds += end - began

    def _wait(self) -> bool:
        """Take what has arrived; where there is nothing to do, wait for it. False when the thread is to end."""
        with self._condition:
            while not self._closing and not (self._arrived or self._running or any(self._queues.values())):
                self._packed = None  # the copies of weights are not kept while nobody asks
                self._condition.wait()
            while self._arrived:
                job = self._arrived.popleft()
                for kind, rows in job.pending.items():
                    if rows:
                        self._queues[kind].append(job)
        return not self._closing

    def _jobs(self) -> Iterator[Job]:
        yield from self._arrived
        for queue in self._queues.values():
            yield from queue
        for job, _ in self._running.values():
            yield job

    def _drop_unwanted(self) -> None:
        """Forget jobs that were cancelled or have failed."""
        for ticket, (job, _) in list(self._running.items()):
            if job.future.done():
                if self.decode is not None:
                    self.decode.drop(ticket)
                del self._running[ticket]
                self.metrics.dropped.inc()
        for kind, queue in self._queues.items():
            for job in [job for job in queue if job.future.done()]:
                self.metrics.dropped.inc(len(job.pending[kind]))
                queue.remove(job)

    def _front(self, kind: RowKind) -> Job | None:
        """The job whose turn it is; those that nobody waits for any more are forgotten."""
        queue = self._queues[kind]
        while queue and queue[0].future.done():
            self.metrics.dropped.inc(len(queue.popleft().pending[kind]))
        return queue[0] if queue else None

    def _next(self, kind: RowKind) -> tuple[Job, int] | None:
        """The next row of this kind; the jobs take turns."""
        job = self._front(kind)
        if job is None:
            return None
        self._queues[kind].popleft()
        row = job.pending[kind].popleft()
        if job.pending[kind]:
            self._queues[kind].append(job)
        return job, row

    def _take(self, kind: RowKind, fits: Callable[[list[int], int], bool]) -> list[tuple[Job, int]]:
        """Rows of this kind while `fits(prompt, rows so far)`; at least one, where there is one."""
        taken: list[tuple[Job, int]] = []
        while job := self._front(kind):
            fit = fits(job.rows[job.pending[kind][0]][1], len(taken))
            if taken and not fit:
                break
            found = self._next(kind)
            if found is not None:
                taken.append(found)
        return taken

    def _embed(self) -> None:
        """One batch of direct rows."""
        budget = prefill_budget(self.encoder.batches["batch_tokens"], str(self.engine.device).split(":")[0])
        longest = 0

        def fits(prompt: list[int], rows: int) -> bool:
            nonlocal longest
            longest = max(longest, len(prompt))
            return (rows + 1) * longest <= budget

        taken = self._take("direct", fits)
        if not taken:
            return
        self.metrics.batches.labels("direct").observe(len(taken))
        try:
            vectors = self.engine.embed([job.rows[row][1] for job, row in taken]).numpy()
        except Exception as error:  # noqa: BLE001  whatever it is, it is these requests' end, and not the server's
            self._failed(taken, error)
            return
        for (job, row), vector in zip(taken, vectors, strict=True):
            self._finish(job, row, vector, [], True)

    def _reason(self) -> None:
        """Let rows join the open loop, and take one step of it; without such a loop, reason about a wave of them."""
        if not self._open:
            self._alone(self._take("reason", lambda _, rows: rows < _WAVE))
            return
        if self._queues["reason"] and self.decode is None:
            prefix = self.encoder.renderer.frame_ids("reason")[0]
            self.decode = OpenDecode(self.engine, prefix, self.encoder.max_length, self.sampling)
        if self.decode is None:
            return
        while self.decode.room:
            found = self._next("reason")
            if found is None:
                break
            job, row = found
            prompt = job.rows[row][1]
            if self.decode.takes(prompt):
                self._running[self.decode.add(prompt)] = job, row
            else:
                # A text whose first characters melt with the template's last ones, say: it shares no prefix.
                self._alone([found])
        if self._running:
            self._advance(self.decode)

    def _advance(self, decode: OpenDecode) -> None:
        if self._packed is None and self.engine.packing:
            self._packed = PackedLinears(self.engine.causal)
        try:
            with self._packed or nullcontext():
                done = decode.advance()
        except Exception as error:  # noqa: BLE001  as above; the loop is made again
            self._failed(list(self._running.values()), error)
            self._running.clear()
            self.decode = None
            return
        self.metrics.batches.labels("reason").observe(max(1, decode.rows + len(done)))
        for each in done:
            job, row = self._running.pop(each.ticket)
            self._finish(job, row, each.vector.numpy(), each.token_ids, each.finished)
        self._show_written(decode)

    def _show_written(self, decode: OpenDecode) -> None:
        watched = {ticket: job for ticket, (job, _) in self._running.items() if job.on_written is not None}
        if not watched:
            return
        for ticket, ids in decode.written(watched).items():
            show = watched[ticket].on_written
            if show is not None and ids:
                show(ids)

    def _alone(self, taken: list[tuple[Job, int]]) -> None:
        """Reason about these rows from beginning to end while nothing else runs."""
        if not taken:
            return
        self.metrics.batches.labels("reason").observe(len(taken))
        try:
            prompts = [job.rows[row][1] for job, row in taken]
            found = self.engine.reason(prompts, self.sampling, log_probs=False)
        except Exception as error:  # noqa: BLE001  as above
            self._failed(taken, error)
            return
        for place, (job, row) in enumerate(taken):
            self._finish(job, row, found.vectors[place].numpy(), found.token_ids[place], found.finished[place])

    # ---- outcomes --------------------------------------------------------------------------------------------------

    def _finish(
        self, job: Job, row: int, vector: Float32[np.ndarray, " dim"], token_ids: list[int], finished: bool
    ) -> None:
        self.rows_done += 1
        self.metrics.generated.inc(len(token_ids))
        try:
            [unit] = self.encoder.unit(vector[None], ["of a request"])
            if self.encoder.dim < len(unit):  # truncate_dim
                [unit] = self.encoder.unit(unit[None, : self.encoder.dim], ["of a request"])
        except ValueError as error:
            self._failed([(job, row)], error)
            return
        job.finish(row, Outcome(unit, token_ids, finished))

    def _failed(self, taken: Sequence[tuple[Job, int]], error: Exception) -> None:
        # Its own words are not logged: they may quote a text.
        _log.error("%s while computing %d rows", type(error).__name__, len(taken))
        for job, _ in taken:
            job.fail(error)
