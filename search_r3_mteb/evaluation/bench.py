"""The benchmark of `search-r3 bench`: what we do against what a user would otherwise run, side by side.

Both sides run in one process on the same weights, in turns; a case's ratio is the median of its rounds' ratios, because
a machine's speed changes from minute to minute and a round's two halves are neighbours. Each pair is first checked to
be the same work.
"""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.bench_cases import BENCHMARKS, Case, MemoryCase, cases
from search_r3_mteb.evaluation.bench_memory import peak_bytes
from search_r3_mteb.evaluation.bench_models import SIZES
from search_r3_mteb.evaluation.bench_vllm import check_python
from search_r3_mteb.evaluation.bench_work import RealModel, Subject

BenchRecord = dict[str, Any]


def bench(
    kinds: Sequence[str] = BENCHMARKS,
    *,
    quick: bool = False,
    output: Path | None = None,
    tell: Callable[[BenchRecord], None] | None = None,
    measured: Sequence[BenchRecord] = (),
    real: RealModel | None = None,
) -> list[BenchRecord]:
    """Measure every case of these kinds on nano, 30m and 120m, or on the model `real`; `quick` runs each once.

    Without `real`, `quick` runs nano alone.

    A record has `case`, `peer`, `ratio` (above 1: we are faster, or smaller), `ours` and `theirs` in `unit` (items per
    second, or MiB of peak memory above the loaded model), and `runs`, the number of rounds. `output` is rewritten after
    every case, so that a stopped run keeps what it has; cases in `measured` are kept and not run. Raises ValueError for
    a kind that does not exist, and for a case whose two sides give different vectors.
    """
    unknown = sorted(set(kinds) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}.")
    records: list[BenchRecord] = list(measured)
    known = {(record["case"], record["peer"]) for record in measured}
    if real is not None and real.vllm is not None:
        check_python(real.vllm)
    sizes = SIZES[:1] if quick else SIZES
    for subject in map(Subject, sizes) if real is None else (Subject.of(real),):
        for kind in dict.fromkeys(kinds):
            for case in cases(kind, subject, quick):
                if (case.case, case.peer) in known:
                    continue
                record = measure_memory(case) if isinstance(case, MemoryCase) else measure(case)
                records.append(record)
                if tell is not None:
                    tell(record)
                if output is not None:
                    write_json(output, records)
    return records


def measure(case: Case, clock: Callable[[], float] = time.perf_counter) -> BenchRecord:
    """Check that both sides do the same work, and time them in turns by `clock`, in seconds.

    The run that is checked counts where there is one round only, and warms both sides up where there are more.
    """
    (our_seconds, our_result), (their_seconds, their_result) = _timed(case.ours, clock), _timed(case.theirs, clock)
    case.check(our_result, their_result)
    ours, theirs = ([our_seconds], [their_seconds]) if case.rounds == 1 else ([], [])
    for turn in range(case.rounds - len(ours)):
        # The order changes, so that neither side always runs on the other's warm cache.
        for mine in (True, False) if turn % 2 == 0 else (False, True):
            (ours if mine else theirs).append(_timed(case.ours if mine else case.theirs, clock)[0])
    their_items = case.their_items or case.items
    ratios = np.array(theirs) / np.array(ours) * case.items / their_items
    return _record(case, ratios, case.items / float(np.median(ours)), their_items / float(np.median(theirs)), case.unit)


def measure_memory(case: MemoryCase) -> BenchRecord:
    """The peak memory of both sides, each in a process of its own, in turns."""
    peaks = [(peak_bytes(case.ours), peak_bytes(case.theirs)) for _ in range(case.rounds)]
    ours, theirs = np.array(peaks, dtype=float).T / 2**20
    return _record(case, theirs / ours, float(np.median(ours)), float(np.median(theirs)), "MiB")


def _record(case: Case | MemoryCase, ratios: np.ndarray, ours: float, theirs: float, unit: str) -> BenchRecord:
    measured = {"ratio": float(np.median(ratios)), "ours": ours, "theirs": theirs}
    rounded = {name: round(value, 3) for name, value in measured.items()}
    return {"case": case.case, "peer": case.peer, **rounded, "unit": unit, "runs": case.rounds}


def _timed(work: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, Any]:
    gc.collect()
    started = clock()
    result = work()
    return clock() - started, result
