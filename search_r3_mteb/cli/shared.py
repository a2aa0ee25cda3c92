"""What the commands share: the console, progress on standard error, and settings from their options."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from search_r3_mteb.terminal import SafeConsole, visible

# Rows of a table wider than this fold; a pipe or a log has no width of its own.
_LOG_WIDTH = 140


@contextmanager
def progress_lines() -> Iterator[None]:
    """Log what is being done on standard error while the block runs: hours may pass before the table."""
    logger, handler = logging.getLogger("search_r3_mteb"), logging.StreamHandler()
    before = logger.level
    handler.setFormatter(_Visible())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def console_here() -> SafeConsole:
    """The terminal, or a log of a fixed width."""
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=_LOG_WIDTH, soft_wrap=False)


def arguments_given() -> list[str]:
    """What stands behind the program's name."""
    return sys.argv[1:]


def choice(option: str, value: str, valid: tuple[str, ...]) -> Any:
    """The value of an option that has a few. Raises ValueError for another."""
    if value not in valid:
        raise ValueError(f"{option} must be one of {', '.join(valid)}, got {value!r}.")
    return value


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
