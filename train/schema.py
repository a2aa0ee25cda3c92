"""Settings that check themselves: a frozen dataclass whose annotations are its rules.

`Annotated[float, Above(0)]`, `Literal["a", "b"]`, `X | None` (absent), `tuple[X, ...]` (a TOML list) and other `Settings`
(a TOML table) are understood. Every field carries a docstring under it; it is the "why" of the error and of the dumped TOML.
The rules hold however the object is made: from TOML, from `--set`, or in Python.
"""

import ast
import difflib
import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class SettingError(ValueError):
    """A setting that cannot hold. `path` are the keys from the root down to it, `reason` the text without the place."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{describe_place(path)}: {reason}" if path else reason)

    def inside(self, key: str) -> "SettingError":
        """The same error, seen from one level further out."""
        return type(self)((key, *self.path), self.reason)


class UnknownKeyError(SettingError):
    """A key that the section does not have."""


class ExclusionError(SettingError):
    """Settings that are right each on its own and exclude each other."""


@dataclass(frozen=True)
class Bound:
    """What a number must keep to, and how that reads in an error."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False
    """Whether `low` itself is excluded."""

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = value > self.low if self.strict else value >= self.low
        return math.isfinite(value) and above and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"{'above' if self.strict else 'at least'} {self.low:g} and at most {self.high:g}"
        return f"{'above' if self.strict else 'at least'} {self.low:g}" if self.low > -math.inf else "finite"


Count = Annotated[int, Bound(low=1)]
"""One or more."""
CountOrNone = Annotated[int, Bound(low=0)]
"""Zero (off) or more."""
Positive = Annotated[float, Bound(low=0, strict=True)]
"""Above zero."""
Weight = Annotated[float, Bound(low=0)]
"""Zero (off) or more."""
Share = Annotated[float, Bound(low=0, high=1)]
"""A part of a whole."""


@dataclass(frozen=True)
class Settings:
    """Base of every section: checks each field against its annotation, then `check` for what the fields say together."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = hints_of(kind)
        for field in fields(self):
            value = getattr(self, field.name)
            try:
                converted = convert(value, hints[field.name])
            except SettingError as error:
                why = documentation(kind).get(field.name, "")
                if not error.path and why and not isinstance(error, ExclusionError):
                    error = SettingError((), f"{error.reason} (It is: {why})")
                raise self._with_advice(error, field.name).inside(field.name) from None
            object.__setattr__(self, field.name, converted)
        self.check()

    def check(self) -> None:
        """Rules between fields; a section overrides it and raises ValueError with the reason."""

    def _with_advice(self, error: SettingError, name: str) -> SettingError:
        default = next(f.default for f in fields(self) if f.name == name)
        if error.path or isinstance(error, UnknownKeyError | ExclusionError) or default is MISSING or default is None:
            return error
        return SettingError((), f"{error.reason} Set for example {name} = {show(default)}.")


def build(cls: Any, table: Mapping[str, Any]) -> Any:
    """The section `cls` from a TOML table. Raises UnknownKeyError or SettingError, with the path from this section down."""
    names = {field.name: field for field in fields(cls)}
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
            raise UnknownKeyError((str(key),), f"there is no such key. {advice}")
    missing = [n for n, f in names.items() if n not in table and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        why = documentation(cls).get(missing[0], "")
        raise SettingError((missing[0],), f"is missing and has no default. It is: {why} Add {missing[0]} = ... there.")
    try:
        return cls(**table)
    except SettingError:
        raise
    except ValueError as error:  # from `check`: two settings that exclude each other
        raise ExclusionError((), str(error)) from error


def convert(value: Any, hint: Any) -> Any:
    """`value` as the annotation `hint` wants it, or SettingError. Whole numbers become floats where a float is wanted."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, bound = get_args(hint)
        result = convert(value, base)
        if not bound.holds(result):
            raise SettingError((), f"got {show(value)}, but it must be {bound}.")
        return result
    if origin is Literal:
        return _one_of(value, get_args(hint))
    if origin in (Union, UnionType):
        (inner,) = [option for option in get_args(hint) if option is not NoneType]
        return None if value is None else convert(value, inner)
    if origin is tuple:
        return _items(value, get_args(hint))
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]  # is_dataclass does not narrow Any to a type
            return value
        if not isinstance(value, Mapping):
            raise SettingError((), f"got {show(value)}, but this is a section: a table of keys.")
        return build(hint, value)
    return _plain(value, hint)


def _plain(value: Any, kind: type[Any]) -> Any:
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int in Python, and `steps = true` is no number of steps
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SettingError((), f"got {show(value)} ({_kind_of(value)}), but it must be {words[kind]}.")
    if kind is float and not math.isfinite(value):
        raise SettingError((), f"got {show(value)}, but it must be finite: every later sum would be inf or NaN.")
    return value


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    advice = f" Did you mean {near[0]!r}?" if near else ""
    raise SettingError((), f"got {show(value)}, but it must be one of {', '.join(show(c) for c in choices)}.{advice}")


def _items(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SettingError((), f"got {show(value)} ({_kind_of(value)}), but it must be a list.")
    fixed = kinds[-1] is not Ellipsis
    if fixed and len(value) != len(kinds):
        raise SettingError((), f"got {len(value)} values, but it must be a list of {len(kinds)}.")
    converted = []
    for number, item in enumerate(value):
        try:
            converted.append(convert(item, kinds[number] if fixed else kinds[0]))
        except SettingError as error:
            raise error.inside(str(number)) from None
    return tuple(converted)


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The annotations of `cls` and its bases, with their bounds."""
    return get_type_hints(cls, include_extras=True)


@cache
def documentation(cls: Any) -> dict[str, str]:
    """The docstring under each field in the source of `cls` and its bases, by the field's name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        source = textwrap.dedent(inspect.getsource(base)) if hasattr(base, "__dataclass_fields__") else ""
        for node in (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)):
            for target, text in zip(node.body, node.body[1:]):
                is_field = isinstance(target, ast.AnnAssign) and isinstance(target.target, ast.Name)
                value = text.value if isinstance(text, ast.Expr) else None
                if is_field and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[target.target.id] = " ".join(value.value.split())  # type: ignore[attr-defined]
    return found


def describe_place(path: tuple[str, ...]) -> str:
    """("data", "sources", "0", "kind") -> "[data.sources.0] kind"."""
    if path[-1].isdigit():
        return ".".join(path)
    return f"[{'.'.join(path[:-1])}] {path[-1]}" if len(path) > 1 else path[0]


def show(value: Any) -> str:
    """`value` as it would stand in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    return repr(value)


def _kind_of(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), type(value).__name__)
