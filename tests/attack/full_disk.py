"""A full disk: every piece of work ends with one message that names a path, and goes on when there is room.

The disk is a tmpfs of a size drawn below what the work needs, which only root may mount; elsewhere there is no such
attack.
"""

import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.attack.kills import different
from tests.attack.lives import import_what_it_imports, live
from tests.attack.subjects import End, Subject, ended
from tests.attack.trials import Case, Outcome, failure

_PAGE = 4096
_ROOM = "64m"


def mount(place: Path, size: str, *, again: bool = False) -> bool:
    """Whether a tmpfs of that size is now at `place`."""
    option = f"remount,size={size}" if again else f"size={size}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", place], capture_output=True, check=False)
    return done.returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


@cache
def can_mount() -> bool:
    """Whether this machine lets us have a small file system."""
    import tempfile

    if os.name != "posix" or shutil.which("mount") is None or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = mount(Path(folder), "64k")
        if done:
            unmount(Path(folder))
        return done


def used_bytes(folder: Path) -> int:
    """What a tmpfs needs for these files: whole pages."""
    return sum(_PAGE * (1 + path.stat().st_size // _PAGE) for path in folder.rglob("*"))


@dataclass
class FullDisk:
    """A subject works on a file system that is too small for it."""

    subject: Subject
    counts: dict[str, int]
    undisturbed: End = field(default_factory=dict)
    begin: Path | None = None
    needed: int = 0

    @property
    def name(self) -> str:
        return f"full disk/{self.subject.name}"

    def absent(self) -> str:
        return "" if can_mount() else "a small file system cannot be mounted here (that needs root)"

    def prepare(self, folder: Path) -> None:
        subject, whole, printed = self.subject, folder / "whole", folder / "printed.txt"
        (folder / "first").mkdir()
        import_what_it_imports(lambda: subject.work(folder / "first"), folder)
        self.begin = folder / "begin"
        self.begin.mkdir()
        if subject.name == "export":
            live(lambda: subject.part(folder / "begin"), printed)
        shutil.copytree(self.begin, whole)
        life = live(lambda: subject.work(whole), printed)
        if not life.well:
            raise RuntimeError(f"{self.name}: the undisturbed run ended with {life.code}: {life.text[-3000:]}")
        self.undisturbed, self.needed = subject.end(whole), used_bytes(whole)

    def draw(self, rng: random.Random) -> Case:
        """A share of what the finished work takes."""
        return {"share": rng.uniform(0.02, 0.98)}

    def attempt(self, case: Case, place: Path) -> Outcome:
        assert self.begin is not None
        pages = used_bytes(self.begin) // _PAGE + 2
        size = _PAGE * (pages + int(case["share"] * max(self.needed // _PAGE - pages, 1)))
        if not mount(place, str(size)):
            return failure("error", "the file system could not be mounted")
        try:
            return self._on_small_disk(place, size)
        finally:
            unmount(place)

    def _on_small_disk(self, place: Path, size: int) -> Outcome:
        assert self.begin is not None
        printed = place.with_name(place.name + ".txt")
        shutil.copytree(self.begin, place, dirs_exist_ok=True)
        life = live(lambda: self.subject.work(place), printed)
        what = f"{size} bytes: "
        if life.traceback:
            return failure("traceback", f"{what}{life.code} {life.text}")
        if not life.well and str(place) not in life.text:
            return failure("unnamed", what + life.text)
        if life.well and (wrong := different(ended(self.subject, place), self.undisturbed)):
            return failure("half written", what + wrong)
        if not mount(place, _ROOM, again=True):
            return failure("error", "the file system could not be enlarged")
        after = live(lambda: self.subject.work(place), printed)
        if not after.well:
            return failure("traceback" if after.traceback else "refused", f"{what}with room again: {after.text}")
        wrong = different(ended(self.subject, place), self.undisturbed)
        if wrong:
            return failure("different", what + wrong)
        return Outcome("enough room" if life.well else "one message, then the same end")
