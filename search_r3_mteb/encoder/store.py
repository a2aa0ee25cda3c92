"""Vectors and thoughts on disk: one row per (fingerprint, role, text), so that a killed run resumes at its last chunk.

    FOLDER/ROLE-FINGERPRINT/store.json     what the rows belong to
    FOLDER/ROLE-FINGERPRINT/chunk-NAME/    keys.npy  vectors.npy  thoughts.jsonl  chunk.json (manifest, written last)

A chunk is written into a hidden folder and renamed when it is complete, so a reader sees all of it or nothing. Its name
is the hash of the keys that it holds: the run that is started again writes the same names, and two processes at once
can only ever write the same chunk twice (the second copy is dropped) or different ones. There is no lock and nothing is
overwritten. Plain `.npy` and JSON, read memory-mapped; no pickle.
"""

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from search_r3_mteb.atomic import write_array, write_json, write_text
from search_r3_mteb.json_files import parse_json, read_json, read_object

FORMAT = 1
ROLES = ("query", "document")
_KEY = np.dtype("S32")  # a sha256 digest; all have 32 bytes, so numpy's zero padding of byte strings is exact


class ThoughtLike(Protocol):
    """The part of a thought that the store keeps."""

    @property
    def text(self) -> str:
        """The reasoning, decoded."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The generated ids, without the embed token."""

    @property
    def finished(self) -> bool:
        """False when the budget was spent and the embed token was forced."""


@dataclass(frozen=True)
class StoredThought:
    """The reasoning about one text: decoded, as the ids that were sampled, and whether the model ended it itself."""

    text: str
    token_ids: list[int]
    finished: bool


@dataclass(frozen=True)
class _Chunk:
    """One complete folder of rows; `first` is the number of its first row among all rows of the store."""

    path: Path
    rows: int
    seconds: float
    first: int


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `parts`, every setting that decides a vector.

    Raises TypeError for a value that JSON cannot hold: two different values might have the same text form.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _keys_of(texts: Sequence[str], instructions: Sequence[str | None] | None) -> NDArray[np.bytes_]:
    """One digest per text and instruction. The length in front keeps ("ab", "c") and ("a", "bc") apart."""
    if instructions is not None and len(instructions) != len(texts):
        raise ValueError(
            f"Got {len(instructions)} instructions for {len(texts)} texts; give one (or None) for each text."
        )
    keys = np.empty(len(texts), dtype=_KEY)
    for position, text in enumerate(texts):
        instruction = None if instructions is None else instructions[position]
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(f"{len(data)}:".encode() + data)
        if instruction:
            digest.update(instruction.encode("utf-8", "surrogatepass"))
        keys[position] = digest.digest()
    return keys


class _Index:
    """The rows of keys: sorted segments, merged as they grow, 40 bytes per row."""

    def __init__(self) -> None:
        self._segments: list[tuple[NDArray[np.bytes_], Int64[np.ndarray, " rows"]]] = []

    def add(self, keys: NDArray[np.bytes_], first: int) -> None:
        """Enter `keys` as the rows `first`, `first` + 1, ..."""
        rows = np.arange(first, first + len(keys), dtype=np.int64)
        self._segments.append(self._sorted(keys, rows))
        # Merging only segments of similar size costs n log n in total, for any number of chunks.
        while len(self._segments) > 1 and len(self._segments[-2][0]) <= 2 * len(self._segments[-1][0]):
            (keys1, rows1), (keys2, rows2) = self._segments.pop(), self._segments.pop()
            self._segments.append(self._sorted(np.concatenate([keys2, keys1]), np.concatenate([rows2, rows1])))

    @staticmethod
    def _sorted(
        keys: NDArray[np.bytes_], rows: Int64[np.ndarray, " rows"]
    ) -> tuple[NDArray[np.bytes_], Int64[np.ndarray, " rows"]]:
        order = np.argsort(keys, kind="stable")
        return keys[order], rows[order]

    def find(self, keys: NDArray[np.bytes_]) -> Int64[np.ndarray, " keys"]:
        """The row of each key, -1 for those that are not stored."""
        found = np.full(len(keys), -1, dtype=np.int64)
        for sorted_keys, rows in self._segments:
            place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
            hit = (sorted_keys[place] == keys) & (found < 0)
            found[hit] = rows[place[hit]]
        return found


