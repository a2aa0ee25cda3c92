"""Scores, their significance, and whether the reasoning matters."""
