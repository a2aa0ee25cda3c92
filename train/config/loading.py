"""Reader and writer of a run's configuration: TOML and `--set key=value` in, TOML out.

    config = load_config("train/configs/nano.toml", ["optimization.steps=50", "model.lora.rank=8"], SftConfig)
    Path("config.toml").write_text(dump(config))

TOML has no null: an absent key is None, and `--set model.lora=none` takes one away.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import ValidationError

from train.config.settings import Settings, choices_of, describe, place, sections_of
from train.config.stages import SftConfig

Config = TypeVar("Config", bound=Settings)

# A resumed run may change these sections: they decide what is watched and kept, not which weights come out.
WITHOUT_EFFECT = ("evaluate", "checkpoint", "output")
STEPS = "optimization.steps"  # may be raised: a run is extended, its first steps were the same


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the section and the key."""


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    cls: type[Config] = SftConfig,  # type: ignore[assignment]
) -> Config:
    """The configuration `cls` in the TOML file `path`, after `overrides` of the form "section.key=value".

    Raises FileNotFoundError for a missing file and ConfigError for text that is not TOML, an unknown key (with the
    nearest one), a value of the wrong type or out of range, and settings that exclude each other.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no configuration file {str(path)!r}. The shipped ones are in train/configs/."
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name} is not TOML: {error}. Text needs quotes, and a table's name square brackets."
        ) from error
    for override in overrides:
        _apply(table, override, cls)
    where = path.name if not overrides else f"{path.name} with {' '.join(f'--set {o}' for o in overrides)}"
    try:
        return cls.model_validate(table)
    except ValidationError as error:
        problems = [
            (f"{place(keys, cls)}: " if keys else "") + reason + (_elsewhere(cls, keys) if unknown else "")
            for keys, reason, unknown in describe(error, cls)
        ]
        raise ConfigError(f"{where}: " + "\n".join(problems)) from error


def dump(config: Settings, *, documented: bool = False) -> str:
    """The whole configuration as TOML, defaults included: `load_config` of it gives an equal object.

    With `documented`, each key is preceded by what it is and where its value comes from.
    """
    return tomlkit.dumps(_table(config, tomlkit.document(), documented))


def flatten(config: Settings) -> dict[str, Any]:
    """Dotted key -> JSON value, for logs and comparisons."""
    return dict(_flat(config, ""))


def fingerprint(config: Settings) -> str:
    """Hex digest of every setting that can change the weights: all but [evaluate], [checkpoint] and [output]."""
    text = json.dumps(_effective(flatten(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line per effective setting that differs between two flattened configurations: "key: saved -> current".

    More optimizer steps than before do not count: a run, also a finished one, may be extended.
    """
    left, right = _effective(saved), _effective(current)
    if left.get(STEPS, 0) < right.get(STEPS, 0):
        del left[STEPS], right[STEPS]
    return [
        f"{key}: {left.get(key, 'absent')!r} -> {right.get(key, 'absent')!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _effective(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.split(".")[0] not in WITHOUT_EFFECT}


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Settings):
        for name, item in value:
            yield from _flat(item, f"{key}.{name}" if key else name)
    elif _is_list_of_sections(value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{key}.{number}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _is_list_of_sections(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Settings)


def _table(section: Settings, table: Any, documented: bool) -> Any:
    """The section as a tomlkit table: plain keys first, since a key after a table's header belongs to that table."""
    tables = [(name, value) for name, value in section if isinstance(value, Settings) or _is_list_of_sections(value)]
    for name, value in section:
        if (name, value) in tables:
            continue
        if documented:
            table.add(tomlkit.comment(" ".join((type(section).model_fields[name].description or "").split())))
        if value is not None:
            table.add(name, list(value) if isinstance(value, tuple) else value)
        elif documented:
            table.add(tomlkit.comment(f"{name} is absent"))
    for name, value in tables:
        if isinstance(value, Settings):
            table.add(name, _table(value, tomlkit.table(), documented))
        else:
            rows = tomlkit.aot()
            for item in value:
                rows.append(_table(item, tomlkit.table(), documented))
            table.add(name, rows)
    return table


# ---- overrides -------------------------------------------------------------------------------------------------------


def _apply(table: dict[str, Any], override: str, cls: type[Settings]) -> None:
    """Set one dotted key in the parsed TOML; numbers in it are positions in a list of tables.

    `none` takes the key away, unless it is one of the key's own values.
    """
    key, sign, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not sign or not all(parts):
        raise ConfigError(
            f"--set {override!r} is not of the form section.key=value, for example optimization.steps=50."
        )
    target: Any = table
    for depth, part in enumerate(parts[:-1]):
        target = _step_into(target, part, override, create=not parts[depth + 1].isdecimal())
    if isinstance(target, list):
        target[_position(target, parts[-1], override)] = _value(text, override)
    elif not isinstance(target, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parts[:-1])} is a value, not a section.")
    elif text.strip() == "none" and "none" not in choices_of(parts, cls):
        target.pop(parts[-1], None)
    else:
        target[parts[-1]] = _value(text, override)


def _step_into(target: Any, part: str, override: str, *, create: bool) -> Any:
    if isinstance(target, list):
        return target[_position(target, part, override)]
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override!r}: the key before {part!r} is a value, not a section.")
    return target.setdefault(part, {} if create else [])


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(
            f"--set {override!r}: {part!r} is not a position in this list of {len(items)}. Count from 0; new entries "
            "belong in the file."
        )
    return int(part)


def _value(text: str, override: str) -> Any:
    """The value of an override: TOML, or a bare word as text, since quotes seldom survive a shell."""
    if not text.strip():
        raise ConfigError(f'--set {override!r} has no value. Write one, "" for empty text, or none to remove the key.')
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.strip() and text.strip()[0] not in "[{\"'":
            return text.strip()
        raise ConfigError(f"--set {override!r}: {text!r} is not a TOML value: {error}.") from error
    if set(parsed) != {"value"}:
        raise ConfigError(f"--set {override!r} holds more than one line. Give one --set per key.")
    return parsed["value"]


def _elsewhere(cls: type[Settings], path: tuple[str, ...]) -> str:
    """Where a key that is unknown in its section does exist."""
    places = sorted({".".join(keys) for keys in _paths(cls, ()) if keys[-1] == path[-1] and keys != path})
    return f" There is {', '.join(places[:3])}." if places else ""


def _paths(cls: type[Settings], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in cls.model_fields.items():
        yield (*prefix, name)
        for section in sections_of(field.annotation):
            yield from _paths(section, (*prefix, name))
