"""Retrieval tasks that need no download."""
