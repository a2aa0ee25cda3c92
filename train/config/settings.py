"""The base of every section of a configuration: a frozen pydantic model, and its errors in the words of a TOML file.

Unknown keys are refused, numbers are finite and keep to their bounds. Only a whole number becomes a float, and a list a
tuple, where one is wanted. The docstring under a field is its description: it explains the error, and is the comment in
a documented dump. The rules hold however the object is made: from TOML, from `--set`, or in Python.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic import StrictBool as StrictBool
from pydantic_core import PydanticCustomError, core_schema

from search_r3_mteb.extensions import REFRESH_POLICIES, REWARDS, Extension, ExtensionError, Registry

Count = Annotated[int, Field(strict=True, ge=1)]
"""One or more."""
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
"""Zero (off) or more."""
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
"""What every random generator takes: torch's seeds end at 2**64, and checkpoints hold 64-bit integers."""
Number = Annotated[float, Field(strict=True)]
"""Any finite number."""
Positive = Annotated[float, Field(strict=True, ge=1e-12, le=1e9)]
"""Above zero. Beyond these bounds float32, with its 7 digits, holds nothing of what is added or divided."""
Weight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
"""Zero (off) or more; a weight above a million leaves no digit of the other terms in float32."""
Temperature = Annotated[float, Field(strict=True, ge=1e-3, le=100)]
"""Divisor of scores. Below, rounding (1e-7 of a cosine, 1e-6 of a logit) decides; above, all scores are the same."""
Text = Annotated[str, Field(strict=True, pattern=r"\S")]
"""Text that is not blank."""
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
"""A part of a whole."""


class Settings(BaseModel):
    """One section. Raises pydantic's ValidationError, a ValueError, for a value that breaks a rule."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="after")
    def _rules_between_fields(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Rules between fields; a section overrides it and raises ValueError with the reason."""

    def replaced(self, **changes: Any) -> Self:
        """The same settings with some values changed, checked again."""
        return type(self)(**{**dict(self), **changes})


# ---- extensions ------------------------------------------------------------------------------------------------------


class OwnSettings(Settings):
    """Settings of an extension, the base of its class. A value has the type that is written, or is refused."""

    model_config = ConfigDict(strict=True)


class OwnRewardSettings(OwnSettings):
    """Settings of a reward that an extension brings."""

    weight: Annotated[float, Field(strict=True, gt=0, le=1e6)]
    """Its weight in the sum of rewards; without the table it has none."""


class OwnTables(Settings):
    """Tables of extensions, one for each name, checked by the class that its extension registered."""

    model_config = ConfigDict(extra="allow")

    @property
    def tables(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self)


def settings_class(extension: Extension, base: type[OwnSettings]) -> type[OwnSettings]:
    """The class of an extension's settings. Raises ExtensionError where it is not a `base`."""
    cls = base if extension.settings is None else extension.settings
    if not (isinstance(cls, type) and issubclass(cls, base)):
        name = getattr(cls, "__name__", repr(cls))
        raise extension.error(f"has settings of the class {name}, which does not derive from {base.__name__}")
    return cls


@dataclass(frozen=True)
class TablesOf:
    """Makes OwnTables of what a configuration says about the extensions of a registry."""

    registry: Registry
    base: type[OwnSettings]

    def __call__(self, given: Any) -> Any:
        """The tables; ValueError that names extension, key and reason."""
        if isinstance(given, OwnTables):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"got {show(given)}, but this is a section: one table of settings for each name.")
        found = {}
        for name, table in given.items():
            extension = self.registry.find(name)
            cls = settings_class(extension, self.base)
            try:
                found[name] = table if isinstance(table, cls) else cls.model_validate(table)
            except ValidationError as error:
                reasons = "; ".join(f"{'.'.join((name, *keys))}: {reason}" for keys, reason, _ in describe(error, cls))
                raise ValueError(f"{reasons} These are settings of the {extension}.") from error
        return OwnTables(**found)


OwnRewards = Annotated[OwnTables, BeforeValidator(TablesOf(REWARDS, OwnRewardSettings))]
OwnPolicies = Annotated[OwnTables, BeforeValidator(TablesOf(REFRESH_POLICIES, OwnSettings))]


@dataclass(frozen=True)
class Names:
    """One of our names, or that of an extension, as the metadata of a text field."""

    registry: Registry

    @property
    def known(self) -> tuple[str, ...]:
        """Ours, then those of extensions."""
        return (*self.registry.reserved, *self.registry.names())

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name in self.registry.reserved:
            return name
        if self.registry.reserved and name not in self.registry.names():
            names = ", ".join(self.known)
            raise PydanticCustomError("literal_error", "{what}", {"what": f"{name!r} is none of the names {names}"})
        self.registry.find(name)  # raises where it is broken, or is not there
        return name


# ---- sections and errors ---------------------------------------------------------------------------------------------


