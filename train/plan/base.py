"""The shape of the model that a run would train, from `config.json` alone: no weights are read, none are made."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG, BASE_FILE
from search_r3_mteb.encoder.folders import check_layers
from search_r3_mteb.encoder.manifest import check_files
from search_r3_mteb.encoder.model_names import BUNDLED_PREFIX, bundled_names, resolve
from search_r3_mteb.encoder.packaged_bases import BASES, base_here
from search_r3_mteb.encoder.profiles import PROFILE_FILE
from search_r3_mteb.json_files import read_object
from train.config.loading import ConfigError, load_config
from train.config.model import ModelSettings
from train.config.stages import SftConfig
from train.model import scratch
from train.model.model import adapter_start, make_trainable

_CONFIG = "config.json"


@dataclass(frozen=True)
class PlannedModel:
    """The model with its adapter and frozen parts on the meta device; `folder` holds its config.json, and perhaps more.

    `prompts` is the folder whose tokenizer and profile the run has: that of a trained model or adapter, which brings
    its own, or `folder`. `profile` is the name under which a base without one begins. `steps` says how they were
    found, for people.
    """

    model: Any
    folder: Path | None
    prompts: Path | None
    profile: str | None
    steps: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """`folder` holds config.json, or `scratch` is the shape of a model from nothing; the rest as in PlannedModel."""

    folder: Path | None
    scratch: Any
    prompts: Path | None
    profile: str | None


def planned_model(settings: ModelSettings, config_file: Path | None = None, base: str | None = None) -> PlannedModel:
    """The model that `settings` would train, without weights.

    Its config.json is sought under `base` (a folder, the file itself, or a hub id) where that is given; in the folder
    `settings.path`; in the base of an adapter; where `settings.path` is what stage 1 will write, in the base of the
    stage 1 whose file lies beside `config_file`; and under the hub id. `base` changes nothing about the prompts of a
    trained model or adapter that is here. Raises FileNotFoundError, which says what to
    download and to where, and ValueError for a config.json that is not a causal LM's.
    """
    steps: list[str] = []
    if settings.scratch is not None:
        found = _Found(None, settings.scratch, None, None)
    else:
        found = _find(settings, config_file, base, steps)
    folder = found.folder
    if folder is not None:
        check_files(folder, partial=True)
    if folder is None:
        steps.append("random weights of [model.scratch]")
        made = scratch.shape(found.scratch)
    else:
        made = _config(folder, settings.trust_remote_code)
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                made, dtype=_dtype(settings, made), trust_remote_code=settings.trust_remote_code
            )
    except Exception as error:  # values of a wrong type or size: each library and architecture raises errors of its own
        raise ValueError(
            f"{folder}: transformers cannot make a causal LM from this {_CONFIG}: {type(error).__name__}: {error}"
        ) from error
    planned: Any = SimpleNamespace(model=model, embed_token_id=0, name=str(settings.path))
    make_trainable(planned, settings, seed=0)
    return PlannedModel(planned.model, folder, found.prompts, found.profile, tuple(steps))


def _dtype(settings: ModelSettings, config: Any) -> torch.dtype:
    name = str(getattr(config, "dtype", None) or "float32") if settings.dtype == "auto" else settings.dtype
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def _config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    check_layers(folder, read_object(folder / _CONFIG))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # also values of a wrong type, for which huggingface_hub has errors of its own
        raise ValueError(
            f"{folder / _CONFIG} is not a configuration that transformers knows: {type(error).__name__}: {error}"
        ) from error


def _find(settings: ModelSettings, config_file: Path | None, base: str | None, steps: list[str]) -> _Found:
    """Where the shape and the prompts come from; what was found on the way goes to `steps`."""
    path = str(settings.path)
    # A name that is also a folder here is refused when the dry run, or training, resolves it.
    local = resolve(path) if path.removeprefix(BUNDLED_PREFIX) in bundled_names() else Path(path)
    own = local if (local / PROFILE_FILE).is_file() else None
    if base is not None:
        folder = _folder(base, None)
        steps.append(f"the shape is that of {folder / _CONFIG} (--base)")
        return _Found(folder, None, own or folder, settings.profile)
    if (local / ADAPTER_CONFIG).is_file():
        check_files(local, partial=True)
        start = adapter_start(settings, local)
        what = "its training goes on" if start == "continue" else "it is merged, and every weight is trained"
        steps.append(f"{path} is an adapter: {what}")
        found = _find(settings.replaced(path=_adapter_base(local)), config_file, None, steps)
        return replace(found, prompts=own or found.prompts)
    if not local.exists() and (stage_one := written_by(path, config_file)) is not None:
        file, before = stage_one
        steps.append(f"{path} is not there yet: it is what stage 1 of {file.name} will write")
        if before.scratch is not None:
            return _Found(None, before.scratch, None, None)
        return _find(before, file, None, steps)
    folder = _folder(path, settings.revision)
    steps.append(f"the shape is that of {folder / _CONFIG}")
    return _Found(folder, None, folder, settings.profile)


def written_by(path: str, config_file: Path | None) -> tuple[Path, ModelSettings] | None:
    """The configuration beside `config_file` whose run writes the folder `path` ("best" or "last"), and its model."""
    run, name = Path(path).parent, Path(path).name
    if config_file is None or name not in ("best", "last"):
        return None
    for file in sorted(config_file.parent.glob("*.toml")):
        if Path(tomllib.loads(file.read_text(encoding="utf-8-sig")).get("output", {}).get("folder", "")) != run:
            continue
        try:
            return file, load_config(file, (), SftConfig).model
        except ConfigError:
            continue  # a second stage 2
    return None


def _adapter_base(folder: Path) -> str:
    """Where the base of an adapter lies, by the files beside it; unlike `find_base`, its weights need not be there."""
    named = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    recorded = read_object(folder / BASE_FILE) if (folder / BASE_FILE).exists() else {}
    if recorded.get("packaged") in BASES and (here := base_here(recorded["packaged"])) is not None:
        return str(here)
    for place in (folder / str(recorded.get("path")), folder / str(named), Path(str(named))):
        if (place / _CONFIG).is_file():
            return str(place)
    return str(recorded.get("name") or named)


def _folder(path: str, revision: str | None) -> Path:
    """The folder that holds the config.json of a path, a bundled name or a hub id."""
    place = Path(path)
    if place.name == _CONFIG and place.is_file():
        return place.parent
    if (place / _CONFIG).is_file():
        return place
    if place.is_dir():
        raise FileNotFoundError(
            f"{path} holds no {_CONFIG}, the only file that a dry run needs. Copy the base's there, or name its "
            "folder with --base."
        )
    if "/" not in path.removeprefix(BUNDLED_PREFIX):
        return resolve(path)  # bundled, or an error with the known names
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"There is no model {path!r} (looked for in {place.absolute()}). A dry run needs only the {_CONFIG} of the "
            "base: name the folder or hub id that holds it with --base."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(path, _CONFIG, revision=revision)).parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{path!r} is neither a folder here nor found on the hub ({reason}), so there is no {_CONFIG}. "
            f"Where there is a network: `hf download {path} {_CONFIG} --local-dir BASE`, or "
            f"https://huggingface.co/{path}/resolve/{revision or 'main'}/{_CONFIG}. Copy it here, to a folder BASE, "
            "and add --base BASE; weights are not needed for a dry run."
        ) from error
