"""Embedding of a file of texts into a file of vectors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_r3_mteb.atomic import write_array
from search_r3_mteb.text_files import read_texts

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import Thought


@dataclass(frozen=True)
class Embedded:
    """The shape that was written, the seconds it took, and each query with its thought where they were asked for."""

    shape: tuple[int, int]
    seconds: float
    thoughts: list[tuple[str, "Thought"]] = field(default_factory=list)


def embed_file(
    model: str, source: Path, output: Path, role: str, settings: Mapping[str, Any], *, think: bool = False
) -> Embedded:
    """Embed the texts of `source` as `role` ("query" or "document") and write float32 (texts, dim) to `output` (.npy).

    Row n belongs to line n: empty lines are texts, too. `settings` are those of SearchR3Encoder; `think` adds the
    thoughts to the result. Raises ValueError and FileNotFoundError, before the model is loaded where possible.
    """
    reasons = role == "query" and settings.get("mode", "reason") == "reason"
    if think and not reasons:
        raise ValueError(
            f"--show-reasoning was given, but role {role!r} in mode {settings.get('mode')!r} does not reason. "
            "Use --role query --mode reason, or leave the option out."
        )
    if output.suffix != ".npy":
        raise ValueError(f"--output {output} must end in .npy: vectors are written as a NumPy array.")
    texts = read_texts(source)
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    encoder = SearchR3Encoder(model, **settings)
    start = time.perf_counter()
    thoughts = []
    if think:
        thoughts = encoder.think(texts)
        vectors = np.stack([each.vector for each in thoughts]) if thoughts else encoder.encode_query([])
    else:
        vectors = encoder.encode_query(texts) if role == "query" else encoder.encode_document(texts)
    seconds = time.perf_counter() - start
    write_array(output, vectors)
    return Embedded(vectors.shape, seconds, list(zip(texts, thoughts, strict=False)))
