"""Damages of a checkpoint's files: what a bad disk, a half copy and an editor leave, drawn from a seed."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

DEEP = "[" * 10_000 + "]" * 10_000
VALUES = (
    *("null", "true", "-1", "0", "3.5", "1e999", "NaN", "1" * 25, "1" * 5000, "2147483648", '""', '"x"', '"\\u0000"'),
    *("[]", "[null]", "[[1]]", "{}", '{"a": 1}', '["a", "b"]', '{"": {"": []}}', DEEP),
)
WHOLE = {
    "empty": b"",
    "white space": b" \n\n",
    "another type": b"[1, 2]",
    "a text": b'"config"',
    "null": b"null",
    "nested": DEEP.encode(),
    "nested objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "NUL bytes": b"\0" * 300,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
}
Damage = tuple[str, Callable[[Path], None]]


def drawn(name: str, content: bytes, seed: int, count: int) -> list[Damage]:
    """All that replaces the file, and about `count` of each kind that changes it."""
    draw = random.Random(f"{seed} {name}")
    found = [*of_place(), *of_bytes(content, draw, count)]
    if name.endswith(".json"):
        found += of_json(content, draw, 4 * count)
    if name.endswith(".safetensors"):
        found += of_header(content, draw, count)
    return found


def writes(content: bytes) -> Callable[[Path], None]:
    """What puts other content into the file's place."""
    return lambda path: path.write_bytes(content)


def _becomes_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _becomes_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def of_place() -> Iterator[Damage]:
    """Something else in the file's place."""
    yield "removed", lambda path: path.unlink()
    yield "a folder", _becomes_folder
    yield "a link to nowhere", _becomes_link


def of_bytes(content: bytes, draw: random.Random, count: int) -> Iterator[Damage]:
    """Any file: cut off, with other bytes, or something else as a whole."""
    for name, other in WHOLE.items():
        yield name, writes(other)
    for _ in range(count):
        end = draw.randrange(len(content))
        yield f"cut at {end}", writes(content[:end])
        place, value = draw.randrange(len(content)), draw.randrange(1, 256)
        other = content[:place] + bytes([content[place] ^ value]) + content[place + 1 :]
        yield f"byte {place} ^ {value}", writes(other)
        yield f"random bytes at {place}", writes(content[:place] + draw.randbytes(40) + content[place:])


def of_json(content: bytes, draw: random.Random, count: int) -> Iterator[Damage]:
    """A JSON object: keys without their values, and values of other types, at any depth."""
    for name, other in _changed(content, draw, count):
        yield name, writes(other)


def _changed(content: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    for _ in range(count):
        value = json.loads(content)
        path = _descend(value, draw)
        *above, key = path
        inside = value
        for step in above:
            inside = inside[step]
        name = ".".join(map(str, path))
        if draw.random() < 0.2:
            del inside[key]
            yield f"without {name}", json.dumps(value).encode()
            continue
        other = draw.choice(VALUES)
        inside[key] = "@here@"
        yield f"{name} = {other:.20}", json.dumps(value).replace('"@here@"', other).encode()


def of_header(content: bytes, draw: random.Random, count: int) -> Iterator[Damage]:
    """A safetensors file with another header before the same data."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    for length in (0, 1, size - 1, size + 1, len(content), 2**40, 2**63):
        yield f"header length {length}", writes(struct.pack("<Q", length) + header + data)
    for name, other in WHOLE.items():
        yield f"header: {name}", writes(struct.pack("<Q", len(other)) + other + data)
    for name, other in _changed(header, draw, count):
        yield f"header: {name}", writes(struct.pack("<Q", len(other)) + other + data)


def _descend(value: object, draw: random.Random) -> list[object]:
    """The way to a random value: half of the time it is one at the top."""
    path: list[object] = []
    while isinstance(value, dict | list) and value and (not path or draw.random() < 0.5):
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        path, value = [*path, key], value[key]
    return path
