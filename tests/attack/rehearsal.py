"""A program: some attacks with a few trials each, and those of PLANTED and FAULTY again with a fault to be noticed.

    python -m tests.attack.rehearsal ATTACK ...

Prints, as the last line, {attack: {"right": outcomes, "failures": [...], "planted": [what failed], "absent": why}}.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.attack.alone import one_thread_and_no_network

if __name__ == "__main__":
    one_thread_and_no_network()

from tests.attack.attacks import every
from tests.attack.full_disk import FullDisk
from tests.attack.kills import Kills
from tests.attack.subjects import Subject, files_of
from tests.attack.trials import Attack, attempted, drawn

SEED = 1
_MOST = 60
"""Trials with a planted fault, until one fails."""


def lines(name: str, *, resumes: bool, complains: bool) -> Subject:
    """Work that writes a line at a time: whether it goes on where it was, and says when a line cannot be written."""

    def work(place: Path) -> None:
        path = place / "lines"
        done = len(path.read_text().splitlines()) if resumes and path.exists() else 0
        for number in range(done, 40):
            try:
                with path.open("a") as stream:
                    stream.write(f"{number:09d}" + "." * 400 + "\n")
            except OSError as error:
                if complains:
                    raise OSError(f"{path}: {error}") from error
                return
            time.sleep(0.002)

    def end(place: Path) -> dict[str, str]:
        return {"lines": (place / "lines").read_text()}

    return Subject(name, work, end, work, lambda place: files_of(place), work)


def _no_check(module: str, name: str, value: Any) -> Callable[[Attack], AbstractContextManager[Any]]:
    return lambda attack: patch(f"{module}.{name}", value)


def _rolled(attack: Any) -> AbstractContextManager[Any]:
    """A batch's vectors belong to the texts beside them."""
    real = attack.encoder.unit
    return patch.object(attack.encoder, "unit", lambda vectors, texts: real(vectors, texts)[::-1].copy())


def _lenient_config(attack: Attack) -> AbstractContextManager[Any]:
    """What cannot be used is left out silently."""
    from train.config import loading
    from train.config.loading import ConfigError, load_config

    def lenient(path: Path, overrides: Any, cls: Any) -> Any:
        try:
            return load_config(path, overrides, cls)
        except ConfigError:
            return load_config(Path(__file__).parents[2] / "train/configs" / path.name, (), cls)

    return patch.object(loading, "load_config", lenient)


def _lenient_corpus(attack: Attack) -> AbstractContextManager[Any]:
    """Malformed rows end the reading silently."""
    from search_r3_mteb.tasks import beir_folder

    def lenient(real: Any) -> Any:
        def read(path: Path) -> Any:
            try:
                yield from real(path)
            except ValueError:
                return

        return read

    both = {name: lenient(getattr(beir_folder, name)) for name in ("read_corpus", "read_queries", "read_qrels")}
    return patch.multiple(beir_folder, **both)


def _markup(attack: Attack) -> AbstractContextManager[Any]:
    """One text is written into the page as markup."""
    from search_r3_mteb import report as module

    real = module.report

    def careless(runs: Any, path: Path, *arguments: Any) -> Any:
        found = real(runs, path, *arguments)
        path.write_text(path.read_text().replace("</body>", "<b id=injected>x</b></body>"))
        return found

    return patch.object(module, "report", careless)


def _exchanged(attack: Attack) -> AbstractContextManager[Any]:
    """A chunk's vectors are stored in another order."""
    from search_r3_mteb.encoder.store import Store

    real = Store.append

    def careless(self: Any, texts: Any, vectors: Any, *arguments: Any, **keywords: Any) -> None:
        real(self, texts, vectors[::-1], *arguments, **keywords)

    return patch.object(Store, "append", careless)


def _breaks(module: str, name: str) -> Callable[[Attack], AbstractContextManager[Any]]:
    def broken(*arguments: Any, **keywords: Any) -> Any:
        raise KeyError("model_type")

    return lambda attack: patch(f"{module}.{name}", broken)


