"""Load a run's configuration from TOML and `--set key=value`, and write it back.

    config = load_config("train/configs/nano.toml", ["optimization.steps=50", "model.lora.rank=8"], SftConfig)
    Path("config.toml").write_text(dump(config))

Reading is tomllib's. Writing is done here: the tree holds only tables, lists, text, numbers and booleans, and forty lines
cost less than a dependency. TOML has no null: an absent key is None, and `--set model.lora=none` takes one away.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from train.schema import SettingError, Settings, UnknownKeyError, build, documentation, hints_of
from train.settings_rl import RlConfig
from train.settings_sft import SftConfig

__all__ = ["ConfigError", "RlConfig", "SftConfig", "differences", "dump", "fingerprint", "flatten", "load_config"]

Config = TypeVar("Config", bound=Settings)

# A resumed run may change these: they decide what is watched and kept, not which weights come out.
WITHOUT_EFFECT = ("evaluate", "checkpoint", "output")


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the section and the key."""


def load_config(path: str | Path, overrides: Sequence[str] = (), cls: type[Config] = SftConfig) -> Config:  # type: ignore[assignment]
    """The configuration in the TOML file `path`, after `overrides` of the form "section.key=value".

    Raises FileNotFoundError for a missing file and ConfigError for text that is no TOML, an unknown key (with the nearest
    one), a value of the wrong type or out of range, and settings that exclude each other.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no configuration file {str(path)!r}. The shipped ones are in train/configs/."
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path.name} is no TOML: {error}. Text needs quotes, and a table's name square brackets."
        ) from error
    for override in overrides:
        _apply(table, override, cls)
    where = path.name if not overrides else f"{path.name} with {' '.join(f'--set {o}' for o in overrides)}"
    try:
        result: Config = build(cls, table)
    except UnknownKeyError as error:
        raise ConfigError(f"{where}: {error}{_elsewhere(cls, error.path)}") from error
    except SettingError as error:
        raise ConfigError(f"{where}: {error}") from error
    return result


def dump(config: Settings, *, documented: bool = False) -> str:
    """The whole configuration as TOML, defaults included: `load_config` of it gives an equal object.

    With `documented`, each key is preceded by what it is and where its value comes from.
    """
    lines: list[str] = []
    _write(config, (), lines, documented)
    return "\n".join(lines).strip() + "\n"


def flatten(config: Settings) -> dict[str, Any]:
    """Dotted key -> value, for logs and comparisons; values are what JSON has."""
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    return flat


def fingerprint(config: Settings) -> str:
    """Hex digest of every setting that can change the weights: all but [evaluate], [checkpoint] and [output]."""
    text = json.dumps(_effective(flatten(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line per effective setting that differs between two flattened configurations: "key: saved -> current"."""
    left, right = _effective(saved), _effective(current)
    return [
        f"{key}: {left.get(key, 'absent')!r} -> {right.get(key, 'absent')!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _effective(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.split(".")[0] not in WITHOUT_EFFECT}


def _flatten(value: Any, key: str, flat: dict[str, Any]) -> None:
    if is_dataclass(value):
        for field in fields(value):
            _flatten(getattr(value, field.name), f"{key}.{field.name}" if key else field.name, flat)
    elif isinstance(value, tuple) and value and is_dataclass(value[0]):
        for number, item in enumerate(value):
            _flatten(item, f"{key}.{number}", flat)
    else:
        flat[key] = list(value) if isinstance(value, tuple) else value


# --- overrides ---------------------------------------------------------------------------------------------------------


def _apply(table: dict[str, Any], override: str, cls: Any) -> None:
    """Set one dotted key in the parsed TOML; numbers in it are positions in a list of tables.

    `none` takes the key away, unless it is one of the key's own values.
    """
    key, sign, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not sign or not all(parts):
        raise ConfigError(
            f"--set {override!r} is not of the form section.key=value, for example optimization.steps=50."
        )
    place: Any = table
    for depth, part in enumerate(parts[:-1]):
        place = _step(place, part, override, create=not parts[depth + 1].isdigit())
    if isinstance(place, list):
        place[_position(place, parts[-1], override)] = _value(text, override)
    elif not isinstance(place, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parts[:-1])} is a value, not a section.")
    elif text.strip() == "none" and "none" not in _choices(cls, parts):
        place.pop(parts[-1], None)
    else:
        place[parts[-1]] = _value(text, override)


def _choices(cls: Any, parts: Sequence[str]) -> tuple[Any, ...]:
    """The values that a key of the tree `cls` can have where they are listed; empty for any other key."""
    hint: Any = cls
    for part in parts:
        section: Any = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
        hint = hints_of(section).get(part) if section is not None else None
    return get_args(hint)


def _step(place: Any, part: str, override: str, *, create: bool) -> Any:
    if isinstance(place, list):
        return place[_position(place, part, override)]
    if not isinstance(place, dict):
        raise ConfigError(f"--set {override!r}: what stands before {part!r} is a value, not a section.")
    return place.setdefault(part, {} if create else [])


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            f"--set {override!r}: {part!r} is no position in this list of {len(items)}. Count from 0; new entries belong in the "
            "file."
        )
    return int(part)


def _value(text: str, override: str) -> Any:
    """A TOML value. A bare word is text: quotes seldom survive a shell."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.strip() and text.strip()[0] not in "[{\"'":
            return text.strip()
        raise ConfigError(f"--set {override!r}: {text!r} is no TOML value: {error}.") from error
    if set(parsed) != {"value"}:
        raise ConfigError(f"--set {override!r} holds more than one line. Give one --set per key.")
    return parsed["value"]


def _elsewhere(cls: Any, path: tuple[str, ...]) -> str:
    """Where a key that is unknown in its section does exist."""
    places = sorted({".".join(p) for p in _paths(cls, ()) if p[-1] == path[-1] and p != path})
    return f" There is {', '.join(places[:3])}." if places else ""


def _paths(cls: Any, prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, hint in hints_of(cls).items():
        yield (*prefix, name)
        for option in (hint, *get_args(hint)):
            if get_origin(option) is not Annotated and is_dataclass(option):
                yield from _paths(option, (*prefix, name))


# --- writing TOML ------------------------------------------------------------------------------------------------------


def _write(section: Any, path: tuple[str, ...], lines: list[str], documented: bool) -> None:
    """Plain keys first, then tables: in TOML a key after a table header would belong to that table."""
    tables: list[tuple[str, Any]] = []
    kind: Any = type(section)
    texts = documentation(kind)
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value) or (isinstance(value, tuple) and value and is_dataclass(value[0])):
            tables.append((field.name, value))
        elif value is not None:
            if documented:
                lines.append(f"# {texts[field.name]}")
            lines.append(f"{field.name} = {_toml(value)}")
        elif documented:
            lines += [f"# {texts[field.name]}", f"# {field.name} is absent"]
    for name, value in tables:
        for item in value if isinstance(value, tuple) else (value,):
            header = ".".join((*path, name))
            lines += ["", f"[[{header}]]" if isinstance(value, tuple) else f"[{header}]"]
            _write(item, (*path, name), lines, documented)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but JSON leaves DEL as it is and TOML does not allow it
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} in a configuration: no setting allows it.")
    return repr(value)
