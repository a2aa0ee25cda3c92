"""Tables of other libraries as columns, and the containers that no list of texts can be read from.

Iterating over a data frame gives the names of its columns, over one of its rows the cells, over a set any order: each
looks like a list of texts and is none. Types are told by what they have, so that no library is imported for it.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any


def column_names(value: Any) -> list[str] | None:
    """The names of a table's columns, None for what is not a table.

    Tables are data frames (pandas, polars and their like), those of pyarrow and datasets, and numpy arrays with fields.
    """
    names = getattr(getattr(value, "dtype", None), "names", None)
    if names is None and hasattr(value, "__len__"):
        names = getattr(value, "column_names", None)
        if names is None and hasattr(value, "columns"):
            names = value.columns
    return None if names is None or isinstance(value, Mapping) else [str(name) for name in names]


def column(table: Any, name: str) -> list[Any]:
    """The cells of a table's column, a missing one as None. Raises ValueError for a name that stands there twice."""
    names = column_names(table) or []
    if names.count(name) != 1:
        raise ValueError(f"The {type_name(table)} has {names.count(name)} columns named {name!r}. Leave one of them.")
    return cells(table[name])


def cells(values: Any) -> list[Any]:
    """The values of a column as Python objects; a missing one (NaN, NA) is None."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    return [None if is_missing(value) else value for value in values]


def is_missing(value: Any) -> bool:
    """Whether a cell is the mark of a missing value: NaN, NA or NaT. None is told from them."""
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def check_list(value: Any, what: str) -> None:
    """TypeError for a container that looks like a list of texts and is none; `what` ("text", "document") is wanted.

    Refused are what cannot be iterated, bytes, sets (they have no order), open files, one row of a table, and a named
    tuple. Mappings and tables are not looked at.
    """
    got = f"A {what} or a list of {what}s is needed, got {type_name(value)}"
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{got} {bytes(value[:40])!r}: bytes are not text. Write value.decode('utf-8').")
    if isinstance(value, AbstractSet) and not hasattr(value, "mapping"):  # a dictionary's keys have an order
        raise TypeError(f"{got}, which has no order, so no vector could be told from another. Write sorted(value).")
    if hasattr(value, "readline"):
        raise TypeError(f"{got}, an open file. Write [line.rstrip('\\n') for line in file].")
    if hasattr(value, "_fields"):
        raise TypeError(f"{got} {value!r:.60}: a named tuple is one row, not a list. Name its field: value.text.")
    index = getattr(value, "index", None)
    if index is not None and not callable(index) and getattr(value, "ndim", 1) == 1 and "text" in index:
        raise TypeError(f"{got} whose index holds 'text', one row of a table. Write row['text'], or row.to_dict().")
    if getattr(value, "ndim", 1) == 0 or not (hasattr(value, "__iter__") or column_names(value)):
        raise TypeError(f"{got}: {value!r:.60}. Write [{what}, ...].")
    named = hasattr(value, "keys") and not isinstance(value, Mapping) and column_names(value) is None
    if named and not hasattr(value, "tolist"):  # a pandas Series has keys, its index, and is a list all the same
        raise TypeError(f"{got}, whose values have names. Write [{what}, ...].")


def type_name(value: Any) -> str:
    """The type's name in messages, with its library where that is not Python itself: "pandas DataFrame"."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    return kind.__name__ if library in ("builtins", "_io", "pathlib") else f"{library} {kind.__name__}"
