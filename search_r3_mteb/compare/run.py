"""The runs of a comparison: every system on every task, as units of `evaluate`; a system that fails loses no other."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from search_r3_mteb.compare.checks import check_plan, settings_for
from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan
from search_r3_mteb.evaluation.controls import can_be_controlled, controlled
from search_r3_mteb.evaluation.costs import whole_rows
from search_r3_mteb.evaluation.evaluate import evaluate_unit
from search_r3_mteb.evaluation.perceptron import PERCEPTRON, PerceptronPlan, with_perceptron
from search_r3_mteb.evaluation.readiness import check_data
from search_r3_mteb.evaluation.recording import Thinker
from search_r3_mteb.evaluation.summary import SummaryRow
from search_r3_mteb.evaluation.system_checks import reasons
from search_r3_mteb.evaluation.systems import System, names_apart, open_systems, split_label
from search_r3_mteb.evaluation.tasks import resolve_tasks

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

_log = logging.getLogger(__name__)
# What a model, a folder, a device or a library may raise. An interruption is none of these: it ends the comparison,
# and the same command goes on.
FAILURES = (ValueError, TypeError, OSError, ImportError, RuntimeError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True)
class ComparedRow:
    """A row of summary.json with the entry that it belongs to.

    `control` is None for the system itself; `budget` is None where nothing is reasoned, or none was named.
    """

    row: SummaryRow
    system: str
    control: str | None = None
    budget: int | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Task and split."""
        return self.row["task"], self.row["split"]


@dataclass(frozen=True)
class SystemFailure:
    """A system that could not be run, and why. `task` is None where it could not even be opened."""

    system: str
    task: str | None
    error: str

    def __str__(self) -> str:
        return f"{self.system}{'' if self.task is None else f' on {self.task}'} failed: {self.error}"


@dataclass(frozen=True)
class ComparedRuns:
    """All rows, in the order of the plan, and what failed."""

    rows: list[ComparedRow]
    failures: list[SystemFailure]


@dataclass(frozen=True)
class _Opened:
    system: System
    control: str | None
    budget: int | None


def run_plan(plan: ComparisonPlan, command: str | None = None) -> ComparedRuns:
    """Run every system of the plan on every task; what is complete in the plan's output is read from there.

    Raises ValueError and FileNotFoundError for tasks, models and settings that do not exist or change nothing, and for
    data that cannot be had, before anything is run.
    """
    tasks = resolve_tasks(plan.tasks, plan.split)
    check_plan(plan)
    check_data(tasks, plan.output)
    runs = ComparedRuns([], [])
    for entry in plan.systems:
        try:
            for opened in _opened(entry, plan):
                _run_system(opened, entry, tasks, plan, command, runs)
        except FAILURES as error:
            _failed(runs, SystemFailure(entry.name, None, _said(error)))
    places = [(task.metadata.name, split) for task in tasks for split in task.eval_splits]
    names = [entry.name for entry in plan.systems]

    def order(each: ComparedRow) -> tuple[int, int, bool, int]:
        reasons = each.row["mode"] != "direct"
        return places.index(each.place), names.index(each.system), reasons, each.budget or 0

    runs.rows.sort(key=order)  # within a budget as they were run: the system, then its controls
    return runs


def _run_system(
    opened: _Opened,
    entry: ComparedSystem,
    tasks: "list[AbsTaskRetrieval]",
    plan: ComparisonPlan,
    command: str | None,
    runs: ComparedRuns,
) -> None:
    for task in tasks:
        try:
            rows = evaluate_unit(opened.system, task, plan.output, command)
        except FAILURES as error:
            name = f"{opened.system.label} ({opened.system.mode})"
            _failed(runs, SystemFailure(name, task.metadata.name, _said(error)))
        else:
            found = [ComparedRow(row, entry.name, opened.control, opened.budget) for row in whole_rows(rows)]
            runs.rows.extend(found)


def _opened(entry: ComparedSystem, plan: ComparisonPlan) -> Iterator[_Opened]:
    """The entry's systems: direct and reasoning, each budget, and the controls of each.

    The weights are loaded once. All budgets have the prompt length that the largest one leaves: with another, documents
    would be cut elsewhere, and more than the budget would differ.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    spec: Any = entry.model
    label = split_label(entry.model)[0] if entry.label is None else entry.label
    if label is None:
        labelled = (each.model if each.label is None else f"{each.label}={each.model}" for each in plan.systems)
        label = names_apart([*labelled])[plan.systems.index(entry)]
    talks = reasons(entry.model)
    budgets: list[int | None] = [*sorted({*(entry.budgets or (plan.budgets if talks else ()))}, reverse=True)]
    settings = settings_for(entry, plan)
    own_budget = "max_reasoning_tokens" in entry.settings  # in place of the plan's budgets
    if entry.mode == "direct" or own_budget:
        budgets = []
    for number, budget in enumerate(budgets or [None]):
        given = settings if budget is None else {**settings, "max_reasoning_tokens": budget}
        mode: Any = entry.mode if number == 0 else "reason"
        for system in open_systems(spec, mode, given, plan.output / "store"):
            if number and system.mode == "direct":
                continue  # it was run with the first budget
            label = system.label if label is None else label
            named = replace(system, label=label)
            yield _Opened(named, None, budget if system.mode != "direct" else None)
            yield from _controls(named, entry, plan, budget)
            searching = getattr(system.model, "search_model", None)
            encoder = getattr(searching or system.model, "encoder", None)
            if isinstance(encoder, SearchR3Encoder):
                spec = encoder.checkpoint
                settings.setdefault("max_length", encoder.max_length)


def _controls(system: System, entry: ComparedSystem, plan: ComparisonPlan, budget: int | None) -> Iterator[_Opened]:
    names = entry.control or (plan.control if can_be_controlled(system) else ())
    for each in names:
        if each == PERCEPTRON:
            if system.mode == "direct":
                training = PerceptronPlan(str(entry.train), entry.train_split or "train", seed=plan.seed)
                yield _Opened(with_perceptron(system, training), each, None)
        elif system.mode == "reason" or entry.mode != "both" or not _also_reasons(system):
            yield _Opened(controlled(system, each, plan.seed), each, budget)  # type: ignore[arg-type]


def _also_reasons(system: System) -> bool:
    """Whether a direct system is one of two modes, whose other one has the controls."""
    return isinstance(getattr(system.model, "encoder", None), Thinker)


def _failed(runs: ComparedRuns, failure: SystemFailure) -> None:
    _log.error("%s", failure)
    runs.failures.append(failure)


def _said(error: BaseException) -> str:
    text = str(error) or "no message"
    return text if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: {text}"
