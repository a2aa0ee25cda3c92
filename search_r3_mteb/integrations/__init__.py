"""Search-R3 inside sentence-transformers and transformers, and in MTEB's model registry."""
