"""Search over vectors: exact, half-precision storage, and an IVF index."""
