"""How threads wait: decoding with one thread, with one for each core, and with as many as a measurement says.

    python results/speed/threads.py [--rounds 3]      # writes threads.json and threads.md beside it; minutes

Each case is a process of its own, since OpenMP reads its variables once; the cases take turns, with nothing else and
with one other process that computes all the time.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from results.measure import commit, write_json
from search_r3_mteb.threads import SPINS, chosen_by_measurement, cores

HERE = Path(__file__).resolve().parent
MODELS = ("nano", "mini")
CORES = cores()
WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    f"{CORES} threads, OpenMP's default": {"OMP_NUM_THREADS": str(CORES)},
    f"{CORES} threads that sleep at once": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
    f"{CORES} threads that spin briefly": {"OMP_NUM_THREADS": str(CORES), **SPINS},
    "chosen by measurement": {**SPINS, "CHOOSE": "1"},
}
LOADS = {"nothing else": 0, "one other process": 1}
SECONDS = 120


def decoded(model: str) -> float:
    """Tokens per second of 128 questions, at most 24 tokens each; the first pass is not counted."""
    import time

    from search_r3_mteb import HopWorld, SearchR3Encoder

    encoder = SearchR3Encoder(model, max_reasoning_tokens=24, show_progress_bar=False)
    questions = [query.text for query in HopWorld().queries("test", 3)[:128]]
    with chosen_by_measurement() if "CHOOSE" in os.environ else nullcontext():
        encoder.think(questions[:16])
        began = time.perf_counter()
        thoughts = encoder.think(questions)
    return sum(len(thought.token_ids) + 1 for thought in thoughts) / (time.perf_counter() - began)


def measured(model: str, settings: dict[str, str]) -> float | None:
    """`decoded` in a process with these variables; None where it takes longer than SECONDS."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-m", "results.speed.threads", "--decode", model]
    try:
        done = subprocess.run(command, env=rest | settings, capture_output=True, text=True, check=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout.split()[-1])


def page(found: dict[str, object]) -> str:
    """threads.md."""
    lines = [
        "# How threads wait",
        "",
        f"`python results/speed/threads.py --rounds {found['rounds']}`, commit {found['commit']}, {CORES} cores. "
        "Tokens per second of 128 questions, at most 24 tokens each; medians.",
        "",
        f"| model | beside it | {' | '.join(WAYS)} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    for row in found["rows"]:  # type: ignore[attr-defined]
        cells = [f"less than {SECONDS} s allow" if value is None else f"{value:,.0f}" for value in row["speeds"]]
        lines.append(f"| {row['model']} | {row['load']} | {' | '.join(cells)} |")
    lines += [
        "",
        "OpenMP's threads spin while they wait for each other. Where another program has a core, each small operation "
        "waits for the thread that was put aside; threads that sleep at once have to be woken at each. `search-r3`, "
        "both trainings and the Makefile let them spin briefly "
        f"({', '.join(f'{name}={value}' for name, value in SPINS.items())}) unless the user has set one of OpenMP's "
        "variables, and long commands choose the number of threads by a short measurement before each chunk of texts. "
        "Its passes are counted here, and a run of a second or a few, as these are, does not earn them back. "
        "A Python program of your own sets these variables before torch is imported.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line; with --decode this is one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.decode:
        print(decoded(options.decode))
        return
    speeds: dict[tuple[str, str], list[list[float | None]]] = {}
    for _ in range(options.rounds):
        for load, count in LOADS.items():
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                for model in MODELS:
                    found = [measured(model, settings) for settings in WAYS.values()]
                    speeds.setdefault((model, load), []).append(found)
            finally:
                for process in busy:
                    process.kill()
    rows = [
        {
            "model": model,
            "load": load,
            "speeds": [None if None in each else round(median(each), 1) for each in zip(*rounds, strict=True)],  # type: ignore[type-var]
        }
        for (model, load), rounds in sorted(speeds.items(), reverse=True)
    ]
    result = {"commit": commit(), "rounds": options.rounds, "cores": CORES, "rows": rows}
    write_json(HERE / "threads.json", result)
    (HERE / "threads.md").write_text(page(json.loads((HERE / "threads.json").read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
