"""Files of vectors, written part by part and there completely or not at all: .npy, .parquet, .jsonl.

    vectors.npy       rows in the order of the input, (n, dim); ids in vectors.ids.txt beside it, one per line
    vectors.parquet   id, vector, reasoning (null where nothing was reasoned)
    vectors.jsonl     {"id", "vector", "reasoning"}, one per line

For int8 and uint8 the ranges that were used are beside it, too: vectors.ranges.npy (2, dim), and for the others
vectors.parquet.ranges.npy and vectors.jsonl.ranges.npy.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_r3_mteb.atomic import written_file
from search_r3_mteb.files.opening import STANDARD_INPUT
from search_r3_mteb.files.parquet import library
from search_r3_mteb.files.precisions import RANGES_ENDING

NPY, PARQUET, JSONL = ".npy", ".parquet", ".jsonl"
_ENDINGS = (NPY, PARQUET, JSONL)
_IDS_ENDING = ".ids.txt"
ReasoningColumn: TypeAlias = Sequence[str] | None  # the reasonings of rows; None where nothing was reasoned


class VectorFile(Protocol):
    """A file of vectors that is being written."""

    def begin(self, dtype: np.dtype, width: int) -> None:
        """Fix the type of the vectors and their number of columns, before any row."""

    def write(self, ids: Sequence[str], vectors: NDArray[np.generic], reasonings: ReasoningColumn) -> None:
        """Add rows."""


def ids_file(output: Path) -> Path:
    """Where the ids of a .npy are."""
    return output.with_name(output.name.removesuffix(NPY) + _IDS_ENDING)


def ranges_file(output: Path) -> Path:
    """Where the ranges of int8 and uint8 are: of one output alone, whatever lies beside it."""
    return output.with_name(output.name.removesuffix(NPY) + RANGES_ENDING)


def check_output(output: Path, source: str | Path) -> None:
    """Raise for an output that cannot be written, before any work: its name, its place, what is there already.

    ValueError for another ending, for the input itself and for what is not an ordinary file; OSError where nothing may
    be written.
    """
    if output.suffix.lower() not in _ENDINGS:
        raise ValueError(f"--output {output} must end in .npy, .parquet or .jsonl: vectors are written as one of them.")
    if output.suffix.lower() == PARQUET:
        library(f"--output {output}")
    beside = [ids_file(output)] if output.suffix.lower() == NPY else []
    for path in (output, *beside, ranges_file(output)):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(
                f"--output {path} is {'a folder' if path.is_dir() else 'not an ordinary file'}. Name a file."
            )
        if str(source) != STANDARD_INPUT and path.exists() and Path(source).exists() and path.samefile(source):
            raise ValueError(f"--output {path} is the input itself, which would be lost. Name another file.")


@contextmanager
def written_vectors(output: Path) -> Iterator[VectorFile]:
    """A file of vectors to `begin` and `write`, complete when the block ends; after an error as it was before."""
    kinds: dict[str, type[_Npy] | type[_Parquet] | type[_JsonLines]] = {NPY: _Npy, PARQUET: _Parquet, JSONL: _JsonLines}
    ending = output.suffix.lower()
    beside = [ids_file(output)] if ending == NPY else []
    with ExitStack() as stack:
        streams = [stack.enter_context(written_file(path)) for path in [*beside, output]]  # the last takes place first
        file = kinds[ending](*reversed(streams))
        yield file
        file.finish()
        # Killed between two of them, vectors without ids or ranges are left, and never ones with those of another run.
        for path in (*beside, ranges_file(output)):
            path.unlink(missing_ok=True)


class _Npy:
    def __init__(self, stream: BinaryIO, ids: BinaryIO) -> None:
        self._stream, self._ids, self._shape, self._begin = stream, ids, (0, 0), 0

    def begin(self, dtype: np.dtype, width: int) -> None:
        self._dtype, self._shape = dtype, (0, width)
        self._header()
        self._begin = self._stream.tell()

    def write(self, ids: Sequence[str], vectors: NDArray[np.generic], reasonings: ReasoningColumn) -> None:
        for id_ in ids:
            if id_.splitlines() != [id_]:
                raise ValueError(
                    f"The id {id_!r} holds a line break, and the ids of a .npy are written one per line. Write "
                    ".parquet or .jsonl, or number the rows: --id ''."
                )
        self._ids.write("".join(f"{id_}\n" for id_ in ids).encode())
        self._stream.write(np.ascontiguousarray(vectors, self._dtype).tobytes())
        self._shape = (self._shape[0] + len(ids), self._shape[1])

    def finish(self) -> None:
        """Write the number of rows into the header, which has room for it."""
        self._stream.seek(0)
        self._header()
        if self._stream.tell() != self._begin:
            raise RuntimeError("The header of a .npy has grown while its rows were written; please report this.")
        self._stream.seek(0, os.SEEK_END)

    def _header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._stream, header)


class _Parquet:
    def __init__(self, stream: BinaryIO) -> None:
        self._arrow, self._stream = library("Parquet"), stream

    def begin(self, dtype: np.dtype, width: int) -> None:
        arrow = self._arrow
        self._dtype, self._width = dtype, width
        vector, text = arrow.list_(arrow.from_numpy_dtype(dtype), width), arrow.string()
        self._schema = arrow.schema([("id", text), ("vector", vector), ("reasoning", text)])
        self._writer = arrow.parquet.ParquetWriter(self._stream, self._schema)

    def write(self, ids: Sequence[str], vectors: NDArray[np.generic], reasonings: ReasoningColumn) -> None:
        arrow = self._arrow
        cells = arrow.array(np.ascontiguousarray(vectors, self._dtype).reshape(-1))
        columns = [
            arrow.array(ids, arrow.string()),
            arrow.FixedSizeListArray.from_arrays(cells, self._width),
            arrow.array([None] * len(ids) if reasonings is None else list(reasonings), arrow.string()),
        ]
        self._writer.write_table(arrow.table(columns, schema=self._schema))

    def finish(self) -> None:
        """Write Parquet's end."""
        self._writer.close()


class _JsonLines:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def begin(self, dtype: np.dtype, width: int) -> None:
        self._dtype = dtype

    def write(self, ids: Sequence[str], vectors: NDArray[np.generic], reasonings: ReasoningColumn) -> None:
        for row, (id_, vector) in enumerate(zip(ids, vectors, strict=True)):
            record: dict[str, Any] = {"id": id_, "vector": [_shortest(value) for value in vector]}
            if reasonings is not None:
                record["reasoning"] = reasonings[row]
            self._stream.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def finish(self) -> None:
        """Nothing more is written."""


def _shortest(value: Any) -> float | int:
    """A number in the fewest digits that give it back in its own precision."""
    return int(value) if value.dtype.kind in "iu" else float(str(value))
