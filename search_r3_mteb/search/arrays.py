"""Array types that search, storage and the corpus cache share."""

import numpy as np
from jaxtyping import Float, Int

RowNumbers = Int[np.ndarray, " rows"]
"""Row numbers of a matrix of vectors, from 0."""
Vectors = Float[np.ndarray, "rows dim"]
"""One vector per row, float32 unless stated otherwise."""
