"""Checkpoints of a training run: complete or absent, without pickle."""