def sections_of(annotation: Any) -> Iterator[type[Settings]]:
    """The Settings classes inside a type: of X, X | None, tuple[X, ...] or Annotated[X, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_of(inner)


def describe(error: ValidationError, cls: type[Settings]) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """For each problem: the keys from the root down to its place, the reason, and whether it is an unknown key."""
    for problem in error.errors():
        path = tuple(str(key) for key in problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        yield path, (_unknown_key(path, cls) if unknown else _reason(problem, cls)), unknown


def place(path: tuple[str, ...], cls: type[Settings]) -> str:
    """("data", "sources", "0", "kind") -> "[data.sources.0] kind"; a section itself -> "[model.lora]"."""
    if path and path[-1].isdecimal():
        return ".".join(path)
    field = _section_at(path[:-1], cls).model_fields.get(path[-1]) if path else None
    if field is not None and any(sections_of(field.annotation)):
        return f"[{'.'.join(path)}]"
    return f"[{'.'.join(path[:-1])}] {path[-1]}" if len(path) > 1 else "".join(path)


def show(value: Any) -> str:
    """`value` as it would stand in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    return repr(value)


# ---- pydantic's errors, by type --------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
}
_INPUT = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


def _unknown_key(path: tuple[str, ...], cls: type[Settings]) -> str:
    names = list(_section_at(path[:-1], cls).model_fields)
    near = difflib.get_close_matches(path[-1], names, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
    return f"there is no such key. {advice}"


def _reason(problem: Any, cls: type[Settings]) -> str:
    kind, value, given = problem["type"], problem["input"], problem.get("ctx", {})
    path = tuple(str(key) for key in problem["loc"])
    if kind == "value_error":  # from `check`: settings that are right each on its own and exclude each other
        return str(given["error"])
    if kind in ("model_type", "model_attributes_type"):
        return f"got {show(value)}, but this is a section: a table of keys."
    got = f"got {show(value)}"
    if kind == "missing":
        if path[-1].isdecimal():
            return f"is missing: the list needs {int(path[-1]) + 1} values or more, got {show(value)}."
        why = _field_at(path, cls).description or ""
        section = any(sections_of(_field_at(path, cls).annotation))
        add = f"a [{'.'.join(path)}] section" if section else f"{path[-1]} = ... there"
        return f"is missing and has no default. It is: {_one_line(why)} Add {add}."
    if kind in _EXPECTED:
        rule = f"{got} ({_INPUT.get(type(value), type(value).__name__)}), but it must be {_EXPECTED[kind]}."
    elif kind == "literal_error":
        choices = choices_of(path, cls)
        near = difflib.get_close_matches(str(value), choices, n=1)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        return f"{got}, but it must be one of {', '.join(show(choice) for choice in choices)}.{advice}"
    elif kind == "finite_number":
        rule = f"{got}, but it must be finite: every later sum would be inf or NaN."
    elif kind == "string_pattern_mismatch":
        rule = f"{got}, but it must not be blank."
    elif kind == "too_short":
        rule = f"{got}, but it must have {given['min_length']} or more values."
    elif kind == "too_long":
        rule = f"got {given['actual_length']} values, but it must be a list of {given['max_length']}."
    else:
        bounds = {"gt": "above", "ge": "at least", "le": "at most", "lt": "below"}
        limits = [f"{word} {given[key]:g}" for key, word in bounds.items() if key in given]
        rule = f"{got}, but it must be {limits[0]}." if limits else f"{got}: {problem['msg']}."
    field = _field_at(path, cls)
    why = f" (It is: {_one_line(field.description)})" if field.description else ""
    usable = field.default is not None and not field.is_required() and not path[-1].isdecimal()
    return f"{rule}{why}" + (f" Set for example {path[-1]} = {show(field.default)}." if usable else "")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def choices_of(path: Sequence[str], cls: type[Settings]) -> list[str]:
    """The values that the key at `path` can have, where its type lists them; empty for any other key."""
    try:
        field = _field_at(tuple(path), cls)
    except (KeyError, StopIteration, ExtensionError):
        return []
    return [name for each in (*field.metadata, field.annotation) for name in _literals(each)]


def _literals(annotation: Any) -> list[str]:
    """The values of the Literal, or the names, inside a type."""
    found: list[str] = list(annotation.known) if isinstance(annotation, Names) else []
    for inner in get_args(annotation):
        found += [inner] if isinstance(inner, str) else _literals(inner)
    return found


def _section_at(path: tuple[str, ...], cls: type[Settings]) -> type[Settings]:
    tables: TablesOf | None = None
    for key in path:
        if tables is not None:
            cls, tables = settings_class(tables.registry.find(key), tables.base), None
        elif not key.isdecimal():
            field = cls.model_fields[key]
            cls = next(sections_of(field.annotation))
            found = (getattr(each, "func", None) for each in field.metadata)
            tables = next((each for each in found if isinstance(each, TablesOf)), None)
    return cls


def _field_at(path: tuple[str, ...], cls: type[Settings]) -> Any:
    """The field of the last key of `path`; positions in a list belong to the list's own field."""
    names = list(path)
    while names[-1].isdecimal():
        names.pop()
    return _section_at(tuple(names[:-1]), cls).model_fields[names[-1]]
