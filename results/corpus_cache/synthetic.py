"""Synthetic documents and an encoder that cost nothing, to measure the cache itself, whatever the corpus looks like."""

import numpy as np

TOKENS = 3  # of each text, as a cache without a tokenizer counts them


class SyntheticTexts:
    """`n` different short texts, made when they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows):
        # All of one length, so that a budget of tokens is the same number of documents in every corpus.
        return [f"d {row:08d}" for row in range(*rows.indices(self.n))] if isinstance(rows, slice) else f"d {rows:08d}"


class SyntheticEncoder:
    """Vectors around 1,000 centres; `step` turns them a little, all in the same way."""

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.centres = rng.normal(size=(1000, dim)).astype(np.float32)
        self.turn = 0.002 * rng.normal(size=(dim, dim)).astype(np.float32)
        self.noise = rng.normal(size=(1 << 16, dim)).astype(np.float32)
        self.step = 0

    def __call__(self, texts):
        """Vectors of these texts."""
        rows = np.array([int(text[2:]) for text in texts])
        # Two tables of different lengths: no two of a million rows share both.
        vectors = self.centres[rows % 1000] + 0.7 * self.noise[rows % (1 << 16)] + 0.3 * self.noise[rows % 65521]
        return vectors + self.step * (vectors @ self.turn)
