"""Encoding documents for the cache: checked, normalised, shared between processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.evaluation.vector_storage import pack
from train.cache_settings import CacheSettings
from train.cache_state import CacheState, new_state
from train.corpus_texts import CorpusTexts
from train.neighbor_graph import build_graph, columns
from train.replicas import Replicas, shares

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
    n, state, known_dim = len(texts), None, None
    for start in range(0, n, settings.encode_rows * replicas.size):
        own = np.arange(n)[start + replicas.rank * settings.encode_rows :][: settings.encode_rows]
        delta = {
            "rows": own,
            "vectors": encode_rows(texts, own, encode, known_dim) if len(own) else np.zeros((0, 0), np.float32),
        }
        for part in replicas.gather(delta):
            if not len(part["rows"]):
                continue
            known_dim = part["vectors"].shape[1]
            if replicas.writes:
                if state is None:
                    state = new_state(path, settings, n, known_dim, columns(n, settings.neighbors))
                arrays = state.folder.arrays
                arrays["vectors"][part["rows"]] = pack(part["vectors"], settings.storage)
                if "originals" in arrays:
                    arrays["originals"][part["rows"]] = part["vectors"]
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
    own = encode_rows(texts, rows[mine], encode, dim) if len(mine) else np.zeros((0, dim), np.float32)
    fresh = np.empty((len(rows), dim), dtype=np.float32)
    for part in replicas.gather({"at": mine, "vectors": own}):
        fresh[part["at"]] = part["vectors"]
    return fresh


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
