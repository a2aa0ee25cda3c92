"""Formats of training rows that other tools write, known by their columns, or refused by name."""