class Store:
    """The rows of one fingerprint and role under `folder`.

    `fingerprint` is a hex digest over everything that decides a vector (see `fingerprint_of`), `dim` the vectors'
    length. Raises ValueError when the folder holds rows of another fingerprint, role or length, or a damaged chunk.
    """

    def __init__(self, folder: Path | str, fingerprint: str, role: str, dim: int) -> None:
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}.")
        if not fingerprint or set(fingerprint) - set("0123456789abcdef"):
            raise ValueError(f"fingerprint must be a hex digest, got {fingerprint!r}: it becomes a folder's name.")
        self.role, self.dim, self.fingerprint = role, dim, fingerprint
        self.folder = Path(folder) / f"{role}-{fingerprint}"
        self._chunks: list[_Chunk] = []
        self._known: set[str] = set()
        self._index = _Index()
        # The cache belongs to this object, so that it is freed with it.
        self._read_thoughts = lru_cache(maxsize=8)(self._parse_thoughts)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        self._drop_leftovers()
        self._scan()

    def __len__(self) -> int:
        """Number of rows that can be looked up."""
        return self._chunks[-1].first + self._chunks[-1].rows if self._chunks else 0

    def missing(self, texts: Sequence[str], instructions: Sequence[str | None] | None = None) -> list[int]:
        """Positions of the texts that are not stored yet, in their order; a text that occurs twice is listed once."""
        self._scan()  # another process may have written meanwhile
        keys = _keys_of(texts, instructions)
        absent = np.flatnonzero(self._index.find(keys) < 0)
        _, first = np.unique(keys[absent], return_index=True)
        return [int(position) for position in absent[np.sort(first)]]

    def append(
        self,
        texts: Sequence[str],
        vectors: Float32[np.ndarray, "texts dim"],
        thoughts: Sequence[ThoughtLike] | None = None,
        *,
        instructions: Sequence[str | None] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Write one chunk: on return it is on disk and survives a kill.

        `seconds` is what computing the chunk took. Raises ValueError for wrong shapes, for vectors that are not finite
        and for a text that occurs twice.
        """
        if len(texts) == 0:
            return
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.shape != (len(texts), self.dim):
            raise ValueError(f"vectors must have the shape {(len(texts), self.dim)}, got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(
                f"The vector of {texts[bad][:80]!r} is not finite; storing it would make the fault permanent."
            )
        if thoughts is not None and len(thoughts) != len(texts):
            raise ValueError(f"Got {len(thoughts)} thoughts for {len(texts)} texts; give one for each text, or None.")
        keys = _keys_of(texts, instructions)
        if len(np.unique(keys)) != len(keys):
            raise ValueError(
                "A text occurs twice in the chunk; store what `missing` lists, which names each text once."
            )
        name = "chunk-" + hashlib.sha256(keys.tobytes()).hexdigest()[:24]
        if name not in self._known:
            lines = None if thoughts is None else _thought_lines(texts, instructions, thoughts)
            self._write_chunk(name, keys, vectors, lines, seconds)
            self._open_chunk(self.folder / name)

    def lookup(
        self, texts: Sequence[str], instructions: Sequence[str | None] | None = None
    ) -> Float32[np.ndarray, "texts dim"]:
        """The vectors, in the order of the texts. Raises ValueError when one is not stored."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for chunk, positions, rows in self._located(texts, instructions):
            vectors[positions] = np.load(chunk.path / "vectors.npy", mmap_mode="r", allow_pickle=False)[rows]
        return vectors

    def thoughts(self, texts: Sequence[str], instructions: Sequence[str | None] | None = None) -> list[StoredThought]:
        """The thoughts, in the order of the texts. ValueError for a text that is not stored or has no thought."""
        thoughts: dict[int, StoredThought] = {}
        for chunk, positions, rows in self._located(texts, instructions):
            stored = self._read_thoughts(chunk.path)
            thoughts.update({int(position): stored[row] for position, row in zip(positions, rows, strict=True)})
        return [thoughts[position] for position in range(len(texts))]

    def seconds(self, texts: Sequence[str], instructions: Sequence[str | None] | None = None) -> float:
        """Seconds that computing these texts took, in whichever run; a text's share of its chunk counts once."""
        total = 0.0
        for chunk, _, rows in self._located(texts, instructions):
            total += chunk.seconds * len(np.unique(rows)) / chunk.rows
        return total

    def _located(
        self, texts: Sequence[str], instructions: Sequence[str | None] | None
    ) -> list[tuple[_Chunk, Int64[np.ndarray, " part"], Int64[np.ndarray, " part"]]]:
        """The texts by chunk: (chunk, positions among `texts`, rows inside the chunk)."""
        rows = self._index.find(_keys_of(texts, instructions))
        if (rows < 0).any():
            absent = texts[int(np.flatnonzero(rows < 0)[0])]
            raise ValueError(
                f"{int((rows < 0).sum())} of {len(texts)} texts are not stored under {self.folder.name[:24]}, the "
                f"first is {absent[:80]!r}. Compute what `missing` lists and `append` it before looking it up."
            )
        if len(rows) == 0:
            return []
        order = np.argsort(rows, kind="stable")
        starts = np.array([chunk.first for chunk in self._chunks])
        owner = np.searchsorted(starts, rows[order], side="right") - 1
        parts = []
        for positions in np.split(order, np.flatnonzero(np.diff(owner)) + 1):
            chunk = self._chunks[int(np.searchsorted(starts, rows[positions[0]], side="right")) - 1]
            parts.append((chunk, positions, rows[positions] - chunk.first))
        return parts

    def _check_manifest(self) -> None:
        """Write the store's identity, or raise ValueError for a folder whose rows have another one."""
        ours = {"format": FORMAT, "fingerprint": self.fingerprint, "role": self.role, "dim": self.dim}
        path = self.folder / "store.json"
        if not path.exists():
            write_json(path, ours)
        found = read_json(path, "Delete that folder: its rows are computed again.")
        if found != ours:
            raise ValueError(
                f"The store {self.folder} holds {found}, but this run needs {ours}: vectors of different settings must "
                "not mix. Name another cache folder, or delete this one."
            )

    def _drop_leftovers(self) -> None:
        """Remove what killed processes of this machine left half-written; live ones are left alone."""
        for path in self.folder.glob(".writing.*"):
            host, process = path.name.split(".")[2:4]
            if host == _host() and process.isdigit() and not _alive(int(process)):
                shutil.rmtree(path, ignore_errors=True)  # another process may be removing it, too

    def _scan(self) -> None:
        """Open the chunks that have appeared since the last look."""
        for path in sorted(self.folder.glob("chunk-*")):
            if path.name not in self._known:
                self._open_chunk(path)

    def _open_chunk(self, path: Path) -> None:
        try:
            manifest = read_object(path / "chunk.json", "")
            keys = np.array(np.lib.format.open_memmap(path / "keys.npy", mode="r")).view(_KEY)[:, 0]
            shape = np.lib.format.open_memmap(path / "vectors.npy", mode="r").shape
            if shape != (manifest["rows"], self.dim) or len(keys) != manifest["rows"]:
                raise ValueError(f"{len(keys)} keys and vectors of shape {shape} for {manifest['rows']} rows")
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"The stored chunk {path} is damaged ({error}). Chunks are complete when they appear, so something "
                "else changed it. Delete that folder: its rows are computed again."
            ) from error
        chunk = _Chunk(path, manifest["rows"], float(manifest["seconds"]), len(self))
        self._index.add(keys, chunk.first)
        self._chunks.append(chunk)
        self._known.add(path.name)

    def _write_chunk(
        self,
        name: str,
        keys: NDArray[np.bytes_],
        vectors: Float32[np.ndarray, "texts dim"],
        thoughts: list[str] | None,
        seconds: float,
    ) -> None:
        # The process in the name lets a later run tell a killed writer from a live one.
        temporary = self.folder / f".writing.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            write_array(temporary / "keys.npy", keys[:, None].view(np.uint8))
            write_array(temporary / "vectors.npy", vectors)
            if thoughts is not None:
                write_text(temporary / "thoughts.jsonl", "".join(thoughts))
            write_json(temporary / "chunk.json", {"rows": len(keys), "seconds": round(seconds, 6)})
            try:
                temporary.rename(self.folder / name)
            except OSError:
                # Another process finished the same chunk first; anything else that stops a rename is an error.
                if not (self.folder / name / "chunk.json").exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _parse_thoughts(self, path: Path) -> list[StoredThought]:
        file = path / "thoughts.jsonl"
        if not file.exists():
            raise ValueError(
                f"The chunk {path.name} of role {self.role!r} holds vectors only: nothing was reasoned there."
            )
        lines = file.read_text(encoding="ascii").splitlines()
        records = [parse_json(line, file, number) for number, line in enumerate(lines, start=1)]
        return [StoredThought(record["reasoning"], record["token_ids"], record["finished"]) for record in records]


def _thought_lines(
    texts: Sequence[str], instructions: Sequence[str | None] | None, thoughts: Sequence[ThoughtLike]
) -> list[str]:
    """One JSON line per thought, with its text, so that the file can be read without the program."""
    lines = []
    for position, (text, thought) in enumerate(zip(texts, thoughts, strict=True)):
        record = {
            "text": text,
            "instruction": None if instructions is None else instructions[position],
            "reasoning": thought.text,
            "token_ids": [int(token) for token in thought.token_ids],
            "finished": bool(thought.finished),
        }
        lines.append(json.dumps(record) + "\n")  # ASCII: escapes keep even lone surrogates
    return lines


def _host() -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())


def _alive(process: int) -> bool:
    """Whether a process with this id runs; assumed where that cannot be asked safely."""
    if os.name != "posix":
        return True  # signal 0 would end a process on Windows
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
