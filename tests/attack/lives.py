"""One life of a piece of work: a forked process, its exit code, and what it prints; killed where that is asked for."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search_r3_mteb.disk import explained
from tests.train.forking import wait

NAMED = (ValueError, TypeError, OSError, ImportError)
"""What a caller is told in one message; anything else is a traceback (as `search_r3_mteb.cli.main` has it)."""
TRACEBACK = 99


@dataclass(frozen=True)
class Life:
    """How a process ended: its exit code (negative: the signal), what it printed, and its seconds."""

    code: int
    text: str
    seconds: float

    @property
    def well(self) -> bool:
        return self.code == 0

    @property
    def traceback(self) -> bool:
        """Whether it died, or let somebody see where in the program it failed."""
        return self.code < 0 or self.code == TRACEBACK or "Traceback (most recent call last)" in self.text


def live(action: Callable[[], object], printed: Path, kill_after: float | None = None) -> Life:
    """Run `action` in a forked process, killed (-9) after so many seconds if it still runs then.

    What Python, libraries and the C runtime print goes to the file `printed`. The errors that a command line turns into
    one message give exit code 2 here, too.
    """
    began = time.perf_counter()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(action, printed)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    code = wait(pid)
    return Life(code, printed.read_text(errors="replace"), time.perf_counter() - began)


def _child(action: Callable[[], object], printed: Path) -> None:
    code = TRACEBACK
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # As line-buffered text: what was printed before a kill is there.
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, errors="replace") for stream in (1, 2))
        try:
            action()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except BaseException as error:  # noqa: BLE001  a forked child must not return into the parent's code
            message = explained(error)
            if message is None and not isinstance(error, NAMED):
                traceback.print_exc()
            else:  # as the command line has it
                print(f"Error: {message or error}", file=sys.stderr)
                code = 2
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def import_what_it_imports(action: Callable[[], object], folder: Path) -> float:
    """Run `action` in a process, then import here what it imported: later children need not. Its seconds.

    The work itself is not done here: threads that it starts would not survive a fork. RuntimeError where it fails.
    """
    names = folder / "modules.txt"

    def work() -> None:
        try:
            action()
        except SystemExit as ended:
            if ended.code:
                raise
        names.write_text("\n".join(sorted(sys.modules)))

    life = live(work, folder / "printed.txt")
    if not life.well:
        raise RuntimeError(f"the undisturbed work failed with {life.code}: {life.text[-3000:]}")
    import importlib

    for name in names.read_text().splitlines():
        if name not in sys.modules and not name.startswith(("__main__", "_pytest")):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001  some modules cannot be imported by the name that they have
                continue
    return life.seconds
