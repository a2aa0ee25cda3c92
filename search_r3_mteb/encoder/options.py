"""Encoder settings from text: NAME=VALUE pairs of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from search_r3_mteb.encoder.settings import EncoderSettings
from search_r3_mteb.json_files import parse_json

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def parse_settings(pairs: Sequence[str], *further: type) -> dict[str, Any]:
    """The values in the types that `EncoderSettings` has; "revision" is the hub's, as in SearchR3Encoder.

    `further` are other dataclasses of settings whose names are valid, too. Raises ValueError for text that is not such
    a pair, an unknown name, and a value of another type.
    """
    valid: dict[str, Any] = {}
    for kind in (*further, EncoderSettings):  # where both have a name, the type is the encoder's
        valid |= {each.name: get_type_hints(kind)[each.name] for each in fields(kind)}
    valid["revision"] = str
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or name not in valid:
            raise ValueError(f"--set {pair}: write NAME=VALUE, where NAME is one of {', '.join(valid)}.")
        settings[name] = _parsed(pair, text.strip(), valid[name])
    return settings


def _parsed(pair: str, text: str, hint: Any) -> Any:
    kinds = {hint, *get_args(hint)}
    if text in {value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}:
        return text
    if type(None) in kinds and text.lower() == "none":
        return None
    if any(get_origin(kind) is Mapping for kind in kinds):
        found = parse_json(text, f"--set {pair}")
        if not isinstance(found, dict):
            raise ValueError(f'--set {pair}: {text!r} is not a JSON object such as {{"tensor_parallel_size": 2}}.')
        return found
    if bool in kinds:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"--set {pair}: {text!r} is neither true nor false.")
        return text.lower() in _TRUE
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError as error:
                raise ValueError(f"--set {pair}: {text!r} is not a {'whole ' if kind is int else ''}number.") from error
    return text
