"""Comparisons: a list of systems on the same tasks, their controls, cost and differences, on one page."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_r3_mteb.compare.page import ComparisonResult
    from search_r3_mteb.compare.plan import ComparisonPlan


def compare(plan: "ComparisonPlan | Path | str", command: str | None = None) -> "ComparisonResult":
    """Run a plan, or the one in a TOML file, and write comparison.json, .md and .html into its output.

    A killed comparison goes on when it is started again. A system that fails is named in the result and loses no other.
    Raises ValueError and FileNotFoundError for plans and tasks that do not exist, before anything is run.
    """
    from search_r3_mteb.compare.page import write_comparison
    from search_r3_mteb.compare.plan import ComparisonPlan, read_plan
    from search_r3_mteb.compare.run import run_plan

    chosen = plan if isinstance(plan, ComparisonPlan) else read_plan(Path(plan))
    return write_comparison(chosen, run_plan(chosen, command), command)
