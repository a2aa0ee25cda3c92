"""Numbers as the report's tables and cards write them: a dash for what was not measured, NaN said as such."""

from __future__ import annotations

import math
from typing import Any

from search_r3_mteb.evaluation.costs import ratio_text


def score(value: Any) -> str:
    """A quality to three decimals."""
    if value is None:
        return "–"
    return "NaN" if is_nan(value) else f"{value:.3f}"


def signed(value: Any) -> str:
    """A difference with its sign."""
    return "–" if value is None or is_nan(value) else f"{value:+z.3f}".replace("-", "−")


def span(low: Any, high: Any) -> str:
    """An interval of qualities."""
    return "–" if low is None or high is None or is_nan(low) else f"{low:.3f} to {high:.3f}"


def count(value: Any, digits: int = 0) -> str:
    """A number with thousands separators."""
    if value is None:
        return "–"
    return "NaN" if is_nan(value) else f"{value:,.{digits}f}"


def p_value(value: Any) -> str:
    """A p value to two digits."""
    return "–" if value is None else f"{value:.2g}"


def ratio(value: Any) -> str:
    """How many times as long, or as much."""
    return "–" if value is None or is_nan(value) else f"× {ratio_text(value)}"


def is_nan(value: Any) -> bool:
    """True for the float NaN, False for everything else."""
    return isinstance(value, float) and math.isnan(value)
