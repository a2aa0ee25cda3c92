"""Vectors and thoughts on disk: one row per (fingerprint, role, text), so that a killed run resumes at its last chunk.

    FOLDER/ROLE-FINGERPRINT/store.json     what the rows belong to
    FOLDER/ROLE-FINGERPRINT/chunk-NAME/    keys.npy  vectors.npy  thoughts.jsonl  chunk.json (manifest, written last)

A chunk is written into a hidden folder and renamed when it is complete, so a reader sees all of it or nothing. Its name
is the hash of the keys that it holds: the run that is started again writes the same names, and two processes at once
can only ever write the same chunk twice (the second copy is dropped) or different ones. Nothing is overwritten. Plain
`.npy` and JSON, read memory-mapped; no pickle.

Every file has a checksum (`stored_chunks.py`): manifest and keys are compared when a chunk is opened, vectors and
thoughts before their first use. A damaged chunk is renamed to damaged-..., a warning names it, and its rows are
missing, so they are computed again. Stores of the first format had no checksums: they are refused, since nothing
vouches for their rows.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from search_r3_mteb.atomic import clean, temporary_folder, write_text
from search_r3_mteb.encoder.key_index import KeyIndex
from search_r3_mteb.encoder.stored_chunks import (
    KEY,
    THOUGHTS_FILE,
    DamagedError,
    StoredChunk,
    chunk_name,
    read_chunk,
    sealed,
    unsealed,
    write_chunk,
)
from search_r3_mteb.json_files import parse_json
from search_r3_mteb.locks import locked

FORMAT = 2
ROLES = ("query", "document")
STORE_FILE = "store.json"
_WRITING = "chunk"  # the hidden name of a chunk while it is written
_Checked = TypeVar("_Checked")
_log = logging.getLogger(__name__)


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
    keys = np.empty(len(texts), dtype=KEY)
    for position, text in enumerate(texts):
        instruction = None if instructions is None else instructions[position]
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(f"{len(data)}:".encode() + data)
        if instruction:
            digest.update(instruction.encode("utf-8", "surrogatepass"))
        keys[position] = digest.digest()
    return keys


class Store:
    """The rows of one fingerprint and role under `folder`.

    `fingerprint` is a hex digest over everything that decides a vector (see `fingerprint_of`), `dim` the vectors'
    length. Raises ValueError when the folder holds rows of another fingerprint, role or length, or of the first format,
    which had no checksums; PermissionError where a file cannot be read, or a damaged one not be renamed.
    """

    def __init__(self, folder: Path | str, fingerprint: str, role: str, dim: int) -> None:
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}.")
        if not fingerprint or set(fingerprint) - set("0123456789abcdef"):
            raise ValueError(f"fingerprint must be a hex digest, got {fingerprint!r}: it becomes a folder's name.")
        self.role, self.dim, self.fingerprint = role, dim, fingerprint
        self.folder = Path(folder) / f"{role}-{fingerprint}"
        self._identity = {"format": FORMAT, "fingerprint": fingerprint, "role": role, "dim": dim}
        self._chunks: list[StoredChunk] = []
        self._known: set[str] = set()
        self._checked: set[str] = set()  # the chunks whose vectors and thoughts have been read whole
        self._index = KeyIndex()
        # The cache belongs to this object, so that it is freed with it.
        self._read_thoughts = lru_cache(maxsize=8)(self._parse_thoughts)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        clean(self.folder)  # what killed processes left
        self._scan()

    def __len__(self) -> int:
        """Number of rows that can be looked up."""
        return self._chunks[-1].first + self._chunks[-1].rows if self._chunks else 0

    def missing(self, texts: Sequence[str], instructions: Sequence[str | None] | None = None) -> list[int]:
        """Positions of the texts that are not stored yet, in their order; a text that occurs twice is listed once."""
        self._scan()  # another process may have written meanwhile
        keys = _keys_of(texts, instructions)
        absent = np.flatnonzero(self._find(keys) < 0)
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
        name = chunk_name(keys)
        if name not in self._known:
            lines = None if thoughts is None else _thought_lines(texts, instructions, thoughts)
            self._write_chunk(name, keys, vectors, lines, seconds)
            if not self._open_chunk(self.folder / name):  # another process's copy, which is damaged
                self._write_chunk(name, keys, vectors, lines, seconds)
                self._open_chunk(self.folder / name)

    def lookup(
        self, texts: Sequence[str], instructions: Sequence[str | None] | None = None
    ) -> Float32[np.ndarray, "texts dim"]:
        """The vectors, in the order of the texts. Raises ValueError when one is not stored."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for chunk, positions, rows in self._located(texts, instructions):
            vectors[positions] = chunk.vectors()[rows]
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
    ) -> list[tuple[StoredChunk, Int64[np.ndarray, " part"], Int64[np.ndarray, " part"]]]:
        """The texts by chunk: (chunk, positions among `texts`, rows inside the chunk)."""
        rows = self._find(_keys_of(texts, instructions))
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

    def _find(self, keys: NDArray[np.bytes_]) -> Int64[np.ndarray, " keys"]:
        """The row of each key, -1 where it is not stored; every chunk that has one is intact."""
        while True:
            rows = self._index.find(keys)
            starts = np.array([chunk.first for chunk in self._chunks])
            touched = np.unique(np.searchsorted(starts, rows[rows >= 0], side="right") - 1)
            opened = [self._chunks[int(number)] for number in touched]
            unchecked = [chunk for chunk in opened if chunk.path.name not in self._checked]
            damaged = [chunk for chunk in unchecked if not self._intact(chunk)]
            if not damaged:
                return rows
            self._chunks.clear()
            self._known.clear()
            self._index = KeyIndex()
            self._scan()

    def _intact(self, chunk: StoredChunk) -> bool:
        """Whether the chunk's rows are what was written; a chunk whose rows are not is set aside."""

        def check() -> bool:
            chunk.check()
            return True

        if self._or_set_aside(chunk.path, check) is None:
            return False
        self._checked.add(chunk.path.name)
        return True

    def _or_set_aside(self, path: Path, read: Callable[[], _Checked]) -> _Checked | None:
        """What `read` gives, or None where `path` is damaged: then it is renamed, and a warning names it."""
        try:
            return read()
        except DamagedError:
            pass
        with locked(self.folder):
            try:
                return read()  # another process may have put an intact one into its place
            except DamagedError as error:
                aside = path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}")
                if not path.exists():
                    return None  # another process set it aside
                path.rename(aside)
                _log.warning(
                    "%s is damaged (%s). It was complete when it was written, so something else changed it. It is now "
                    "%s, and what it held is computed again.",
                    path,
                    error,
                    aside.name,
                )
        return None

    def _check_manifest(self) -> None:
        """Write the store's identity, or raise ValueError for a folder whose rows have another one."""
        path = self.folder / STORE_FILE
        if not path.exists():
            write_text(path, sealed(self._identity))
        self._refuse_first_format(path)
        found = self._or_set_aside(path, lambda: unsealed(path))
        if found is None:
            write_text(path, sealed(self._identity))  # every chunk says itself whose it is
        elif found != self._identity:
            raise ValueError(
                f"The store {self.folder} holds {found}, but this run needs {self._identity}: vectors of different "
                "settings must not mix. Name another cache folder, or delete this one."
            )

    def _refuse_first_format(self, path: Path) -> None:
        """ValueError for a store that was written before there were checksums."""
        try:
            found = parse_json(path.read_bytes(), path)
        except (ValueError, FileNotFoundError, IsADirectoryError):
            return  # damaged
        if isinstance(found, dict) and found.get("format") == 1 and "checksum" not in found:
            raise ValueError(
                f"The store {self.folder} was written by an earlier version, without checksums: nothing shows whether "
                "its rows are what was computed. Delete that folder (its rows are computed again), or name another "
                "cache folder."
            )

    def _scan(self) -> None:
        """Open the chunks that have appeared since the last look."""
        for path in sorted(self.folder.glob("chunk-*")):
            if path.name not in self._known:
                self._open_chunk(path)

    def _open_chunk(self, path: Path) -> bool:
        """Enter a chunk's keys; False for a damaged one, which is set aside."""
        opened = self._or_set_aside(path, lambda: read_chunk(path, self._identity, len(self)))
        if opened is None:
            return False
        chunk, keys = opened
        self._index.add(keys, chunk.first)
        self._chunks.append(chunk)
        self._known.add(path.name)
        return True

    def _write_chunk(
        self,
        name: str,
        keys: NDArray[np.bytes_],
        vectors: Float32[np.ndarray, "texts dim"],
        thoughts: list[str] | None,
        seconds: float,
    ) -> None:
        with temporary_folder(self.folder / _WRITING) as temporary:
            write_chunk(temporary, self._identity, keys, vectors, thoughts, seconds)
            try:
                temporary.rename(self.folder / name)
            except OSError:
                # Another process finished the same chunk first; anything else that stops a rename is an error.
                if not (self.folder / name).is_dir():
                    raise

    def _parse_thoughts(self, path: Path) -> list[StoredThought]:
        file = path / THOUGHTS_FILE
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
