"""Trials: drawn from a seed, attempted by several processes, counted; a failure becomes a small file.

An attack draws a case (plain JSON) from a random generator, and attempts it in an empty folder. Trial NUMBER of SEED
is always the same case. A failure's file holds its case: it can be attempted again when what draws cases has changed.
"""

import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.train.forking import wait

Case = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one trial. `failed` is what must never be; `detail` is for people."""

    what: str
    failed: bool = False
    detail: str = ""


def failure(what: str, detail: str = "") -> Outcome:
    return Outcome(what, True, detail[-4000:])


class Attack(Protocol):
    """One kind of attack on one target."""

    name: str
    """KIND/TARGET, such as kills/store."""
    counts: dict[str, int]
    """Trials by size of the run."""

    def absent(self) -> str:
        """Why this machine cannot do it, or ''."""

    def prepare(self, folder: Path) -> None:
        """Make once, before any trial, what they share."""

    def draw(self, rng: random.Random) -> Case:
        """One case."""

    def attempt(self, case: Case, place: Path) -> Outcome:
        """Do it in the empty folder `place`."""


@dataclass
class Tally:
    """What came of an attack's trials."""

    attack: str
    seed: int
    trials: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    absent: str = ""
    """Why nothing was tried."""


def drawn(attack: Attack, seed: int, number: int) -> Case:
    """The case of one trial."""
    return attack.draw(random.Random(f"{attack.name} {seed} {number}"))


def attempted(attack: Attack, case: Case, place: Path) -> Outcome:
    """One trial in a folder of its own, which is removed again. An error of the attack itself is a failure, too."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        return attack.attempt(case, place)
    except Exception:  # noqa: BLE001  whatever it is, it is not an outcome that an attack expects
        return failure("error", traceback.format_exc())
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run(attack: Attack, seed: int, numbers: Iterable[int], jobs: int, folder: Path) -> Tally:
    """Attempt the trials `numbers` in `jobs` processes, forked after `prepare`."""
    tally = Tally(attack.name, seed, absent=attack.absent())
    if tally.absent:
        return tally
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    attack.prepare(folder)
    shares = [list(numbers)[job::jobs] for job in range(jobs)]
    found = [folder / f"job-{job}.jsonl" for job in range(jobs)]
    workers = {
        job: _worker(attack, seed, share, found[job], folder / f"place-{job}") for job, share in enumerate(shares)
    }
    while workers:
        job, pid = next(iter(workers.items()))
        code = wait(pid)
        del workers[job]
        begun = [json.loads(line)["number"] for line in found[job].read_text().splitlines() if '"begun"' in line]
        if code:  # a process that dies takes one trial with it, and the rest is left for another
            with found[job].open("a") as stream:
                last = begun[-1] if begun else shares[job][0]
                died = asdict(failure("death", f"the process that tried it ended with {code}"))
                stream.write(json.dumps({"number": last, "outcome": died}) + "\n")
            shares[job] = shares[job][shares[job].index(last) + 1 :]
            workers[job] = _worker(attack, seed, shares[job], found[job], folder / f"place-{job}")
    for path in found:
        _count(tally, attack, path)
    shutil.rmtree(folder, ignore_errors=True)
    return tally


def _worker(attack: Attack, seed: int, numbers: list[int], found: Path, place: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with found.open("a") as stream:
            for number in numbers:
                stream.write(json.dumps({"number": number, "begun": True}) + "\n")
                stream.flush()
                outcome = attempted(attack, drawn(attack, seed, number), place)
                stream.write(json.dumps({"number": number, "outcome": asdict(outcome)}) + "\n")
        code = 0
    finally:
        if close := getattr(attack, "close", None):
            close()
        os._exit(code)


def _count(tally: Tally, attack: Attack, path: Path) -> None:
    counted = Counter(tally.outcomes)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "outcome" not in record:
            continue
        outcome = Outcome(**record["outcome"])
        tally.trials += 1
        counted[outcome.what] += 1
        if outcome.failed:
            case = drawn(attack, tally.seed, record["number"])
            about = {"attack": tally.attack, "seed": tally.seed, "number": record["number"]}
            tally.failures.append(about | {"what": outcome.what, "detail": outcome.detail, "case": case})
    tally.outcomes = dict(sorted(counted.items()))


def save_failures(tally: Tally, folder: Path) -> list[Path]:
    """One small file for each failure."""
    paths = []
    for one in tally.failures:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{one['attack'].replace('/', '-')}-{one['seed']}-{one['number']}.json"
        path.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def again(path: Path, attacks: list[Attack], folder: Path) -> Outcome:
    """Attempt the case of a failure's file."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    by_name: dict[str, Attack] = {attack.name: attack for attack in attacks}
    if saved["attack"] not in by_name:
        raise ValueError(f"{path}: there is no attack {saved['attack']!r}; there are {', '.join(by_name)}.")
    attack = by_name[saved["attack"]]
    if attack.absent():
        return Outcome("absent", False, attack.absent())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    attack.prepare(folder)
    return attempted(attack, saved["case"], folder / "place")


Choose = Callable[[str], bool]
