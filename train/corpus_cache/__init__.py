"""The corpus cache: document vectors that follow the changing weights."""
