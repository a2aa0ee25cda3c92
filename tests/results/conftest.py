"""The recipes in results/ run both stages: they share the fixtures of the loops."""

from tests.train.conftest import fresh_accelerate, trained

__all__ = ["fresh_accelerate", "trained"]
