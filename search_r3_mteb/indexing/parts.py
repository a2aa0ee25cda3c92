"""A part of an index, opened: its vectors, documents and removed rows, and the nearest of its rows to a query."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from search_r3_mteb.disk import naming
from search_r3_mteb.indexing.approximate import FAISS_FILE, Proposer, write_faiss
from search_r3_mteb.indexing.documents import DocumentRow, DocumentTable, DocumentWriter
from search_r3_mteb.indexing.settings import IndexKind, IndexSettings
from search_r3_mteb.indexing.state import PartRecord
from search_r3_mteb.search.exact import Found, exact_search
from search_r3_mteb.search.ivf import best_of

VECTORS_FILE, DOCUMENTS_FILE = "vectors.npy", "documents.sqlite"
_FURTHER = 4  # times as many rows are proposed as are asked for; a compressed copy ranks them only nearly
_AT_LEAST = 64


class IndexPart:
    """An opened part. What it has opened stays readable when another process removes the files."""

    def __init__(self, folder: Path, record: PartRecord, settings: IndexSettings) -> None:
        """Raises ValueError for files that do not belong together."""
        self.record = record
        place = folder / record.name
        self.vectors: Float[np.ndarray, "rows dim"] = np.load(place / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        self.living: Bool[np.ndarray, " rows"] | None = None
        if record.removed_file is not None:
            removed = np.load(folder / record.removed_file, allow_pickle=False)
            self.living = ~np.unpackbits(removed, count=record.rows, bitorder="little").astype(bool)
        self.documents = DocumentTable(place / DOCUMENTS_FILE)
        self._proposer = (
            None if record.kind == "flat" else Proposer(place / FAISS_FILE, record.kind, settings, self.living)
        )

    def nearest(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """The `k` nearest living rows of each query, or all where there are fewer; exact unless it is IVF or HNSW."""
        k = min(k, self.record.living)
        if self._proposer is None or k == 0:
            return exact_search(queries, self.vectors, max(k, 1), living=self.living)
        wanted = min(self.record.living, max(_FURTHER * k, _AT_LEAST))
        proposed = self._proposer.candidates(queries, wanted)
        found = best_of(queries, proposed, k, lambda rows: self.vectors[rows])
        short = np.flatnonzero(~np.isfinite(found.scores[:, k - 1]))
        if len(short):  # the lists or the walk held fewer living rows than are asked for
            exact = exact_search(queries[short], self.vectors, k, living=self.living)
            found.rows[short], found.scores[short] = exact.rows, exact.scores
        return found

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The living row of each id that is there."""
        found = self.documents.rows_of(ids)
        if self.living is None:
            return found
        return {id_: row for id_, row in found.items() if self.living[row]}

    def living_blocks(self, size: int) -> Iterator[tuple[list[DocumentRow], Float[np.ndarray, "block dim"]]]:
        """Living documents and their vectors, in order, at most `size` at a time."""
        first = 0
        for block in self.documents.blocks(size):
            rows = np.arange(first, first + len(block))
            first += len(block)
            kept = rows if self.living is None else rows[self.living[rows]]
            if len(kept):
                yield [block[row - rows[0]] for row in kept], self.vectors[kept]


class VectorWriter:
    """Writes the rows of a `.npy` file whose number is known at the end only."""

    def __init__(self, path: Path, dim: int) -> None:
        self.rows, self._dim = 0, dim
        self._stream = path.open("wb")
        self._start = self._header()

    def add(self, vectors: Float[np.ndarray, "rows dim"]) -> None:
        """Append rows."""
        self._stream.write(np.ascontiguousarray(vectors, np.float32).tobytes())
        self.rows += len(vectors)

    def close(self) -> None:
        """Write the number of rows, and close."""
        self._stream.seek(0)
        if self._header() != self._start:
            raise RuntimeError("NumPy's header has grown over the first row; its reserve of 21 digits was used up.")
        self._stream.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._stream.close()

    def _header(self) -> int:
        # NumPy leaves room for the first axis to grow.
        kind = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._stream, kind)
        return self._stream.tell()


def write_rows(
    place: Path,
    blocks: Iterable[tuple[list[DocumentRow], Float[np.ndarray, "block dim"]]],
    dim: int,
    kind_of: Callable[[int], IndexKind],
    settings: IndexSettings,
) -> tuple[int, IndexKind]:
    """Write the files of a part into the folder `place`; its number of rows, and how it is searched."""
    documents, vectors = DocumentWriter(place / DOCUMENTS_FILE), VectorWriter(place / VECTORS_FILE, dim)
    with naming(place):
        try:
            for rows, block in blocks:
                documents.add(rows)
                vectors.add(block)
            documents.close()
            vectors.close()
        finally:
            documents.abandon()
            vectors.abandon()
        kind = kind_of(vectors.rows)
        if kind != "flat":
            stored: Any = np.load(place / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
            write_faiss(place / FAISS_FILE, kind, stored, settings)
    return vectors.rows, kind