PLANTED: dict[str, Callable[[Attack], AbstractContextManager[Any]]] = {
    "flips/store": _no_check("search_r3_mteb.encoder.stored_chunks.StoredChunk", "check", lambda self: None),
    "flips/cache": _no_check("train.corpus_cache.state.CacheState", "_intact", lambda self, name: True),
    "flips/export": _no_check("search_r3_mteb.encoder.verification", "differences", lambda *_, **__: {}),
    "flips/model": _no_check("search_r3_mteb.encoder.manifest", "differences", lambda *_, **__: {}),
    "flips/evaluation": _no_check("search_r3_mteb.evaluation.evaluate", "set_aside_damaged", lambda *arguments: []),
    "writers/summary rows": _no_check("search_r3_mteb.evaluation.evaluate", "replace_rows", lambda rows, new: [*new]),
    "writers/store": _exchanged,
    "fuzz/texts, tiny": _rolled,
    "fuzz/types": _no_check("search_r3_mteb.encoder.documents", "check_list", lambda *arguments: None),
    "fuzz/settings": _no_check("search_r3_mteb.encoder.settings", "check_flag", lambda *arguments, **keywords: None),
    "fuzz/configs": _lenient_config,
    "fuzz/BEIR folders": _lenient_corpus,
    "fuzz/model folders": _breaks("search_r3_mteb.SearchR3Encoder", "__init__"),
    "fuzz/command lines": _breaks("search_r3_mteb.cli", "main"),
    "browser/report page": _markup,
}
"""A fault of the program for at least one attack of each kind. Kills and full disks have work of their own, right and
wrong: their faults would otherwise be met by chance only."""
FAULTY: dict[str, Attack] = {
    "kills/store": Kills(lines("again from the beginning", resumes=False, complains=True), {"tiny": 4}),
    "full disk/store": FullDisk(lines("silent", resumes=True, complains=False), {"tiny": 4}),
}


def tried(attack: Attack, place: Path) -> list[Any]:
    """The outcomes of its tiny run, in this process."""
    return [attempted(attack, drawn(attack, SEED, number), place) for number in range(attack.counts["tiny"])]


def noticed(attack: Attack, place: Path) -> list[Any]:
    """Outcomes until the first failure: not every damage is one that the missing check would have found."""
    outcomes: list[Any] = []
    while len(outcomes) < _MOST and not any(outcome.failed for outcome in outcomes):
        outcomes.append(attempted(attack, drawn(attack, SEED, len(outcomes)), place))
    return outcomes


def rehearse(attack: Attack, folder: Path) -> dict[str, Any]:
    """Its outcomes as the program is, and with the planted fault."""
    if attack.absent():
        return {"absent": attack.absent()}
    folder.mkdir()
    attack.prepare(folder)
    right = tried(attack, folder / "place")
    if attack.name in PLANTED:
        with PLANTED[attack.name](attack):
            wrong = noticed(attack, folder / "place")
    elif attack.name in FAULTY:
        other = FAULTY[attack.name]
        (folder / "faulty").mkdir()
        other.prepare(folder / "faulty")
        wrong = tried(other, folder / "place")
    else:
        wrong = []
    if close := getattr(attack, "close", None):
        close()
    return {
        "right": [outcome.what for outcome in right],
        "failures": [f"{outcome.what}: {outcome.detail}" for outcome in right if outcome.failed],
        "planted": [outcome.what for outcome in wrong if outcome.failed],
    }


if __name__ == "__main__":
    found = {}
    with tempfile.TemporaryDirectory(prefix="attack-") as made:
        os.environ["SEARCH_R3_CACHE"] = f"{made}/remembered"
        for number, one in enumerate(every(Path(made) / "shared", lambda name: name in sys.argv[1:])):
            found[one.name] = rehearse(one, Path(made) / str(number))
    print(json.dumps(found))
