"""Checkpoints of a training run: complete or not there, without pickle."""
