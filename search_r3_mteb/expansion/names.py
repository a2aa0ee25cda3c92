"""Query expansion by name: METHOD:WRITER+ENCODER, and rocchio:ENCODER."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.folders import is_sentence_transformer, is_there
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.expansion.methods import METHODS, Method
from search_r3_mteb.expansion.settings import ExpansionSettings, unused_by

SETTINGS = frozenset(field.name for field in fields(ExpansionSettings))
_SIGN = "+"


@dataclass(frozen=True)
class ExpansionName:
    """What a name says: a method, the writer (None for Rocchio) and the encoder, both as a model's name or folder."""

    method: Method
    writer: str | None
    encoder: str

    @property
    def short(self) -> str:
        """METHOD-WRITER+ENCODER, with the last parts of the names: may be a part of a file's name."""
        models = [Path(model).name for model in (self.writer, self.encoder) if model is not None]
        return f"{self.method.name}-{'+'.join(models)}"

    def check(self, settings: Mapping[str, Any]) -> set[str]:
        """The names of the settings that this method uses; those of a run may be meant for its other models.

        Raises ValueError and TypeError for values that it cannot use.
        """
        if settings.get("revision") is not None:
            raise ValueError(
                f"revision={settings['revision']!r} would be that of the writer or of the encoder. Download the two, "
                "and name their folders."
            )
        ExpansionSettings.from_keywords(self.chosen(settings)).check_method(self.method, self._ordinary_encoder)
        return set(self._used)

    def chosen(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the settings that this method uses, with this encoder."""
        return {key: value for key, value in settings.items() if key in self._used}

    @cached_property
    def _used(self) -> frozenset[str]:
        return SETTINGS - unused_by(self.method, self._ordinary_encoder)

    @cached_property
    def _ordinary_encoder(self) -> bool:
        return is_sentence_transformer(resolve(self.encoder))


def parse_name(text: Any) -> ExpansionName | None:
    """The parts of METHOD:WRITER+ENCODER, or None for the name of another model.

    A plus sign may be part of a folder's name: the place is taken where both sides are models. Raises ValueError for a
    method without its models, and where several places would do.
    """
    if not isinstance(text, str) or is_there(text):
        return None
    head, sign, rest = text.partition(":")
    if not sign or head not in METHODS:
        return None
    method = METHODS[head]
    form = f"{head}:{'WRITER+' if method.needs_writer else ''}ENCODER"
    if not rest or (method.needs_writer and _SIGN not in rest):
        raise ValueError(f"{text!r} does not say which models: write {form}, each a folder, a hub id or nano or mini.")
    if method.needs_writer and _SIGN in (rest[0], rest[-1]) and rest.count(_SIGN) == 1:
        lacking = "writer before" if rest[0] == _SIGN else "encoder after"
        raise ValueError(f"{text!r} names no {lacking} the '+': write {form}.")
    if not method.needs_writer:
        return ExpansionName(method, None, rest)
    places = [place for place, letter in enumerate(rest) if letter == _SIGN]
    pairs = [(rest[:place], rest[place + 1 :]) for place in places]
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if all(_is_there(each) for each in pair)]
    if len(pairs) != 1 or not all(pairs[0]):
        raise ValueError(
            f"{text!r}: {len(pairs)} places of '+' part it into a writer and an encoder that are there. Write {form}, "
            "and rename or link a folder whose name has a plus sign."
        )
    return ExpansionName(method, *pairs[0])


def open_expansion(name: ExpansionName, settings: Mapping[str, Any]) -> Any:
    """The encoder of a name. Settings that its method does not use are left out: other models of a run may use them."""
    from search_r3_mteb.expansion.feedback import FeedbackEncoder
    from search_r3_mteb.expansion.writer_encoder import WriterEncoder

    name.check(settings)
    kind = FeedbackEncoder if name.method.needs_corpus else WriterEncoder
    return kind(name.writer, name.encoder, method=name.method.name, **name.chosen(settings))


def _is_there(model: str) -> bool:
    """Whether a folder or a bundled model has this name; a hub is not asked."""
    if not model or (not is_there(model) and "/" in model):
        return False
    try:
        resolve(model)
    except (FileNotFoundError, ValueError):
        return False
    return True
