"""JSON that somebody hands over: whatever is wrong with it is one ValueError that names the file and the line.

Beside malformed text, Python's parser gives up on values nested about a thousand deep and on integers of more than 4300
digits, with errors of other kinds that name nothing.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class NotJsonError(ValueError):
    """Text that is not JSON, or not JSON that can be read: where it stands, and why."""

    def __init__(self, place: str, line: int, reason: str, advice: str = "") -> None:
        self.place, self.line, self.reason = place, line, reason
        super().__init__(f"{place}, line {line}: not JSON ({reason}). {advice}".rstrip())


def parse_json(
    text: str | bytes, place: str | Path, line: int = 1, advice: str = "", *, integer: Callable[[str], Any] = int
) -> Any:
    """The JSON value in `text`, which begins at that line of `place`. Raises NotJsonError; `advice` ends its message.

    Bytes must be UTF-8; a byte order mark before the value is left out. `integer` makes the numbers without a point.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        decoded = decoded.removeprefix("\ufeff").rstrip()  # what is cut short ends in its last line
        return json.loads(decoded, parse_int=integer)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        column = error.start - (before.rfind(b"\n") + 1)
        number, reason = before.count(b"\n"), f"not UTF-8, {error.reason} at byte {column} of the line"
    except json.JSONDecodeError as error:
        number, reason = error.lineno - 1, f"{error.msg} at column {error.colno}"
    except RecursionError:
        number, reason = decoded[: _deepest(decoded)].count("\n"), "nested too deeply to be read"
    except ValueError:  # integers: their text would take quadratic time to convert
        digits = sys.get_int_max_str_digits()
        found = re.search(rf"[0-9]{{{digits + 1},}}", decoded)
        number = decoded[: found.start()].count("\n") if found else 0
        reason = f"an integer of more than {digits} digits"
    raise NotJsonError(str(place), line + number, reason, advice)


def read_json(path: Path, advice: str = "") -> Any:
    """The JSON value in a file. Raises NotJsonError, and OSError where the file is not there or cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:  # a folder, or a file without permission to read it
        raise type(error)(f"{path}: cannot be read ({error.strerror or error}). {advice}".rstrip()) from error
    return parse_json(content, path, advice=advice)


def read_object(path: Path, advice: str = "Copy it again.") -> dict[str, Any]:
    """The JSON object in a file. Raises like `read_json`, and ValueError for any other value."""
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {kind(value)}. {advice}".rstrip())
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in JSON's own words, for messages: the value itself may be megabytes."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _deepest(text: str) -> int:
    """The offset of the first of the innermost brackets."""
    depth = deepest = place = 0
    for token in _TOKEN.finditer(text):
        if token.group() in "[{":
            depth += 1
            if depth > deepest:
                deepest, place = depth, token.start()
        elif token.group() in "]}":
            depth -= 1
    return place
