"""What the missed targets of nano could reach: how much of our time is the model's own forward pass; limits.json.

    OMP_NUM_THREADS=1 python results/speed/limits.py [reason] [encode]   # two minutes; then run.py --page

Each case of `search-r3 bench` is run in turns, and the processor's seconds inside the backbone's forward, which both
sides run, are taken apart. `limit` is the ratio if all of our time outside of it were nothing.
"""

import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from results.measure import commit, write_json
from results.pages import read_json
from search_r3_mteb.evaluation.bench_cases import Case, cases
from search_r3_mteb.evaluation.bench_work import Subject

HERE = Path(__file__).resolve().parent
ROUNDS = 3
CASES = {
    "reason": ("reason nano batch 16",),
    "encode": ("encode nano short batch 64", "encode nano short batch 1", "encode nano scifact batch 1"),
}


class Inside:
    """Seconds of the processor inside a class's forward, while it is patched."""

    def __init__(self, kind: type) -> None:
        self.kind, self.forward, self.seconds = kind, kind.forward, 0.0

    def __enter__(self) -> "Inside":
        forward = self.forward

        @functools.wraps(forward)  # its parameters are looked at, and decide how a model is run
        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return forward(*given, **named)
            finally:
                self.seconds += time.process_time() - began

        self.kind.forward = timed
        return self

    def __exit__(self, *error: object) -> None:
        self.kind.forward = self.forward


def taken(work: Any, kind: type) -> tuple[float, float]:
    """Seconds of the processor for the whole work, and inside the forward."""
    with Inside(kind) as inside:
        began = time.process_time()
        work()
        return time.process_time() - began, inside.seconds


def limits(case: Case, kind: type) -> dict[str, Any]:
    """Medians over rounds in turns."""
    rounds = []
    for turn in range(ROUNDS + 1):
        sides = [taken(work, kind) for work in (case.ours, case.theirs)]
        if turn:  # the first warms up
            rounds.append(sides)
    return {
        "case": case.case,
        "peer": case.peer,
        "ratio": median(theirs / ours for (ours, _), (theirs, _) in rounds),
        "limit": median(theirs / inside for (_, inside), (theirs, _) in rounds),
        "forward, share of ours": median(inside / ours for (ours, inside), _ in rounds),
        "forward, share of theirs": median(inside / theirs for _, (theirs, inside) in rounds),
    }


def median(values: Any) -> float:
    """To two digits."""
    return round(statistics.median(values), 2)


def keep(one: dict[str, Any]) -> None:
    """Put the case into limits.json, in the place of an earlier one."""
    path = HERE / "limits.json"
    known = read_json(path)["cases"] if path.exists() else []
    about = {"command": "python results/speed/limits.py", "commit": commit(), "threads": torch.get_num_threads()}
    write_json(path, about | {"cases": [*(each for each in known if each["case"] != one["case"]), one]})
    print(one, flush=True)


def main() -> None:
    """Measure, and write it."""
    subject = Subject("nano")
    kind = type(subject.checkpoint.model.base_model)
    for group in sys.argv[1:] or CASES:
        left = set(CASES[group])
        for case in cases(group, subject, quick=False):
            if isinstance(case, Case) and case.case in left and case.peer.startswith(("(i)", "(iii)")):
                keep(limits(case, kind))
                left.remove(case.case)
            if not left:
                break


if __name__ == "__main__":
    main()
