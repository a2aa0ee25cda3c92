"""Flips, truncations and swaps of every file that has a checksum: found by name, or made again; never believed.

Files without a checksum (a user's own model folder, BEIR folders, an array of vectors) are not counted here: nothing
vouches for them.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.kills import different
from tests.attack.lives import import_what_it_imports, live
from tests.attack.subjects import End, Subject, ended
from tests.attack.trials import Case, Outcome, failure

KINDS = ("flip",) * 10 + ("byte", "zeros", "cut", "cut", "empty", "more", "gone", "swap", "swap", "exchange")


@dataclass
class Damages:
    """A folder in the middle of the work is damaged in one place, then the work is started again.

    It must end as undisturbed work does, or be refused in one message that names the file, its checkpoint or folder.
    """

    subject: Subject
    counts: dict[str, int]
    needed: str = ""
    """A command of search-r3 without which nothing compares the files."""
    undisturbed: End = field(default_factory=dict)
    begin: Path | None = None

    @property
    def name(self) -> str:
        return f"flips/{self.subject.name}"

    def absent(self) -> str:
        from search_r3_mteb import cli

        known = {
            command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
        }
        return f"there is no search-r3 {self.needed}" if self.needed and self.needed not in known else ""

    def prepare(self, folder: Path) -> None:
        subject, printed = self.subject, folder / "printed.txt"
        (folder / "first").mkdir()
        import_what_it_imports(lambda: subject.work(folder / "first"), folder)
        self.begin = folder / "begin"
        self.begin.mkdir()
        life = live(lambda: subject.part(folder / "begin"), printed)
        if not life.well:
            raise RuntimeError(f"{self.name}: half of the work ended with {life.code}: {life.text[-3000:]}")
        shutil.copytree(self.begin, folder / "whole")
        life = live(lambda: subject.used(folder / "whole"), printed)
        if not life.well:
            raise RuntimeError(f"{self.name}: the undisturbed work ended with {life.code}: {life.text[-3000:]}")
        self.undisturbed = subject.end(folder / "whole")

    def draw(self, rng: random.Random) -> Case:
        """By shares, so that the case still means something when sizes and names have changed."""
        kind = rng.choice(KINDS)
        return {
            "kind": kind,
            "file": rng.random(),
            "other": rng.random(),
            "at": rng.random(),
            "byte": rng.randrange(256),
        }

    def attempt(self, case: Case, place: Path) -> Outcome:
        assert self.begin is not None
        shutil.copytree(self.begin, place, dirs_exist_ok=True)
        path, changed = damage(self.subject.damageable(place), case)
        what = f"{case['kind']} of {path.relative_to(place)} at {case['at']:.3f}: "
        life = live(lambda: self.subject.used(place), place.with_name(place.name + ".txt"))
        if life.traceback:
            return failure("traceback", f"{what}{life.code} {life.text}")
        if not life.well:
            return self._refused(life.text, path, place, what, changed)
        wrong = different(ended(self.subject, place), self.undisturbed)
        if wrong:
            return failure("accepted", f"{what}{wrong}. It printed {life.text[-1500:]}")
        named = any(name in life.text for name in (path.name, path.parent.name))
        return Outcome("made again" if named else "same end" if changed else "no damage")

    def _refused(self, text: str, path: Path, place: Path, what: str, changed: bool) -> Outcome:
        if not changed:
            return failure("refused intact", what + text)
        names = [path.name, *(parent.name for parent in path.relative_to(place).parents if parent.name)]
        if not any(name in text for name in names):
            return failure("unnamed", what + text)
        return Outcome("refused by name")


def damage(files: list[Path], case: Case) -> tuple[Path, bool]:
    """Do it; the file, and whether its bytes are others now."""
    path = files[int(case["file"] * len(files))]
    before, kind = path.read_bytes(), case["kind"]
    content, at = bytearray(before), int(case["at"] * len(before))
    if kind in ("swap", "exchange"):
        # With a file of the same name where there is one: what could be taken for it.
        alike = [other for other in files if other.name.split("-")[-1] == path.name.split("-")[-1] and other != path]
        other = (alike or [one for one in files if one != path])[int(case["other"] * len(alike or files[1:]))]
        content = bytearray(other.read_bytes())
        if kind == "exchange":
            other.write_bytes(before)
    elif kind == "flip":
        content[at] ^= 1 << (case["byte"] % 8)
    elif kind == "byte":
        content[at] = case["byte"]
    elif kind == "zeros":
        content[at:] = bytes(len(content) - at)
    elif kind == "cut":
        del content[at:]
    elif kind == "empty":
        content.clear()
    elif kind == "more":
        content += bytes([case["byte"]])
    if kind == "gone":
        path.unlink()
        return path, True
    path.write_bytes(content)
    return path, bytes(content) != before
