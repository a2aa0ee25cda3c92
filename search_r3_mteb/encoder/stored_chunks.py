"""One chunk of the store: a folder of files with their checksums, which is what was written or is not read at all.

`chunk.json` holds whose rows these are (format, fingerprint, role, dim), their number, the seconds that they took, size
and sha256 of every file, and a sha256 of all that. The folder's name is the hash of its keys. So a changed bit, a file
cut short, a file of another chunk, and a chunk of another store are all found.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from search_r3_mteb.atomic import write_array, write_text
from search_r3_mteb.checksums import described
from search_r3_mteb.json_files import parse_json

KEY = np.dtype("S32")  # a sha256 digest; all have 32 bytes, so numpy's zero padding of byte strings is exact
CHUNK_FILE = "chunk.json"
KEYS_FILE, VECTORS_FILE, THOUGHTS_FILE = "keys.npy", "vectors.npy", "thoughts.jsonl"
Described = dict[str, dict[str, Any]]
"""Size in bytes and sha256 of files, by name."""


class DamagedError(ValueError):
    """What is on disk is not what was written."""


@dataclass(frozen=True)
class StoredChunk:
    """One complete folder of rows; `first` is the number of its first row among all rows of the store."""

    path: Path
    rows: int
    seconds: float
    first: int
    dim: int
    files: Described

    def check(self) -> None:
        """Compare vectors and thoughts, whole, with their checksums. Raises DamagedError with the file's name."""
        for name in sorted(set(self.files) - {KEYS_FILE}):
            _read(self.path / name, self.files[name])
        found = self.vectors()  # only now: the header of a damaged file may say anything
        if found.shape != (self.rows, self.dim) or found.dtype != np.float32:
            raise DamagedError(f"{VECTORS_FILE} holds {found.dtype} of shape {found.shape} for {self.rows} rows")

    def vectors(self) -> Float32[np.ndarray, "rows dim"]:
        """The rows, memory-mapped."""
        rows: Float32[np.ndarray, "rows dim"] = np.load(self.path / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        return rows


def sealed(values: Mapping[str, Any]) -> str:
    """The text of a JSON file that carries the sha256 of its own content."""
    digest = hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()
    return json.dumps({**values, "checksum": digest}, indent=2, allow_nan=False) + "\n"


def unsealed(path: Path) -> dict[str, Any]:
    """What `sealed` was given. Raises DamagedError for a file that is not, to the byte, what it returned."""
    try:
        content = path.read_bytes()
        values = parse_json(content, path.name)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path.name}: {error}") from error
    if not isinstance(values, dict) or values.pop("checksum", None) is None or sealed(values).encode() != content:
        raise DamagedError(f"{path.name} does not match the checksum in it")
    return values


def chunk_name(keys: NDArray[np.bytes_]) -> str:
    """The folder's name, by which the same chunk is written once."""
    return "chunk-" + hashlib.sha256(keys.tobytes()).hexdigest()[:24]


def write_chunk(
    folder: Path,
    owner: Mapping[str, Any],
    keys: NDArray[np.bytes_],
    vectors: Float32[np.ndarray, "texts dim"],
    thoughts: list[str] | None,
    seconds: float,
) -> None:
    """Write all files of a chunk into `folder`, the manifest last; `owner` is the store's identity."""
    write_array(folder / KEYS_FILE, keys[:, None].view(np.uint8))
    write_array(folder / VECTORS_FILE, vectors)
    if thoughts is not None:
        write_text(folder / THOUGHTS_FILE, "".join(thoughts))
    files = {path.name: described(path) for path in sorted(folder.iterdir())}
    manifest = {**owner, "rows": len(keys), "seconds": round(seconds, 6), "files": files}
    write_text(folder / CHUNK_FILE, sealed(manifest))


def read_chunk(path: Path, owner: Mapping[str, Any], first: int) -> tuple[StoredChunk, NDArray[np.bytes_]]:
    """A chunk and its keys; vectors and thoughts are checked by `StoredChunk.check`, when they are needed.

    Raises DamagedError for what is damaged, incomplete, under another chunk's name, or of another store.
    """
    manifest = unsealed(path / CHUNK_FILE)
    foreign = {key: manifest.get(key) for key in owner if manifest.get(key) != owner[key]}
    if foreign:
        raise DamagedError(f"it belongs to another store: {foreign}")
    try:
        rows, files = int(manifest["rows"]), manifest["files"]
        content = _read(path / KEYS_FILE, files[KEYS_FILE])
        keys = np.load(io.BytesIO(content), allow_pickle=False)
        for name in sorted({VECTORS_FILE, *files} - {KEYS_FILE}):
            _check_size(path / name, files[name])
        seconds = float(manifest["seconds"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{CHUNK_FILE} is incomplete: {type(error).__name__}, {error}") from error
    if keys.shape != (rows, KEY.itemsize) or keys.dtype != np.uint8:
        raise DamagedError(f"{KEYS_FILE} holds {keys.dtype} of shape {keys.shape} for {rows} rows")
    digests = keys.view(KEY)[:, 0]
    if chunk_name(digests) != path.name:
        raise DamagedError(f"its keys are those of {chunk_name(digests)}")
    return StoredChunk(path, rows, seconds, first, owner["dim"], files), digests


def _check_size(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name} is missing or cannot be read: {error}") from error
    if size != wanted["bytes"]:
        raise DamagedError(f"{path.name} has {size} bytes instead of {wanted['bytes']}")


def _read(path: Path, wanted: Mapping[str, Any]) -> bytes:
    """The content of a file that has this size and checksum."""
    _check_size(path, wanted)
    try:
        content = path.read_bytes()
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != wanted["sha256"]:
        raise DamagedError(f"{path.name} does not match its checksum")
    return content
