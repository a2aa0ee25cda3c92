"""What stage 2's corpus takes: bytes of the corpus cache on disk and in the host's memory, and of the texts."""

import sys
from dataclasses import dataclass

import numpy as np

from search_r3_mteb.search.storage import numpy_dtype
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.neighbor_graph import columns
from train.disk.token_ids import PART_HEADER, PART_ROWS

_INT32, _INT64 = 4, 8
_TABLE = 58  # bytes of an entry of a dict and of the number that it leads to, measured over 300,000 ids
MILLION = 1_000_000


@dataclass(frozen=True)
class CacheSize:
    """Bytes of a corpus cache of `documents` vectors of length `dim`, as `train/corpus_cache/state.py` lays it out.

    `rows` are the memory-mapped arrays with a row per document: the host keeps them in its page cache, once per
    machine. `maps` are the drift maps with the fit's memory, at most, which lie in the memory of every process. `log`
    is the change log, at most but for one refresh. `copies` of all of it lie on disk: the working one, the checkpoints
    that stay, and the one that is written; beside them, once, the `tokens`: the documents' token ids.
    """

    documents: int
    dim: int
    rows: int
    maps: int
    log: int
    copies: int
    tokens: int

    @classmethod
    def of(
        cls, settings: CorpusCacheSettings, documents: int, dim: int, keep: int, tokens_per_document: float
    ) -> "CacheSize":
        """The size under `settings`; `keep` is checkpoint.keep, beside which the best one stays."""
        per_row = dim * numpy_dtype(settings.storage).itemsize + 3 * _INT32
        per_row += _INT32 * columns(max(documents, 2), settings.neighbors)
        if settings.originals:
            per_row += dim * np.dtype(np.float32).itemsize
        square = (dim + 1) * dim * 4
        parts = -(-documents // PART_ROWS)
        tokens = round(documents * (tokens_per_document * _INT32 + _INT64)) + parts * (PART_HEADER + _INT64)
        maps = settings.max_maps * square + (dim + 1) ** 2 * 4 if settings.uses_map else 0
        return cls(documents, dim, documents * per_row, maps, settings.log_megabytes << 20, keep + 3, tokens)

    @property
    def bytes_per_document(self) -> float:
        """Of the memory maps."""
        return self.rows / self.documents

    @property
    def one_copy(self) -> int:
        """Bytes of one cache folder, at most but for one refresh in its log."""
        return self.rows + self.maps + self.log

    @property
    def disk(self) -> int:
        """Bytes of all copies, of which only the working one has a log, and of the token ids."""
        return self.copies * (self.rows + self.maps) + self.log + self.tokens

    def lines(self, text_bytes: int | None, *, bound: bool = False) -> list[str]:
        """The size in words; `text_bytes` are the texts and ids in one process, None where they are not known.

        `bound`: the documents' length is not known, and `tokens` are those of the longest.
        """
        million = "" if self.documents == MILLION else f" ({_gib(self.bytes_per_document * MILLION)} per million)"
        lines = [
            f"corpus cache: {self.documents:,} documents{' (assumed)' if text_bytes is None else ''} of "
            f"{self.bytes_per_document:,.0f} bytes: host memory {_gib(self.rows)}{million} once per machine as memory "
            f"maps, and {_gib(self.maps)} of drift maps in every process",
            f"corpus cache on disk: {_gib(self.one_copy)} a copy, {self.copies} copies at most (working, "
            f"checkpoint.keep, best, the one being written), and {_gib(self.tokens)} of token ids"
            f"{' at most' if bound else ''}: {_gib(self.disk)}",
        ]
        if text_bytes is not None:
            lines.append(f"corpus texts and ids: {_gib(text_bytes)} of host memory in every process")
        return lines


def text_bytes(text: str, id_: str) -> int:
    """Bytes that a document takes in a process: text and id as strings, their places in two lists and a table."""
    return sys.getsizeof(text) + sys.getsizeof(id_) + 2 * 8 + _TABLE


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB"
