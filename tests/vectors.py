"""Vectors for tests of search and of the corpus cache."""

import numpy as np


def unit(vectors):
    """The rows scaled to length 1, in float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
