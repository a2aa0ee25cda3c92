"""Kills (-9) at random moments: what is left is completed by starting again, and is what an undisturbed run leaves."""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.lives import import_what_it_imports, live
from tests.attack.subjects import End, Subject, ended
from tests.attack.trials import Case, Outcome, failure

_TRIES = 20


def different(end: End, wanted: End) -> str:
    """The names of what is not equal, '' where everything is."""
    names = sorted(name for name in end.keys() | wanted.keys() if end.get(name) != wanted.get(name))
    return ", ".join(f"{name}: {end[name]}" if name not in wanted else name for name in names)


@dataclass
class Kills:
    """A subject is killed once or several times in its undisturbed duration, then started again until it ends."""

    subject: Subject
    counts: dict[str, int]
    undisturbed: End = field(default_factory=dict)
    seconds: float = 0.0
    begin: Path | None = None

    @property
    def name(self) -> str:
        return f"kills/{self.subject.name}"

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        """The undisturbed run, and the folder in which every trial begins."""
        subject, whole = self.subject, folder / "whole"
        (folder / "first").mkdir()
        import_what_it_imports(lambda: subject.work(folder / "first"), folder)
        self.begin = folder / "begin"
        self.begin.mkdir()
        if subject.name == "export":  # one folder is put in the place of another
            live(lambda: subject.part(folder / "begin"), folder / "printed.txt")
        shutil.copytree(self.begin, whole)
        life = live(lambda: subject.work(whole), folder / "printed.txt")
        if not life.well:
            raise RuntimeError(f"{self.name}: the undisturbed run ended with {life.code}: {life.text[-3000:]}")
        self.undisturbed, self.seconds = subject.end(whole), life.seconds

    def draw(self, rng: random.Random) -> Case:
        """Shares of the undisturbed duration: often one kill, sometimes up to three, the later ones while resuming."""
        return {"shares": [rng.uniform(0.02, 1.0) for _ in range(rng.choice([1, 1, 1, 2, 3]))]}

    def attempt(self, case: Case, place: Path) -> Outcome:
        assert self.begin is not None
        killed, printed = 0, place.with_name(place.name + ".txt")
        shutil.copytree(self.begin, place, dirs_exist_ok=True)
        for share in case["shares"]:
            for _ in range(_TRIES):  # one that ended before its kill is begun again: every trial has one
                life = live(lambda: self.subject.work(place), printed, share * self.seconds)
                if life.code == -9:
                    killed += 1
                    break
                if not life.well:
                    return failure("refused", f"started again after {killed} kills: {life.code} {life.text}")
                if killed:
                    break
                shutil.rmtree(place)
                shutil.copytree(self.begin, place)
                share *= 0.7
        life = live(lambda: self.subject.work(place), printed)
        if not life.well:
            return failure("traceback" if life.traceback else "refused", f"{life.code} {life.text}")
        wrong = different(ended(self.subject, place), self.undisturbed)
        return failure("different", wrong) if wrong else Outcome("same" if killed else "never killed")
