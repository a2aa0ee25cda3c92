"""Losses and rewards: functions over tensors and arrays."""
