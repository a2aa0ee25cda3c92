"""One state of an index, opened: what a search or a change reads, whatever other processes do meanwhile."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from search_r3_mteb.indexing.documents import DocumentRow
from search_r3_mteb.indexing.parts import IndexPart
from search_r3_mteb.indexing.state import IndexState, check_part, read_state, version_of

_ATTEMPTS = 10


@dataclass(frozen=True)
class Place:
    """Where a document lies: the number of its part, and its row there."""

    part: int
    row: int


class Snapshot:
    """The parts of one state. `checked` are the files whose checksums have been compared, of this and later states."""

    def __init__(self, folder: Path, state: IndexState, version: object, checked: set[str], *, verify: bool) -> None:
        self.folder, self.state, self.version = folder, state, version
        self.parts = []
        for record in state.parts:
            check_part(folder, record, contents=verify, known=checked)
            self.parts.append(IndexPart(folder, record, state.settings))

    def nearest(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[tuple[Place, float]]]:
        """The `k` nearest documents of each query with their cosines, best first; equal ones by the order of adding."""
        found = [part.nearest(queries, k) for part in self.parts if part.record.living]
        numbers = [number for number, part in enumerate(self.parts) if part.record.living]
        if not found:
            return [[] for _ in queries]
        scores = np.concatenate([each.scores for each in found], axis=1)
        rows = np.concatenate([each.rows for each in found], axis=1)
        owner = np.repeat(numbers, [each.rows.shape[1] for each in found])
        results = []
        for row, score in zip(rows, scores, strict=True):
            best = np.lexsort((row, owner, -score))[:k]
            results.append([(Place(int(owner[i]), int(row[i])), float(score[i])) for i in best])
        return results

    def read(self, places: Iterable[Place]) -> dict[Place, DocumentRow]:
        """The documents that lie there."""
        by_part: dict[int, list[int]] = {}
        for place in set(places):
            by_part.setdefault(place.part, []).append(place.row)
        return {
            Place(part, row): document
            for part, rows in by_part.items()
            for row, document in zip(rows, self.parts[part].documents.read(rows), strict=True)
        }

    def places_of(self, ids: Iterable[str]) -> dict[str, Place]:
        """Where each id lies that is there."""
        wanted = list(ids)
        return {
            id_: Place(number, row)
            for number, part in enumerate(self.parts)
            for id_, row in part.rows_of(wanted).items()
        }

    def living_blocks(
        self, first: int, size: int
    ) -> Iterator[tuple[list[DocumentRow], Float[np.ndarray, "block dim"]]]:
        """Living documents and their vectors of the parts from number `first` on."""
        for part in self.parts[first:]:
            yield from part.living_blocks(size)


def open_snapshot(folder: Path, checked: set[str], *, verify: bool) -> Snapshot:
    """The state that is there now. Raises FileNotFoundError and ValueError.

    Another process may replace the state, and remove what the old one named, while its files are being opened: then the
    new one is opened.
    """
    for _ in range(_ATTEMPTS):
        version = version_of(folder)
        try:
            return Snapshot(folder, read_state(folder), version, checked, verify=verify)
        except (ValueError, OSError, sqlite3.Error, RuntimeError):  # SQLite and FAISS have their own for a lost file
            if version_of(folder) == version:
                raise
    raise OSError(f"{folder}: the index changed {_ATTEMPTS} times while it was being opened. Open it again.")
