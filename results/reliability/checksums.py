"""Cost of the checksums of an evaluation: the same one with and without them, in turns. Prints JSON.

    OMP_NUM_THREADS=1 python results/reliability/checksums.py [--documents 5000] [--rounds 7] [--output FILE]

The bundled nano, whose vectors cost least, encodes hopworld's documents and direct queries: once from nothing, and once
more from the store, where reading and checking is most of the work. Without means: nothing is hashed when the model is
loaded, a chunk is stored or read, or a unit is written or looked at; sizes are compared as ever. Times are those of the
processor, not of the clock, as the machine may do other work; beside the ratio within a round stands the share of the
time that was spent inside of the hashing functions.
"""

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from search_r3_mteb.encoder import checkpoints, stored_chunks
from search_r3_mteb.evaluation import evaluate, unit_files
from search_r3_mteb.evaluation.provenance import commit

HASHING = {
    "described": (evaluate, unit_files, stored_chunks),
    "difference": (unit_files,),
    "_read": (stored_chunks,),
    "check_files": (checkpoints,),
}


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": "0" * 64}


def _read(path: Path, wanted: dict[str, Any]) -> bytes:
    stored_chunks._check_size(path, wanted)
    return path.read_bytes()


def _difference(path: Path, wanted: dict[str, Any]) -> str | None:
    return None if path.stat().st_size == wanted["bytes"] else "has another size"


WITHOUT: dict[str, Callable[..., Any]] = {
    "described": _described,
    "difference": _difference,
    "_read": _read,
    "check_files": lambda *_, **__: None,
}


class Stopwatch:
    """Seconds of the processor inside of the functions that it wraps; what one of them calls counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            self._depth += 1
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - began

        return timed


@contextmanager
def hashing(wanted: bool) -> Iterator[Stopwatch]:
    """The checksums as they are, timed, or without the hashing."""
    timer = Stopwatch()
    with ExitStack() as stack:
        for name, modules in HASHING.items():
            for module in modules:
                function = timer.of(getattr(module, name)) if wanted else WITHOUT[name]
                stack.enter_context(mock.patch.object(module, name, function))
        yield timer


def run(output: Path, documents: int) -> float:
    """The processor's seconds of one evaluation."""
    began = time.process_time()
    evaluate.evaluate(["nano"], [f"hopworld:{documents}"], "direct", output)
    return time.process_time() - began


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {"from nothing": [], "from the store": []}
    shares: dict[str, list[float]] = {name: [] for name in ratios}
    seconds: dict[str, list[float]] = {name: [] for name in ratios}
    for number in range(options.rounds + 1):  # the first one warms up
        took: dict[tuple[str, bool], float] = {}
        for wanted in (True, False) if number % 2 else (False, True):
            with tempfile.TemporaryDirectory() as folder, hashing(wanted) as timer:
                output = Path(folder)
                for name in ratios:
                    timer.seconds = 0.0
                    took[name, wanted] = run(output, options.documents)
                    if wanted and number:
                        shares[name].append(timer.seconds / took[name, wanted])
                        seconds[name].append(took[name, wanted])
                    for path in output.iterdir():  # all but the store, so that the unit is done again
                        if path.name != "store":
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if number:
            for name, found in ratios.items():
                found.append(took[name, True] / took[name, False])
    text = json.dumps(
        {
            "commit": commit(),
            "command": f"OMP_NUM_THREADS=1 python results/reliability/checksums.py --documents {options.documents} "
            f"--rounds {options.rounds}",
            "machine": f"{platform.machine()}, one thread",
            "documents": options.documents,
            "rounds": options.rounds,
            "cases": {
                name: {
                    "seconds": round(float(np.median(seconds[name])), 3),
                    "share_inside": round(float(np.median(shares[name])), 5),
                    "largest_share": round(max(shares[name]), 5),
                    "ratio": round(float(np.median(ratios[name])), 4),
                    "quartiles": [round(float(each), 4) for each in np.quantile(ratios[name], [0.25, 0.75])],
                }
                for name in ratios
            },
        },
        indent=1,
    )
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
