"""The indexes of a server, and their hits for vectors that the service has computed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from search_r3_mteb.serving.errors import RequestError
from search_r3_mteb.serving.service import Answer

_log = logging.getLogger(__name__)


class Searches:
    """Opened indexes by name."""

    def __init__(self, indexes: Mapping[str, Any]) -> None:
        self._indexes = dict(indexes)

    def listed(self) -> list[dict[str, Any]]:
        """Name and number of documents of each; None for one that cannot be read just now."""
        return [{"id": name, "documents": self._documents(name)} for name in self._indexes]

    def _documents(self, name: str) -> int | None:
        """The number of documents; None, and a line in the log, where the index was damaged, removed or replaced."""
        index = self._indexes[name]
        try:
            index.check()
            return len(index)
        except (OSError, ValueError) as error:  # it names files and encodings, and no text
            _log.error("Index %s cannot be searched: %s", name, error)
            return None

    def chosen(self, name: str | None) -> str:
        """The name of the index that a request means. Raises RequestError where there is none or it is not clear."""
        names = ", ".join(repr(each) for each in self._indexes)
        if not self._indexes:
            raise RequestError(
                404, "This server has no index to search. Start it with --index FOLDER.", param="index", code="no_index"
            )
        if name is None and len(self._indexes) == 1:
            return next(iter(self._indexes))
        if name is None:
            raise RequestError(400, f"Say which index: one of {names}.", param="index")
        if name not in self._indexes:
            raise RequestError(404, f"There is no index {name!r:.80}, only {names}.", param="index", code="no_index")
        return name

    def search(self, name: str, questions: Sequence[str], answers: Sequence[Answer], k: int) -> list[dict[str, Any]]:
        """The k best documents of each question, and its reasoning, as JSON. RequestError where it cannot be read."""
        if self._documents(name) is None:
            raise RequestError(
                503,
                f"The index {name!r} cannot be searched now: its files were damaged, removed or replaced since the "
                "server was started. The server's log says which.",
                param="index",
                code="index_unavailable",
            )
        vectors, thoughts = np.stack([each.vector for each in answers]), [each.thought for each in answers]
        found = self._indexes[name].find(questions, vectors, k, thoughts)
        return [
            {
                "query": each.query,
                "reasoning": None if each.thought is None else each.thought.text,
                "finished": None if each.thought is None else each.thought.finished,
                "truncated_tokens": answer.truncated_tokens,
                "hits": [asdict(hit) for hit in each.hits],
            }
            for each, answer in zip(found, answers, strict=True)
        ]
