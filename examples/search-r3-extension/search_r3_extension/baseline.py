"""A baseline: hashed words, as `--model hashing` or `--model hashing:DIMENSIONS`."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from search_r3_mteb.extensions import BASELINES


class HashingEncoder:
    """Counts of words, by their hash."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dimensions) float32."""
        vectors = np.full((len(texts), self.dimensions), 1e-3, np.float32)  # a text without words has a direction too
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % self.dimensions] += 1
        return vectors

    encode_document = encode_query


@BASELINES.register("hashing")
def hashing(argument: str) -> HashingEncoder:
    """The encoder; `argument` is what stands behind the colon."""
    return HashingEncoder(int(argument or 512))
