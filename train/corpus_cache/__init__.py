"""The corpus cache: document vectors that stay fresh while the weights change."""
