"""The attack: kills, damages, full disks, several writers and fuzzed inputs, each against an undisturbed end.

    make attack                               minutes
    make attack ATTACK=full                   the counts of results/reliability; an hour or two on two cores
    make attack ONLY=flips SEED=7             one kind, or KIND/TARGET, with other random numbers
    make attack ONLY=flips/store SEED=7 NUMBER=12     one trial
    make attack CASE=runs/attack/flips-store-7-12.json     the case of a failure again

It prints seeds and counts, writes each failure as a small file into runs/attack, and ends with exit code 1 where there
is one.
With --output the counts go into a JSON file, of which results/reliability/page.py makes the page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.attack.alone import one_thread_and_no_network

one_thread_and_no_network()

from tests.attack.attacks import every, every_name
from tests.attack.trials import Tally, again, run, save_failures

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="quick", choices=("tiny", "quick", "full"))
    parser.add_argument("--only", default="", help="a kind such as kills, or KIND/TARGET")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="one trial")
    parser.add_argument("--case", type=Path, nargs="+", default=[], help="files of failures")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--failures", type=Path, default=ROOT / "runs/attack")
    parser.add_argument(
        "--output", type=Path, help="a JSON file of the counts; rows of attacks that did not run are kept"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="attack-") as made:
        folder = Path(made)
        os.environ["SEARCH_R3_CACHE"] = str(folder / "remembered")
        if given.case:
            return int(bool([path for path in given.case if _tried_again(path, folder)]))
        attacks = every(folder, lambda name: name.startswith(given.only))
        if not attacks:
            parser.error(f"--only {given.only!r}: there are {', '.join(every_name(folder))}")
        tallies = []
        for attack in attacks:
            numbers = range(attack.counts[given.size]) if given.number is None else [given.number]
            began = time.perf_counter()
            tally = run(attack, given.seed, numbers, given.jobs, folder / "run")
            seconds = time.perf_counter() - began
            tallies.append(tally)
            _say(tally, seconds, save_failures(tally, given.failures))
            if given.output is not None:
                _keep(given.output, tally, seconds, given.size, every_name(folder))
    return int(any(tally.failures for tally in tallies))


def _tried_again(path: Path, folder: Path) -> bool:
    """Whether the case of a failure's file still fails."""
    wanted = json.loads(path.read_text(encoding="utf-8"))["attack"]
    outcome = again(path, every(folder, lambda name: name == wanted), folder / "again")
    print(f"{path}: {'FAILED: ' if outcome.failed else ''}{outcome.what} {outcome.detail}", flush=True)
    return outcome.failed


def _say(tally: Tally, seconds: float, files: list[Path]) -> None:
    if tally.absent:
        print(f"{tally.attack}: not here: {tally.absent}", flush=True)
        return
    counted = ", ".join(f"{count} {what}" for what, count in tally.outcomes.items())
    print(f"{tally.attack}, seed {tally.seed}: {tally.trials} in {seconds:.0f} s: {counted}", flush=True)
    for one, path in zip(tally.failures, files, strict=True):
        print(f"  FAILED {one['what']}: {one['detail'][-300:]!r}\n    again: make attack CASE={path}", flush=True)


def _keep(path: Path, tally: Tally, seconds: float, size: str, names: list[str]) -> None:
    """Put an attack's row into the file of results, which names those of `names` that it has no row of."""
    kept = json.loads(path.read_text()) if path.exists() else {"attacks": []}
    rows = {row["attack"]: row for row in kept["attacks"]}
    row = asdict(tally) | {"size": size, "seconds": round(seconds, 1), "commit": _commit()}
    row["failures"] = [{key: one[key] for key in ("number", "what", "detail")} for one in tally.failures]
    for one in row["failures"]:
        one["detail"] = one["detail"][-400:]
    rows[tally.attack] = row
    content = {
        "command": f"make attack ATTACK={size}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "attacks": [*rows.values()],
        "not_run": [name for name in names if name not in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
