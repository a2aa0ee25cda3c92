"""Encoding documents for the cache: checked, normalised, shared between processes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.evaluation.vector_storage import pack
from train.cache_settings import CacheSettings
from train.cache_state import CacheState, new_state
from train.corpus_texts import CorpusTexts
from train.neighbor_graph import build_graph, columns
from train.replicas import Arrays, Replicas, shares

Encode = Callable[[list[str]], Any]
Rows = Int[np.ndarray, " rows"]
Vectors = Float[np.ndarray, "rows dim"]


def build_state(
    path: Path, texts: CorpusTexts, encode: Encode, settings: CacheSettings, step: int, replicas: Replicas
) -> CacheState | None:
    """Encode every document at `step` into new arrays under `path`; the caller's `checkpoint` makes them the state.

    Documents go to `encode` in row order, `encode_rows` at a time, whatever the number of processes: the same vectors bit for
    bit. None in a process that does not write.
    """
    counts = texts.count()
    n = len(texts)
    state: CacheState | None = None
    dim: int | None = None
    for start in range(0, n, settings.encode_rows * replicas.size):
        own = np.arange(n)[start + replicas.rank * settings.encode_rows :][: settings.encode_rows]
        share = partial(_share, texts, own, own, encode, dim)
        for part in on_all(share, replicas):
            if not len(part["at"]):
                continue
            dim = int(part["vectors"].shape[1])
            if replicas.writes:
                if state is None:
                    state = new_state(path, settings, n, dim, columns(n, settings.neighbors))
                arrays = state.folder.arrays
                arrays["vectors"][part["at"]] = pack(part["vectors"], settings.storage)
                if "originals" in arrays:
                    arrays["originals"][part["at"]] = part["vectors"]
    if state is not None:
        arrays = state.folder.arrays
        arrays["tokens"][:] = counts
        arrays["row_step"][:] = step
        build_graph(arrays["vectors"], arrays["neighbors"], seed=settings.seed)
        state.step, state.digest = step, texts.digest()
    return state


def encode_shared(
    texts: CorpusTexts, rows: Rows, tokens: Int[np.ndarray, " rows"], encode: Encode, dim: int, replicas: Replicas
) -> Vectors:
    """Fresh unit vectors of `rows`, each process encoding its share by tokens. Only (row, vector) deltas travel."""
    mine = np.flatnonzero(shares(tokens, replicas.size) == replicas.rank) if replicas.size > 1 else np.arange(len(rows))
    fresh = np.empty((len(rows), dim), dtype=np.float32)
    for part in on_all(partial(_share, texts, mine, rows[mine], encode, dim), replicas):
        fresh[part["at"]] = part["vectors"]
    return fresh


def _share(texts: CorpusTexts, at: Rows, rows: Rows, encode: Encode, dim: int | None) -> Arrays:
    """One process's vectors, and the places that they belong to."""
    return {
        "at": at,
        "vectors": encode_rows(texts, rows, encode, dim) if len(rows) else np.zeros((0, dim or 0), np.float32),
    }


def on_all(share: Callable[[], Arrays], replicas: Replicas) -> list[Arrays]:
    """The shares of all processes in the order of rank. Where one fails, all fail: nobody waits for it, and nothing is changed."""
    if replicas.size == 1:
        return [share()]
    own: Arrays = {"failed": np.array(True)}
    try:
        own = share() | {"failed": np.array(False)}
    finally:
        parts = replicas.gather(own)
    failed = [rank for rank, part in enumerate(parts) if part["failed"]]
    if failed:
        raise RuntimeError(
            f"Process {failed[0]} could not encode its share of the documents, so the cache was left as it is on all of them. Its own "
            "error says why."
        )
    return parts


def encode_rows(texts: CorpusTexts, rows: Rows, encode: Encode, dim: int | None) -> Vectors:
    """Unit vectors (rows, dim) float32 of these documents.

    Raises ValueError where the encoder gives another number of vectors, another dimension than `dim`, or a vector that is zero or
    not finite.
    """
    found = encode(texts.take(rows))
    if hasattr(found, "detach"):
        found = found.detach().cpu().float().numpy()
    vectors = np.array(found, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(rows):
        raise ValueError(
            f"The encoder gave an array of shape {vectors.shape} for {len(rows)} documents; it must be ({len(rows)}, dim)."
        )
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(
            f"The encoder gives vectors of dimension {vectors.shape[1]}, the cache holds {dim}: it was built by another model. "
            "Build the cache again with this one."
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
    if len(bad):
        row = int(rows[bad[0]])
        raise ValueError(
            f"The encoder gave document {row} a vector of length {float(length[bad[0], 0])} ({len(bad)} such vectors): it has no "
            f"direction. Look at the weights and at the text {texts.texts[row]!r:.80}."
        )
    unit: Vectors = vectors / length
    return unit
