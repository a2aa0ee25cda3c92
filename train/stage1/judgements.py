"""The judgements of all rows, whatever their source: which texts must never be negatives of which query.

A row names its own positives. Others may be in another row of the same query, in another source, or in the same folder
under another id: in-batch and hard negatives are compared with all of them. Queries and documents are known by their
texts, as the batch knows them (`text_ids`), so that copies under other ids are the same document.
"""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from train.data.mixing import TrainingData
from train.model.batches import text_ids

log = logging.getLogger(__name__)
_PAIRS_AT_ONCE = 8192


class JudgedTexts:
    """Relevant documents of the queries that have more than one; 16 bytes per pair of texts."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        parts = [np.zeros((0, 2), np.int64)]
        some: list[tuple[str, str]] = []
        for pair in pairs:
            some.append(pair)
            if len(some) == _PAIRS_AT_ONCE:
                parts.append(_ids(some))
                some = []
        parts.append(_ids(some))
        every = np.unique(np.concatenate(parts), axis=0)
        _, number, counts = np.unique(every[:, 0], return_inverse=True, return_counts=True)
        self._pairs = every[counts[number] > 1]  # a query's only document is known from its row

    @classmethod
    def of(cls, data: TrainingData) -> "JudgedTexts":
        """Those of every source, read once from beginning to end.

        Rows that the hub streams are not read ahead; of those a batch knows its own rows alone.
        """
        for stream in data.streams:
            if not stream.source.local:
                log.warning(
                    "%s is streamed from the hub, so its judgements are known only while they are in a batch: where a "
                    "query has several rows, one's document may be the other's negative. Download it to have them all.",
                    stream.label,
                )
        return cls((pair.query, pair.document) for pair in data.judgements())

    def of_queries(self, queries: Int[Tensor, " queries"]) -> Int[Tensor, "pairs 2"]:
        """The (query, document) pairs of these queries, by the ids of their texts; each once."""
        wanted = np.unique(queries.cpu().numpy())
        first = np.searchsorted(self._pairs[:, 0], wanted, side="left")
        last = np.searchsorted(self._pairs[:, 0], wanted, side="right")
        found = [self._pairs[a:b] for a, b in zip(first, last, strict=True)]
        return torch.from_numpy(np.concatenate([np.zeros((0, 2), np.int64), *found]))


def _ids(pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    columns = [text_ids([pair[side] for pair in pairs]).numpy() for side in (0, 1)]
    return np.stack(columns, axis=1)
