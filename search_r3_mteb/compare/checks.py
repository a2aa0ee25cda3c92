"""What is looked at before a comparison runs: every system, and that nothing in the plan would change nothing."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan
from search_r3_mteb.evaluation.perceptron import PERCEPTRON
from search_r3_mteb.evaluation.readiness import check_models, together
from search_r3_mteb.evaluation.system_checks import check_mode, check_settings, reasons, used_settings
from search_r3_mteb.evaluation.systems import kind_of, split_label


def check_plan(plan: ComparisonPlan) -> None:
    """Raise for every system that is not there or not whole, and for what in the plan changes nothing.

    ValueError, TypeError or FileNotFoundError; of several mistakes one ValueError with all of them. Weights are not
    loaded.
    """
    together((entry.name, partial(_check_system, entry, plan)) for entry in plan.systems)
    talking = [entry for entry in plan.systems if reasons(entry.model) and entry.mode != "direct"]
    budgets = [entry for entry in talking if not entry.budgets and "max_reasoning_tokens" not in entry.settings]
    asked: dict[str, tuple[Any, Iterable[ComparedSystem]]] = {
        "budgets": (plan.budgets, budgets),
        "control": (plan.control, [entry for entry in talking if not entry.control]),
        "seed": (plan.seed, [entry for entry in plan.systems if entry.control or (plan.control and entry in talking)]),
    }
    for name, (value, users) in asked.items():
        if value and not users:
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(
                f"{name} ({shown}) would change nothing: no system of this comparison generates text without a {name} "
                "of its own. Leave it out."
            )
    used = [_used(entry, plan.settings) - set(entry.settings) for entry in plan.systems]
    if unused := sorted(set(plan.settings) - set().union(*used)):
        raise ValueError(
            f"{', '.join(unused)} would change nothing: no system of this comparison has such a setting, or each has a "
            "value of its own. Leave it out."
        )


def settings_for(entry: ComparedSystem, plan: ComparisonPlan) -> dict[str, Any]:
    """The settings that the entry runs with: those of the plan that it uses, and its own in their place."""
    shared: Mapping[str, Any] = {key: value for key, value in plan.settings.items() if key not in entry.settings}
    used = _used(entry, {**shared, **entry.settings})
    return {key: value for key, value in shared.items() if key in used} | dict(entry.settings)


def _used(entry: ComparedSystem, settings: Mapping[str, Any]) -> set[str]:
    mode: Any = entry.mode
    return used_settings(entry.model, settings, mode)


def _check_system(entry: ComparedSystem, plan: ComparisonPlan) -> None:
    mode: Any = entry.mode
    check_models([entry.model])
    check_mode(entry.model, mode)
    check_settings([entry.model], entry.settings, mode)
    settings_for(entry, plan)
    kind, talks = kind_of(split_label(entry.model)[1]), reasons(entry.model)
    if entry.budgets and not talks:
        raise ValueError("it does not reason here, so budgets change nothing. Leave them out.")
    if entry.mode == "reason" and not talks:
        raise ValueError("mode = 'reason', but it never reasons. Leave the mode out.")
    controls = [each for each in entry.control if each != PERCEPTRON]
    if controls and (not talks or entry.mode == "direct"):
        raise ValueError(
            f"it has no reasoning to exchange, so control {', '.join(controls)} means nothing. Leave it out."
        )
    if PERCEPTRON in entry.control:
        if kind not in ("search-r3", "sentence-transformers", "own"):
            raise ValueError("the perceptron stands on direct query vectors, which it does not have.")
        from search_r3_mteb.tasks.beir_folder import choose_split

        choose_split(str(entry.train), entry.train_split or "train")
