"""FAISS indexes that propose rows: inverted lists (IVF) and a graph of neighbours (HNSW), over a compressed copy.

What they propose is scored again from the float32 vectors, so a score is the same whatever has found its document.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from search_r3_mteb.disk import FULL
from search_r3_mteb.indexing.settings import IndexKind, IndexSettings

FAISS_FILE = "index.faiss"
_ADDED_AT_ONCE = 1 << 16
_ROWS_PER_LIST = 39  # below, FAISS warns that its k-means has too few points
_PROBED_SHARE, _PROBED_AT_LEAST = 16, 32
_SAMPLED_PER_LIST = 64  # rows from which k-means learns; FAISS itself takes up to 256


def write_faiss(path: Path, kind: IndexKind, vectors: Float[np.ndarray, "rows dim"], settings: IndexSettings) -> None:
    """Build an index of the rows and write it; the seed is fixed, so the same rows give the same lists.

    Both kinds keep 8 bits per dimension.
    """
    import faiss as library

    faiss: Any = library
    (rows, dim), bits = vectors.shape, faiss.ScalarQuantizer.QT_8bit
    random = np.random.default_rng(0)
    if kind == "ivf":
        lists = settings.ivf_lists or int(rows**0.5)
        lists = max(1, min(lists, rows // _ROWS_PER_LIST))
        quantizer = faiss.IndexFlatIP(dim)
        index: Any = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, bits, faiss.METRIC_INNER_PRODUCT, False)
        learned = _SAMPLED_PER_LIST * lists
    else:
        index = faiss.IndexHNSWSQ(dim, bits, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.hnsw_build
        learned = _ADDED_AT_ONCE
    chosen = np.sort(random.choice(rows, min(rows, max(256, learned)), replace=False))
    index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(0, rows, _ADDED_AT_ONCE):
        index.add(np.ascontiguousarray(vectors[start : start + _ADDED_AT_ONCE]))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS names the system's reason in its text only
        full = next((number for number in FULL if os.strerror(number) in str(error)), None)
        if full is None:
            raise
        raise OSError(full, os.strerror(full), str(path)) from error


class Proposer:
    """A written index, memory-mapped as far as FAISS can, that proposes living rows."""

    def __init__(
        self, path: Path, kind: IndexKind, settings: IndexSettings, living: Bool[np.ndarray, " rows"] | None
    ) -> None:
        import faiss as library

        faiss: Any = library
        flag = faiss.IO_FLAG_MMAP if kind == "ivf" else faiss.IO_FLAG_MMAP_IFC
        self._index: Any = faiss.read_index(str(path), flag)
        self._selector: Any = None
        if living is not None:
            self._bits = np.packbits(living, bitorder="little")  # kept, for FAISS holds a pointer only
            self._selector = faiss.IDSelectorBitmap(len(living), faiss.swig_ptr(self._bits))
        if kind == "ivf":
            lists = self._index.nlist
            probes = min(lists, settings.ivf_probes or max(_PROBED_AT_LEAST, lists // _PROBED_SHARE))
            self._parameters = lambda k: faiss.SearchParametersIVF(sel=self._selector, nprobe=probes)
        else:
            self._parameters = lambda k: faiss.SearchParametersHNSW(
                sel=self._selector, efSearch=max(settings.hnsw_search, k)
            )

    def candidates(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Int[np.ndarray, "queries k"]:
        """Living rows that may be among the best `k`, unordered; -1 where fewer were found."""
        found: Int[np.ndarray, "queries k"] = self._index.search(queries, k, params=self._parameters(k))[1]
        return found
