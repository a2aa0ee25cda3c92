"""Ids, titles and texts of a part, in an SQLite file that is written once: read row by row, never in memory as a whole.

SQLite finds a row by its number and by its id, and refuses an id that comes twice, for a corpus of any size.
"""

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from search_r3_mteb.encoder.text_checks import check_text

DocumentRow = tuple[str, str, str]
"""Id, title and text of a document; the title is "" where it has none."""
_AT_ONCE = 500  # ids or rows in one statement
_TABLE = """CREATE TABLE documents
    (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL)"""


def row_of(document: Any, position: int) -> DocumentRow:
    """Id, title and text of a document: an object that has them, or a mapping ("_id" will do).

    Raises TypeError and ValueError, with the document's number, for what has none.
    """
    if isinstance(document, Mapping):
        values = [document.get("id", document.get("_id")), document.get("title"), document.get("text")]
    else:
        values = [getattr(document, name, None) for name in ("id", "title", "text")]
    id_, title, text = values
    if not isinstance(id_, str) or not id_ or not isinstance(text, str):
        raise TypeError(
            f"Document {position} needs an id and a text, got {document!r:.80}. Give objects with the fields id, title "
            "and text, or mappings of these."
        )
    title = "" if title is None else title
    for value in (id_, title, text):
        check_text(value, position, "Document")
    return id_, title, text


class DocumentWriter:
    """Writes the documents of a new part, in the order of their rows."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._connection = sqlite3.connect(path)
        # The file is thrown away after a kill, so nothing has to survive one before it is complete.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(_TABLE)

    def add(self, documents: Sequence[DocumentRow]) -> None:
        """Append documents. Raises ValueError for an id that an earlier one has, OSError for a full disk."""
        rows = [(row, *document) for row, document in enumerate(documents, start=self.rows)]
        try:
            self._connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise ValueError(
                f"Two documents have the id {self._repeated(documents)!r:.80}, by which they are found and removed. "
                "Give each its own."
            ) from error
        except sqlite3.OperationalError as error:
            raise self._of_disk(error) from error
        self.rows += len(rows)

    def close(self) -> None:
        """Complete the file."""
        try:
            self._connection.commit()
        except sqlite3.OperationalError as error:
            raise self._of_disk(error) from error
        self._connection.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._connection.close()

    def _of_disk(self, error: sqlite3.OperationalError) -> OSError:
        number = errno.ENOSPC if error.sqlite_errorname == "SQLITE_FULL" else errno.EIO
        return OSError(number, os.strerror(number), str(self.path))

    def _repeated(self, documents: Sequence[DocumentRow]) -> str:
        seen: set[str] = set()
        for number, (id_, *_) in enumerate(documents, start=self.rows):
            found = self._connection.execute("SELECT row FROM documents WHERE id = ?", (id_,)).fetchone()
            if id_ in seen or (found is not None and found[0] < number):
                return id_
            seen.add(id_)
        return "?"


class DocumentTable:
    """The documents of a part. Any thread may read it."""

    def __init__(self, path: Path) -> None:
        address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        self._lock = Lock()

    def read(self, rows: Sequence[int]) -> list[DocumentRow]:
        """The documents of these rows, in the order asked for."""
        found: dict[int, DocumentRow] = {}
        for part in _parts([int(row) for row in rows]):
            found |= {row: (id_, title, text) for row, id_, title, text in self._select("*", "row", part)}
        return [found[int(row)] for row in rows]

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The row of each id that is there."""
        found: dict[str, int] = {}
        for part in _parts(list(ids)):
            found |= dict(self._select("id, row", "id", part))
        return found

    def blocks(self, size: int) -> Iterator[list[DocumentRow]]:
        """All documents in the order of their rows, `size` at a time."""
        first = 0
        while True:
            with self._lock, closing(self._connection.cursor()) as cursor:
                statement = "SELECT id, title, text FROM documents WHERE row >= ? ORDER BY row LIMIT ?"
                block = cursor.execute(statement, (first, size)).fetchall()
            if not block:
                return
            yield block
            first += len(block)

    def _select(self, what: str, column: str, values: Sequence[Any]) -> list[Any]:
        marks = ", ".join("?" * len(values))
        with self._lock, closing(self._connection.cursor()) as cursor:
            return cursor.execute(f"SELECT {what} FROM documents WHERE {column} IN ({marks})", values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
