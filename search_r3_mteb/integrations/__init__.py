"""Integrations of Search-R3 with sentence-transformers, transformers and MTEB's model registry."""
