"""What fuzzed inputs are drawn from, and the one question about each: an answer, or one message?"""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attack.trials import Outcome, failure

NAMED = (ValueError, TypeError, OSError, ImportError)
LIMIT = 180
"""Seconds after which an input that takes milliseconds counts as a hang, on however busy a machine."""

_PIECES = (
    "the storm",
    "water",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\x1b[31m",
    "\x7f",
    "\u200b",
    "\u202e",
    "\ufeff",
    "\u0301",
    "é",
    "日本語",
    "العربية",
    "😀",
    "👩‍👩‍👧",
    "\U0010ffff",
    "\ufffd",
    "<|im_start|>",
    "<|im_end|>",
    "<|embed_token|>",
    "<|endoftext|>",
    "<|im_start|>system\nyou are",
    "<think>",
    "</think>",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "{'text': 'a'}",
    '{"text": "a"}',
    "<script>alert(1)</script>",
    "</script>",
    "=1+1",
    "../..",
    "%s",
    "\\",
    '"',
    "'",
    "`",
    "a" * 300,
    "ab " * 200,
    "0",
    "-1",
    "NaN",
    "null",
    "None",
    "ﬁ",
    "İ",
    "ß",
    "ǆ",
    "\u2028",
    "\u0085",
    "\xa0",
    "Ａ",
    "①",
    "[EMBED]",
    "<s>",
    "</s>",
    "[CLS]",
    "[SEP]",
    "##a",
    "▁a",
)
_SURROGATES = ("\ud800", "\udfff", "\udc80a")


def text(rng: random.Random, *, surrogates: bool = True) -> str:
    """A text made of pieces that somebody once fell over, and of any code points."""
    if rng.random() < 0.03:
        return rng.choice(["", " ", "\n", "\0"])
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20])):
        if rng.random() < 0.7:
            parts.append(rng.choice(_PIECES))
        else:
            points = (rng.randrange(rng.choice([0x80, 0x800, 0x10000, 0x110000])) for _ in range(rng.randrange(1, 12)))
            parts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    made = rng.choice(["", " "]).join(parts)
    if rng.random() < 0.02:
        made *= rng.randrange(2, 40)
    if surrogates and rng.random() < 0.04:
        at = rng.randrange(len(made) + 1)
        made = made[:at] + rng.choice(_SURROGATES) + made[at:]
    return made


def value(rng: random.Random, depth: int = 2) -> Any:
    """A value of JSON or TOML of any kind."""
    kinds = ["text", "word", "int", "float", "bool", "huge", "negative", "zero"] + (["list", "table"] if depth else [])
    kind = rng.choice(kinds)
    if kind in ("list", "table"):
        items = [value(rng, depth - 1) for _ in range(rng.randrange(3))]
        return items if kind == "list" else {f"k{number}": item for number, item in enumerate(items)}
    simple: dict[str, Any] = {
        "text": text(rng, surrogates=False)[:60],
        "word": rng.choice(["none", "true", "auto", "nano", "cpu", "0", "1e-3", ""]),
        "int": rng.randrange(1, 100),
        "float": rng.uniform(0, 2),
        "bool": rng.random() < 0.5,
        "huge": 10 ** rng.randrange(5, 30),
        "negative": -rng.randrange(1, 100),
        "zero": 0,
    }
    return simple[kind]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content with one to four small changes of bytes or lines."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(found) + 1)
        kind = rng.choice(["flip", "drop", "insert", "piece", "cut", "repeat", "digit", "line", "swap lines"])
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == "drop":
            del found[at : at + rng.randrange(1, 6)]
        elif kind == "insert":
            found[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
        elif kind == "piece":
            found[at:at] = rng.choice(
                (*_PIECES, "[" * 2000, '{"a":' * 2000, "1" * 5000, "\t", ",", "=", "\ud800")
            ).encode("utf-8", "surrogatepass")
        elif kind == "cut" and rng.random() < 0.3:
            del found[at:]
        elif kind == "repeat":
            found[at:at] = found[at : at + rng.randrange(1, 60)]
        elif kind == "digit" and at < len(found):
            found[at] = rng.choice(b"0123456789-.eE")
        elif kind in ("line", "swap lines"):
            lines = bytes(found).splitlines(keepends=True)
            if len(lines) > 1:
                first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
                if kind == "line":
                    lines.insert(first, lines[second])
                else:
                    lines[first], lines[second] = lines[second], lines[first]
            found = bytearray(b"".join(lines))
    return bytes(found)


class HangError(BaseException):
    """An input that did not end; no handler of errors may take it for one."""


@contextmanager
def limited(seconds: int = LIMIT) -> Iterator[None]:
    """Raise HangError in the block once it takes longer; where there is no alarm, or not here, it is not limited."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Answer:
    """What a call gave: a value, or the message of an error that is meant for people, or a failure."""

    value: Any = None
    message: str | None = None
    failed: Outcome | None = None


def ask(call: Callable[[], Any]) -> Answer:
    """Call it. An error of a kind that the command line turns into one message is an answer; another is a failure."""
    import traceback

    try:
        with limited():
            return Answer(call())
    except HangError:
        return Answer(failed=failure("hang", f"more than {LIMIT} seconds"))
    except NAMED as error:
        if not str(error).strip():
            return Answer(failed=failure("empty message", traceback.format_exc()))
        return Answer(message=str(error))
    except Exception:  # noqa: BLE001  this is what is looked for
        return Answer(failed=failure("traceback", traceback.format_exc()))


class OnModel:
    """An attack on, or with, the folder of a tiny model, that every machine can run."""

    def __init__(self, name: str, counts: dict[str, int]) -> None:
        self.name, self.counts = name, counts
        self.model = Path()

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        from tests.train.loops import byte_folder

        self.model = byte_folder(folder / "model")
