"""Markdown that the generated pages of this folder share."""

# Whose reasoning a query is given, as the keys of diagnose.json name it.
REASONINGS = {"own": "its own", "other": "another query's", "shuffled": "its own words shuffled", "none": "none"}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty line."""
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def with_interval(value: float, interval: tuple[float, float], form: str = ".3f") -> str:
    """A value with its interval, all in one format: "0.500 (0.400 to 0.600)"."""
    low, high = interval
    return f"{value:{form}} ({low:{form}} to {high:{form}})"
