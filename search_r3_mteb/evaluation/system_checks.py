"""What is looked at before a system is opened: models, modes and settings that exist, and that change something."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.evaluation.abstaining import SearchSettings
from search_r3_mteb.evaluation.recording import Thinker
from search_r3_mteb.evaluation.systems import (
    SHARED,
    ModeChoice,
    ModelKind,
    ModelSpec,
    check_sizes,
    kind_of,
    split_label,
)
from search_r3_mteb.expansion.names import SETTINGS, ExpansionName, parse_name
from search_r3_mteb.json_files import read_object

if TYPE_CHECKING:
    from search_r3_mteb.evaluation.given_file import GivenFile

_TYPED = ("device", "trust_remote_code", "verify")
_OPTIONS = {
    "mode": "--mode, or mode beside a model in a comparison's plan",
    "cache_folder": "--cache-folder; a comparison keeps its store in its output",
}
OWN_OPTIONS = frozenset(_OPTIONS)
"""Settings of an encoder that a run decides itself."""


def check_settings(
    models: Sequence[ModelSpec],
    settings: Mapping[str, Any],
    mode: ModeChoice = "both",
    given: "GivenFile | None" = None,
    dims: Sequence[int] = (),
) -> None:
    """Raise FileNotFoundError for a missing model, and ValueError for settings that none of the models would use.

    So are `given` reasonings where nothing reads them, `dims` where no checkpoint has sizes or one has fewer
    dimensions, a mode that a model does not have, and `mode` and `cache_folder` among the settings. TypeError is raised
    for a setting that is not what it must be, such as the text "false".
    """
    from search_r3_mteb.encoder.settings import EncoderSettings

    EncoderSettings.from_keywords({name: value for name, value in settings.items() if name in _TYPED})
    for name in sorted(OWN_OPTIONS & set(settings)):
        raise ValueError(f"{name}={settings[name]!r} is not a setting of a model but an option: {_OPTIONS[name]}.")
    margin = SearchSettings(settings.get("abstain_margin")).abstain_margin
    kinds = [_kind(spec) for spec in models]
    expansions = [parsed for spec in models if (parsed := _expansion_of(spec)) is not None]
    ours = "search-r3" in kinds
    sizes = ", ".join(map(str, dims))
    if dims and not ours:
        raise ValueError(
            f"The sizes {sizes} would change nothing: none of the models is a Search-R3 checkpoint, and baselines run "
            "as they were made. Leave them out."
        )
    for spec in models if dims else ():
        _check_sizes(spec, dims)
    if dims and settings.get("truncate_dim") is not None:
        raise ValueError(
            f"truncate_dim={settings['truncate_dim']} and the sizes {sizes} say the same thing twice. Name all of them "
            "as sizes."
        )
    unused = sorted(set(settings) - set().union(*(used_settings(spec, settings, mode) for spec in models)))
    if margin is None:
        unused = [name for name in unused if name != "abstain_margin"]
    if ours:  # an unknown name is refused by the encoder, with those that there are
        unused = [name for name in unused if name in SETTINGS or name == "abstain_margin"]
    if ours and "abstain_margin" in unused:
        raise ValueError(f"abstain_margin={margin} would change nothing: the mode is 'direct'. Leave it out.")
    if unused:
        raise ValueError(
            f"{', '.join(unused)} would change nothing: none of the models is a "
            f"{'writer with an encoder that uses it' if ours or expansions else 'Search-R3 checkpoint'}"
            f"{' in another mode than direct' * (ours and mode == 'direct')}, and baselines run as they were "
            "made. Leave it out."
        )
    for spec in models:
        check_mode(spec, mode)
    readers = [spec for spec in models if _reads(spec, mode)]
    if given is not None and not readers:
        direct = ours and mode == "direct"
        raise ValueError(
            f"The reasonings in {given.name} would change nothing: "
            + ("the mode is 'direct'" if direct else "none of the models is a Search-R3 checkpoint or a writer")
            + ". Search-R3 checkpoints in mode 'reason' and writers with an encoder (hyde:WRITER+ENCODER, for example) "
            "read them; encoders, BM25, rocchio and feedback have no place for them. Leave them out."
        )


def used_settings(spec: ModelSpec, settings: Mapping[str, Any], mode: ModeChoice = "both") -> set[str]:
    """The names of all settings that change something for this model; those of a run may be meant for its others.

    An encoder in memory has its own. Raises FileNotFoundError for no model, ValueError and TypeError for values that a
    writer with an encoder cannot use.
    """
    from search_r3_mteb.encoder.settings import EncoderSettings

    kind = _kind(spec)
    if (expansion := _expansion_of(spec)) is not None:
        return expansion.check(settings) - OWN_OPTIONS
    if kind == "sentence-transformers":
        return {*SHARED}
    if kind != "search-r3":
        return set()
    found = {each.name for each in fields(EncoderSettings)} | {"revision", "abstain_margin"}
    return found - OWN_OPTIONS - ({"temperature", "anchor", "abstain_margin"} if mode == "direct" else set())


def check_mode(spec: ModelSpec, mode: ModeChoice) -> None:
    """Raises ValueError for mode "direct" of a writer, which would write all the same; encoders in memory have one."""
    expansion = _expansion_of(spec)
    if mode == "direct" and expansion is not None and expansion.method.needs_writer:
        raise ValueError(
            f"mode='direct': {spec} always writes about a query. Name its encoder alone, {expansion.encoder}, for "
            "vectors without a text, and run writers in a mode of their own ('both' or 'reason')."
        )


def reasons(spec: ModelSpec) -> bool:
    """Whether the model generates text about a query, in one of its modes. Raises FileNotFoundError for no model."""
    expansion = _expansion_of(spec)
    return _kind(spec) == "search-r3" or (expansion is not None and expansion.method.needs_writer)


def _kind(spec: ModelSpec) -> ModelKind | None:
    """The kind of a model by name, or of a checkpoint in memory; None for an encoder in memory."""
    if isinstance(spec, str | Path):
        return kind_of(split_label(spec)[1])
    return "search-r3" if _is_checkpoint(spec) else None


def _expansion_of(spec: ModelSpec) -> ExpansionName | None:
    return parse_name(split_label(spec)[1]) if isinstance(spec, str | Path) else None


def _is_checkpoint(spec: ModelSpec) -> bool:
    from search_r3_mteb.encoder.checkpoints import Checkpoint

    return isinstance(spec, Checkpoint)


def _check_sizes(spec: ModelSpec, dims: Sequence[int]) -> None:
    """ValueError for a size that is too large, where a folder's config.json says how long its vectors are."""
    from search_r3_mteb.encoder.model_names import resolve

    if not isinstance(spec, str | Path) or _kind(spec) != "search-r3":
        return  # an encoder's or a checkpoint's weights are loaded: `open_systems` looks at them
    path = split_label(spec)[1]
    file = resolve(path) / "config.json"
    config = read_object(file) if file.is_file() else {}
    text = config.get("text_config")
    width = (text if isinstance(text, dict) else config).get("hidden_size")
    if isinstance(width, int):
        try:
            check_sizes(dims, width)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _reads(spec: ModelSpec, mode: ModeChoice) -> bool:
    """Whether the model has a place for given reasonings."""
    if (expansion := _expansion_of(spec)) is not None:
        return not expansion.method.needs_corpus
    if _kind(spec) == "search-r3":
        return mode != "direct"
    method = getattr(spec, "method", None)
    return isinstance(spec, Thinker) and spec.mode == "reason" and not getattr(method, "needs_corpus", False)
