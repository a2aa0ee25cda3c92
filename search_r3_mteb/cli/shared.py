"""What the commands share: the console, progress on standard error, and settings from their options."""

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from search_r3_mteb.terminal import SafeConsole, visible
from search_r3_mteb.threads import chosen_by_measurement

_log = logging.getLogger(__name__)
# Rows of a table wider than this fold; a pipe or a log has no width of its own.
_LOG_WIDTH = 140


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether this command prints its result and errors only."""
    global _quiet
    _quiet = quiet


def said(console: SafeConsole, text: str) -> None:
    """A line that is not the result, such as where it was written."""
    if not _quiet:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """The result as JSON: ASCII, so that nothing in it acts on a terminal; what is not a finite number is null."""
    print(json.dumps(_plain(value), allow_nan=False, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def long_work() -> Iterator[None]:
    """Log on standard error what the block does, for hours perhaps, with threads chosen by measurement."""
    logger, handler = logging.getLogger("search_r3_mteb"), _AboveBars()
    before = logger.level
    handler.setFormatter(_Visible())
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if _quiet else logging.INFO)
    try:
        with chosen_by_measurement():
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def above_bars(text: str) -> None:
    """Write a line on standard error; a bar of tqdm's that moves there is cleared first, and drawn again below."""
    tqdm = sys.modules.get("tqdm")  # where it is not loaded there is no bar
    line = f"{text}\n"  # in one piece: a line break alone is taken for the end of a bar, and left out of logs
    if tqdm is None:
        sys.stderr.write(line)
    else:
        tqdm.tqdm.write(line, file=sys.stderr, end="")


class _AboveBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        above_bars(self.format(record))


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def console_here() -> SafeConsole:
    """The terminal, or a log of a fixed width."""
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=_LOG_WIDTH, soft_wrap=False)


def counted(number: int, one: str, several: str) -> str:
    """A number with its noun: "1 document", "2,000 documents"."""
    return f"{number:,} {one if number == 1 else several}"


def arguments_given() -> list[str]:
    """What stands behind the program's name."""
    return sys.argv[1:]


def choice(option: str, value: str, valid: tuple[str, ...]) -> Any:
    """The value of an option that has a few. Raises ValueError for another."""
    if value not in valid:
        raise ValueError(f"{option} must be one of {', '.join(valid)}, got {value!r}.")
    return value


def model_or_nano(model: str | None, corpus: str = "") -> str:
    """The model that was named, or nano; a warning where nobody named it and the documents are not of its world."""
    if model is None and corpus.partition(":")[0] != "hopworld":
        _log.warning("nano knows only its generated world; for real text: --model mini")
    return model or "nano"


def sizes(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers above 0 in a text such as "64,128", each once. Raises ValueError for another text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"{option} {text}: write numbers of dimensions such as 64,128, each once.")
    return tuple(map(int, parts))


def settings_of(pairs: list[str] | None, *further: type, **named: Any) -> dict[str, Any]:
    """Settings of encoders (and `further` ones) from NAME=VALUE pairs and from the options that were given."""
    from search_r3_mteb.encoder.options import parse_settings

    return {
        **parse_settings(pairs or [], *further),
        **{key: value for key, value in named.items() if value is not None},
    }
