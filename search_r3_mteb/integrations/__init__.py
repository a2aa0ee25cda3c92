"""The plugs: MTEB, BEIR and sentence-transformers."""
