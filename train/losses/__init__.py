"""Losses and rewards, as pure functions over tensors and arrays."""
