"""The program around the commands: signals, errors as one message, exit codes."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO, cast

from rich.markup import escape

from search_r3_mteb.cli import shared
from search_r3_mteb.cli.options import app
from search_r3_mteb.disk import explained
from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.terminal import SafeConsole

_MISTAKES = (ValueError, TypeError, OSError, ImportError)  # the last: an optional library is missing
_RESUMED = "What is complete is kept, and so is every chunk of vectors and reasoning. Go on with"
# What is kept when a command is stopped, for those that keep anything.
_KEPT = {
    "evaluate": _RESUMED,
    "compare": _RESUMED,
    "tune": _RESUMED,
    "diagnose": _RESUMED,
    "reproduce": _RESUMED,
    "index": _RESUMED,
    "search": "It writes nothing. Start it again",
    "doctor": "It writes nothing. Start it again",
    "explain": "It writes nothing. Start it again",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A mistake of the caller gives one message and exit code 2; `--debug` gives a traceback.

    Without `arguments` it is the program: Ctrl-C and SIGTERM end it as `stopping.py` says.
    """
    if arguments is None:
        end_on_signals("search-r3", lambda: _kept(sys.argv[1:]))
    _find_place_for_mteb()
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv[1:], anywhere = _taken_out(given)
    debug = "--debug" in anywhere
    quiet = bool(anywhere & {"-q", "--quiet"})
    shared.be_quiet(quiet)
    try:
        bars = sys.stderr.isatty() and not quiet
        with redirect_stderr(sys.stderr if bars else cast("TextIO", _WithoutBars(sys.stderr))), _warnings(bars, quiet):
            app(args=sys.argv[1:], prog_name="search-r3")
    except Exception as error:
        message = explained(error)  # of a full disk: also as an exception of a library
        if debug or (message is None and not isinstance(error, _MISTAKES)):
            raise
        SafeConsole(stderr=True, soft_wrap=True).print(
            f"[red]Error:[/red] {escape(message or str(error))}", highlight=False
        )
        raise SystemExit(2) from None


_ANYWHERE = ("--debug", "-q", "--quiet")


def _taken_out(given: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments without the options that may stand anywhere, and those; what follows "--" is not an option."""
    end = list(given).index("--") if "--" in given else len(given)
    taken = {each for each in given[:end] if each in _ANYWHERE}
    return [each for each in given[:end] if each not in _ANYWHERE] + list(given[end:]), taken


@contextmanager
def _warnings(bars: bool, quiet: bool) -> Iterator[None]:
    """A library's warning stands above a moving bar instead of in it, and is not shown where it was not wanted."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        if bars:
            warnings.showwarning = lambda *about, **_: shared.above_bars(warnings.formatwarning(*about[:4]).rstrip())
        yield


def _find_place_for_mteb() -> None:
    """Where nothing can be written at home, as in many containers, importing mteb would fail: it makes its cache there.

    Nothing of ours is kept in it.
    """
    place = Path("~/.cache/mteb").expanduser()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        os.environ.setdefault("MTEB_CACHE", str(Path(tempfile.gettempdir()) / "search-r3-mteb-cache"))


def _kept(arguments: Sequence[str]) -> str:
    """What a command that is stopped has kept, and how to go on."""
    command = next((each for each in arguments if not each.startswith("-")), "")
    kept = _KEPT.get(command, "What was written is complete, or as it was before. Start it again")
    return f"{kept}: {command_line('search-r3')}"


class _WithoutBars:
    """Standard error of a log: without the progress bars that every library draws, with everything else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, unless it is part of a bar: those begin with a carriage return and end with an empty line."""
        return len(text) if text.startswith("\r") or text == "\n" else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
