"""Parquet files, read batch by batch with pyarrow, an optional library."""

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from search_r3_mteb.extras import how_to_install

_BATCH = 1024  # rows
MISSING = (
    "{} needs pyarrow, which reads and writes Parquet and is not installed: "
    f"{how_to_install('parquet')}. Or use .jsonl or .csv."
)


def library(what: str) -> Any:
    """The module `pyarrow`. Raises ImportError that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(MISSING.format(what)) from error
    return pyarrow


def read_parquet(
    stream: BinaryIO, place: str, *, seekable: bool, fractions: bool = False
) -> tuple[list[str], Callable[[list[str]], Iterator[dict[str, Any]]]]:
    """The names of the columns, and a function that gives the rows, streamed, with the columns that it is given.

    Standard input and packed files are not `seekable` and are held in memory. Raises ValueError for what is not Parquet
    or is damaged, and for a column of another type than strings or whole numbers (or, with `fractions`, floats).
    """
    arrow = library(f"{place}, a Parquet file,")
    try:
        file = arrow.parquet.ParquetFile(stream if seekable else io.BytesIO(stream.read()))
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{place} is not a Parquet file, or is damaged ({error}). Make it again.") from error
    schema = file.schema_arrow

    def rows(names: list[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            if not (fractions and arrow.types.is_floating(schema.field(name).type)):
                _check_type(arrow, schema.field(name).type, name, place)
        try:
            for batch in file.iter_batches(batch_size=_BATCH, columns=names):
                yield from batch.to_pylist()
        except (arrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{place} is damaged ({error}). Make it again.") from error

    return list(schema.names), rows


def _check_type(arrow: Any, type_: Any, name: str, place: str) -> None:
    if arrow.types.is_dictionary(type_):
        type_ = type_.value_type
    strings = ("is_string", "is_large_string", "is_string_view", "is_integer", "is_null")
    if not any(getattr(arrow.types, check)(type_) for check in strings):
        raise ValueError(
            f"{place}: the column {name!r} is of type {type_}, and texts are strings (ids also whole numbers). Convert "
            "it, or name another column."
        )
