"""Token ids of a corpus on disk: made once, by all processes, and read by every run over the same corpus.

    FOLDER/<fingerprint>/00000.tokens, 00001.tokens, ...      8,192 texts each

A part holds a header, the offsets of its texts (int64, one more than texts) and their ids one after the other (int32),
and is read as a memory map. The fingerprint is that of everything that decides the ids. Each part is written completely
or not at all, so a killed process loses the part that it was making; its header has a checksum of the whole, which is
compared when the part is first opened: a damaged part is named in the log and made again.
"""

import hashlib
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from search_r3_mteb.atomic import written_file
from train.disk.maps import FULL, no_room
from train.processes.replicas import Arrays, Replicas, on_all

PART_ROWS = 8192
_MAGIC = b"R3TOKEN1"
_HEADER = struct.Struct("<8s16sIIQ16s")  # magic, fingerprint, number, texts, ids; blake2b-128 of these and of the rest
PART_HEADER = _HEADER.size
_log = logging.getLogger(__name__)

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts -> the token ids of each, at least one."""


@dataclass(frozen=True)
class CorpusTokenizer:
    """How texts become token ids, and the folder that keeps them. `name` tells everything that decides the ids."""

    tokenize: Tokenize
    name: str
    folder: Path


@dataclass(frozen=True)
class TokenIds:
    """The ids of `n` texts in `folder`; `make` gives those of a range of rows, where a part has to be made again."""

    folder: Path
    n: int
    make: Callable[[range], Sequence[Sequence[int]]]
    _parts: dict[int, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        fingerprint: str,
        n: int,
        make: Callable[[range], Sequence[Sequence[int]]],
        replicas: Replicas,
    ) -> "TokenIds":
        """The ids under FOLDER/<fingerprint>. Parts that any process misses are made now, each process a share.

        Only the writing process of each machine writes. Raises OSError that names what is needed where the disk is full
        (on every process together), and what `make` raises.
        """
        found = cls(Path(folder) / hashlib.sha256(fingerprint.encode()).hexdigest()[:32], n, make)
        numbers = range(-(-n // PART_ROWS))
        own = [number for number in numbers if not found._open(number)]
        said = replicas.gather({"missing": np.array(own, dtype=np.int64)})
        missing = np.unique(np.concatenate([part["missing"] for part in said])).tolist()
        if missing:
            _log.info("Tokenising %d of %d parts of the corpus into %s.", len(missing), len(numbers), found.folder)
        for start in range(0, len(missing), replicas.size):
            share = missing[start : start + replicas.size]
            mine = share[replicas.rank : replicas.rank + 1]
            made = on_all(partial(found._made, mine), replicas, "tokenise its share of the documents")
            wanted = {
                number: part["bytes"].tobytes()
                for number, part in zip(share, made, strict=False)  # in the last round some have no part
                if replicas.writes and number in own
            }
            on_all(partial(found._write, wanted), replicas, "write the token ids of the corpus")
        return found

    def take(self, rows: Int[np.ndarray, " rows"]) -> list[list[int]]:
        """The ids of these rows."""
        taken = []
        for row in rows.tolist():
            offsets, ids = self._part(row // PART_ROWS)
            at = row % PART_ROWS
            taken.append(ids[offsets[at] : offsets[at + 1]].tolist())
        return taken

    def counts(self) -> Int[np.ndarray, " rows"]:
        """Number of ids of every text, int32."""
        parts = [np.diff(self._part(number)[0]) for number in range(-(-self.n // PART_ROWS))]
        return np.concatenate(parts).astype(np.int32)

    def _rows(self, number: int) -> range:
        return range(number * PART_ROWS, min(self.n, (number + 1) * PART_ROWS))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.tokens"

    def _part(self, number: int) -> tuple[Any, Any]:
        """Offsets and ids. A part that is lost after `open` is made again here, in memory."""
        if number not in self._parts and not self._open(number):
            self._parts[number] = _views(np.frombuffer(self._encoded(number), np.uint8), len(self._rows(number)))
        return self._parts[number]

    def _open(self, number: int) -> bool:
        """Map a part; False where it is missing or damaged, and the log says so."""
        file = self._file(number)
        if not file.is_file():
            return False
        rows = len(self._rows(number))
        try:
            whole = np.memmap(file, np.uint8, "r")
            reason = self._difference(whole, number)
        except (ValueError, OSError) as error:  # an empty file cannot be mapped
            reason = str(error)
        if reason:
            _log.warning("%s is damaged (%s): its %d texts are tokenised again.", file, reason, rows)
            return False
        self._parts[number] = _views(whole, rows)
        return True

    def _difference(self, whole: Any, number: int) -> str | None:
        if len(whole) < _HEADER.size:
            return "cut off"
        *_, ids, digest = _HEADER.unpack(whole[: _HEADER.size].tobytes())
        rows = len(self._rows(number))
        if len(whole) != _HEADER.size + 8 * (rows + 1) + 4 * ids:
            return f"{len(whole):,} bytes"
        head = self._header(number, ids, digest)
        intact = whole[: _HEADER.size].tobytes() == head and digest == _digest(head, whole[_HEADER.size :])
        return None if intact else "it does not match its checksum"

    def _header(self, number: int, ids: int, digest: bytes) -> bytes:
        rows = len(self._rows(number))
        return _HEADER.pack(_MAGIC, bytes.fromhex(self.folder.name), number, rows, ids, digest)

    def _encoded(self, number: int) -> bytes:
        rows = self._rows(number)
        lists = self.make(rows)
        if len(lists) != len(rows) or not all(map(len, lists)):
            raise ValueError(
                f"The tokenizer gives {len(lists)} lists of ids for {len(rows)} documents from row {rows.start}, the "
                f"shortest of length {min(map(len, lists), default=None)}: one of at least one id is needed for each."
            )
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        ids = np.concatenate([np.asarray(one, dtype=np.int32) for one in lists])
        rest = offsets.tobytes() + ids.tobytes()
        head = self._header(number, len(ids), bytes(16))
        return self._header(number, len(ids), _digest(head, rest)) + rest

    def _made(self, numbers: Sequence[int]) -> Arrays:
        return {"bytes": np.frombuffer(b"".join(map(self._encoded, numbers)), np.uint8)}

    def _write(self, parts: Mapping[int, bytes]) -> Arrays:
        for number, data in parts.items():
            try:
                with written_file(self._file(number)) as stream:
                    stream.write(data)
            except OSError as error:
                if error.errno in FULL:
                    raise no_room(self._file(number), len(data), error) from error
                raise
        return {}


def _views(whole: Any, rows: int) -> tuple[Any, Any]:
    """Offsets and ids of a part's bytes."""
    border = _HEADER.size + 8 * (rows + 1)
    return whole[_HEADER.size : border].view(np.int64), whole[border:].view(np.int32)


def _digest(head: bytes, rest: Any) -> bytes:
    """Of the header without its digest, and of what follows it."""
    state = hashlib.blake2b(head[:-16], digest_size=16)
    state.update(rest)
    return state.digest()
