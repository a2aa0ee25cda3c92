"""What is compared: a list of systems and tasks, from a TOML file or from the command line.

tasks = ["beir:data/own"]        # as in `search-r3 evaluate --task`
output = "runs/compare"
split = "dev"                    # one split of the tasks, instead of their own
baseline = "minilm"              # the system that the others are compared with; the first one unless named
seed = 0                         # of the controls
settings = {dtype = "float32"}   # for every system that has such a setting
budgets = [64]
control = ["filler", "other", "shuffled", "empty"]

[[systems]]
model = "mini"                   # as in `search-r3 evaluate --model`
label = "mini"
mode = "both"                    # both, reason or direct
budgets = [16, 64]               # max_reasoning_tokens, one run for each; in place of those above
control = ["filler"]             # in place of those above (evaluation/controls.py)
settings = {temperature = 0.5}   # beside those above
baseline = "mini"                # in place of the one above: another encoder's expansions have another baseline

[[systems]]
model = "minilm=FOLDER"
control = "perceptron"           # evaluation/perceptron.py
train = "data/own"               # a BEIR folder with training judgements
train_split = "train"             # unless named
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from search_r3_mteb.evaluation.controls import CONTROL_NAMES
from search_r3_mteb.evaluation.perceptron import PERCEPTRON
from search_r3_mteb.evaluation.system_checks import OWN_OPTIONS, reasons
from search_r3_mteb.evaluation.systems import MODE_CHOICES, split_label

CONTROL_CHOICES = (*CONTROL_NAMES, PERCEPTRON)


@dataclass(frozen=True)
class ComparedSystem:
    """One entry: a model in a mode, each of its budgets (none: its own), and the controls of its reasoning.

    Raises ValueError for values that do not exist or exclude each other.
    """

    model: str
    label: str | None = None
    mode: str = "both"
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    train: str | None = None
    train_split: str | None = None
    baseline: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODE_CHOICES:
            raise ValueError(f"mode = {self.mode!r} of {self.model} is not one of {', '.join(MODE_CHOICES)}.")
        for each in self.control:
            if each not in CONTROL_CHOICES:
                raise ValueError(f"control {each!r} of {self.model} {_not_among(each, CONTROL_CHOICES)}")
        if (PERCEPTRON in self.control) != (self.train is not None):
            raise ValueError(
                f"{self.model}: control = {PERCEPTRON!r} and train = FOLDER belong together: it learns from the "
                "training judgements of that BEIR folder. Write both or neither."
            )
        if self.train_split is not None and self.train is None:
            raise ValueError(
                f"{self.model}: train_split = {self.train_split!r} would change nothing without train = FOLDER."
            )
        refuse_options(self.settings, f"{self.model}: ")
        if PERCEPTRON in self.control and self.mode == "reason":
            raise ValueError(
                f"{self.model}: the perceptron stands on direct vectors, and mode = 'reason' has none. Write mode = "
                "'both' or 'direct'."
            )
        if min(self.budgets, default=0) < 0:
            raise ValueError(f"budgets of {self.model}: {min(self.budgets)} is negative; 0 means no reasoning.")
        if self.budgets and self.mode == "direct":
            raise ValueError(
                f"{self.model}: mode = 'direct' does not reason, so budgets change nothing. Leave them out."
            )
        if self.budgets and "max_reasoning_tokens" in self.settings:
            raise ValueError(f"{self.model}: budgets and settings.max_reasoning_tokens say the same thing. Give one.")

    @property
    def name(self) -> str:
        """What the entry is called in messages, before its model is loaded."""
        return self.label or split_label(self.model)[0] or self.model


@dataclass(frozen=True)
class ComparisonPlan:
    """Systems and tasks. `settings` are for every system that has them, `budgets` and `control` for every one that
    reasons, unless it has its own.

    `seed` draws the controls.
    """

    systems: tuple[ComparedSystem, ...]
    tasks: tuple[str, ...]
    split: str | None = None
    output: Path = Path("runs/compare")
    baseline: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    budgets: tuple[int, ...] = ()
    control: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in self.control:
            if each not in CONTROL_NAMES:
                raise ValueError(f"control {each!r} {_not_among(each, CONTROL_NAMES)}")
        if min(self.budgets, default=0) < 0:
            raise ValueError(f"budgets: {min(self.budgets)} is negative; 0 means no reasoning.")
        refuse_options(self.settings, "")
        if self.budgets and "max_reasoning_tokens" in self.settings:
            raise ValueError(
                f"budgets ({', '.join(map(str, self.budgets))}) and the setting max_reasoning_tokens="
                f"{self.settings['max_reasoning_tokens']} say the same thing. Give one."
            )
        if not self.systems or not self.tasks:
            raise ValueError(
                f"Nothing to compare: {len(self.systems)} systems and {len(self.tasks)} tasks. Name at least one of "
                "each: [[systems]] with a model, and tasks = [...]."
            )
        names = [each.name for each in self.systems]
        twice = sorted({each for each in names if names.count(each) > 1})
        if twice:
            raise ValueError(f"Two systems are called {', '.join(twice)}. Give each a label of its own.")
        for name in (self.baseline, *(each.baseline for each in self.systems)):
            if name is not None and name not in names:
                raise ValueError(f"baseline = {name!r} {_not_among(name, names)}")

    def baselines(self) -> dict[str, str]:
        """For each system's name that of the one it is compared with, which may be itself."""
        general = self.baseline or self.systems[0].name
        return {each.name: each.baseline or general for each in self.systems}


