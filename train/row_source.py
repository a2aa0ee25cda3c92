"""What a source of training rows is, and a place on disk for rows that are joined or generated."""

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from train.rows import TrainingRow


class RowSource(ABC):
    """Rows of one place. `count` is None where rows can only be read in order."""

    label: str
    count: int | None = None

    @abstractmethod
    def iterate(self, start: int = 0) -> Iterator[Any]:
        """Raw rows from position `start` on, in file order."""

    @abstractmethod
    def parse(self, raw: Any, epoch: int) -> TrainingRow | None:
        """The row, None where there is none (a blank line). Raises BadRowError."""

    def at(self, position: int) -> Any:
        """The raw row at a position; only where `count` is known."""
        raise TypeError(f"{self.label} can only be read in order.")

    def rejected(self) -> list[str]:
        """Malformed rows that were left out while the source was opened, as messages."""
        return []


class Spill:
    """JSON values in an anonymous temporary file, found by their offset. It vanishes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        self._end = 0

    def add(self, value: Any) -> int:
        """Append a value; the offset to `get` it by."""
        place = self._end
        self._file.seek(place)
        self._end += self._file.write(json.dumps(value).encode("ascii") + b"\n")
        return place

    def get(self, place: int) -> Any:
        """The value at an offset."""
        self._file.seek(place)
        return json.loads(self._file.readline())