def read_plan(path: Path) -> ComparisonPlan:
    """The plan in a TOML file. Raises FileNotFoundError, and ValueError that names file, entry and key."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}. A comparison is a TOML file, or --task and --models.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not TOML: {error}. Text needs quotes, and a table's name square brackets."
        ) from error
    try:
        values = _checked(table, ComparisonPlan, "")
        entries = [
            ComparedSystem(**_checked(each, ComparedSystem, f"systems, entry {number}: "))
            for number, each in enumerate(values.get("systems", ()), start=1)
        ]
        return ComparisonPlan(**{**values, "systems": tuple(entries), "tasks": values.get("tasks", ())})
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def plan_of(
    models: Sequence[str],
    tasks: Sequence[str],
    budgets: Sequence[int] = (),
    controls: Sequence[str] | None = None,
    split: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ComparisonPlan:
    """The plan of a command line. `controls` None: all of them, "none": none, for the systems that reason.

    Raises FileNotFoundError for a model that does not exist.
    """
    if controls and "none" in controls and len(controls) > 1:
        raise ValueError("--control none excludes the other controls. Give it alone, or leave it out.")
    every = CONTROL_NAMES if any(reasons(each) for each in models) else ()  # not asked for, so nothing to refuse
    chosen = every if controls is None else () if "none" in controls else controls
    return ComparisonPlan(
        systems=tuple(ComparedSystem(model) for model in models),
        tasks=tuple(tasks),
        split=split,
        settings=dict(settings or {}),
        budgets=tuple(budgets),
        control=tuple(chosen),
    )


# What each key must hold, and how it is kept.
_TEXT = {"model", "label", "mode", "train", "train_split", "split", "baseline", "output"}
_TEXTS = {"control", "tasks"}


def _checked(table: Any, cls: type, where: str) -> dict[str, Any]:
    """The table's values by key, of the right kinds. Raises ValueError for unknown and missing keys and other kinds."""
    keys = [each.name for each in fields(cls)]
    if not isinstance(table, dict):
        raise ValueError(f"{where}expected a table of keys, got {table!r:.60}.")
    for key in table:
        if key not in keys:
            raise ValueError(f"{where}key {key!r} {_not_among(key, keys)}")
    if cls is ComparedSystem and "model" not in table:
        raise ValueError(f"{where}has no model.")
    return {key: _value(key, value, where) for key, value in table.items()}


def _value(key: str, value: Any, where: str) -> Any:
    if key in _TEXT and isinstance(value, str) and value:
        return Path(value) if key == "output" else value
    if key in _TEXTS:
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list) and all(isinstance(each, str) for each in listed):
            return tuple(listed)
    if key == "budgets":
        listed = value if isinstance(value, list) else [value]
        if all(isinstance(each, int) and not isinstance(each, bool) for each in listed):
            return tuple(listed)
    if key == "seed" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if key == "settings" and isinstance(value, dict):
        return _settings(value, where)
    if key == "systems" and isinstance(value, list):
        return value
    kinds = {"budgets": "a list of whole numbers", "seed": "a whole number from 0", "systems": "[[systems]] tables"}
    wanted = "a text" if key in _TEXT else "a list of texts" if key in _TEXTS else kinds.get(key, "a table")
    raise ValueError(f"{where}{key} = {value!r:.60} is not {wanted}.")


def _settings(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table, whose names must be settings of an encoder; their values are checked where they are used."""
    valid = setting_names()
    for name in table:
        if name not in valid:
            raise ValueError(f"{where}setting {name!r} {_not_among(name, valid)}")
    refuse_options(table, where)
    return table


def refuse_options(settings: Mapping[str, Any], where: str) -> None:
    """ValueError for settings of an encoder that a comparison decides itself."""
    for name in sorted(OWN_OPTIONS & set(settings)):
        raise ValueError(f"{where}settings.{name}: a comparison has its own; write mode beside model, or --output.")


def setting_names() -> list[str]:
    """The settings that systems take: those of our encoders, of a search, and of writers with encoders."""
    from search_r3_mteb.encoder.settings import EncoderSettings
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.expansion.names import SETTINGS

    own = {each.name for kind in (EncoderSettings, SearchSettings) for each in fields(kind)}
    return sorted({*own, *SETTINGS, "revision"})


def _not_among(value: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, valid, n=1)
    return f"does not exist: did you mean {near[0]!r}?" if near else f"does not exist; there is {', '.join(valid)}."
