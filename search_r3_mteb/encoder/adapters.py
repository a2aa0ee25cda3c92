"""Adapter folders: which base model an adapter belongs to, where that base lies, and which kinds can be run here.

`base_model.json` beside an adapter records its base: the path relative to the adapter's folder (both can be moved
together), a hub id or bundled name where it has one, and a digest of its weights.
"""

import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json
from search_r3_mteb.encoder.folders import weight_files
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, accepting
from search_r3_mteb.encoder.packaged_bases import find_packaged
from search_r3_mteb.encoder.token_rows import ROWS_FILE, bare, layer_name, resize, save_rows
from search_r3_mteb.json_files import kind, parse_json, read_object

ADAPTER_CONFIG = "adapter_config.json"
BASE_FILE = "base_model.json"
_WITHOUT_EFFECT = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache")
_WHOLE, _SLICES, _SLICE = 1 << 20, 64, 4096  # bytes: smaller tensors are read whole, larger ones in slices


@contextmanager
def quiet_peft() -> Iterator[None]:
    """A context without transformers' warning that peft calls a property by its old name: nobody here can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def check_kind(config: dict[str, Any], name: str) -> None:
    """ValueError for an adapter whose effect does not lie in the model's layers alone.

    peft's wrapper adds prompts or chooses experts in its own forward; the engine runs the layers.
    """
    kind = str(config.get("peft_type"))
    outside = "PROMPT" in kind or kind in ("P_TUNING", "PREFIX_TUNING", "CPT", "POLY", "XLORA")
    if config.get("alora_invocation_tokens"):
        outside, kind = True, "activated LoRA (alora_invocation_tokens)"
    if outside:
        raise ValueError(
            f"{name}: an adapter of the kind {kind} ({ADAPTER_CONFIG}) acts in peft's own forward, which is not run "
            "here, so it would silently do nothing. Use one that lies in the layers (LoRA, DoRA, rsLoRA, IA3), or "
            "merge it elsewhere."
        )

    start = str(config.get("init_lora_weights", ""))
    if start.startswith("pissa_niter") or start in ("corda", "lora_ga"):
        raise ValueError(
            f"{name}: init_lora_weights = {start!r} changed the base's weights by random numbers or by data that the "
            "folder does not hold, so every load would be another model. Convert it to a plain LoRA when saving "
            "(peft: path_initial_model_for_weight_conversion), or merge it where it was trained."
        )


def check_used(model: Any, folder: Path) -> None:
    """ValueError where the adapter's file holds tensors that its configuration has no place for: peft drops them."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        dropped = sorted(set(file.keys()) - set(get_peft_model_state_dict(model, save_embedding_layers=True)))
    if dropped:
        raise ValueError(
            f"{folder.name}: the adapter's file holds {len(dropped)} tensors that {ADAPTER_CONFIG} has no place for "
            f"({dropped[0]}), so it would give other vectors. Restore the configuration that it was saved with."
        )


def check_state(model: Any) -> None:
    """ValueError for a PEFT model that is not what one adapter folder can hold: several adapters, or a merged one."""
    names, active = sorted(model.peft_config), list(model.active_adapters)
    if names != ["default"] or active != ["default"]:
        raise ValueError(
            f"The model has the adapters {', '.join(names)} ({', '.join(active) or 'none'} active), but a folder holds "
            "one, named 'default'. Merge the others first, or load the one that is meant alone."
        )
    if any(getattr(module, "merged", False) for module in model.modules() if hasattr(module, "unmerge")):
        raise ValueError(
            "The adapter is merged into its base at present, and its folder would hold it a second time. Call "
            "model.unmerge_adapter() first, or save the result of merge_and_unload()."
        )
    for config in model.peft_config.values():
        check_kind(config.to_dict(), "this model")


def save_base(model: Any, embed_token_id: int, folder: Path, assets: Path) -> None:
    """Write beside a saved adapter which base it belongs to, and the base's rows that the base folder may lack."""
    config = read_object(folder / ADAPTER_CONFIG)
    base = _local(config.get("base_model_name_or_path"), config.get("revision"))
    causal = model.get_base_model()
    rows = int(causal.get_input_embeddings().weight.shape[0])
    kept = rows if base is None else _vocabulary(base)
    save_rows(causal, [embed_token_id, *range(min(kept, rows), rows)], folder)
    if base is None:  # a base that lies nowhere: `find_base` says so
        (folder / BASE_FILE).unlink(missing_ok=True)
        return
    name, revision = _name(base, assets)
    hub = name is not None and "/" in name
    described = {"base_model_name_or_path": name if hub else str(base), "revision": revision if hub else None}
    # peft's own file, so that peft finds the base from any directory.
    write_json(folder / ADAPTER_CONFIG, config | described)
    path = Path(os.path.relpath(base, folder.resolve())).as_posix()
    recorded = {
        "path": path,
        "name": name,
        "revision": revision,
        "digest": weights_digest(base),
        "configuration": configuration_digest(base),
    }
    write_json(folder / BASE_FILE, recorded)


def find_base(folder: Path, config: dict[str, Any], resolve: Any) -> Path:
    """The folder of the base model of the adapter in `folder`; `resolve` finds hub ids and bundled names.

    It is sought under the path in adapter_config.json, relative to the adapter's folder and then as it is, and under
    what `base_model.json` records; that of a bundled adapter as `packaged_bases.find_packaged` says. Raises
    FileNotFoundError where it is nowhere, ValueError where only other models are there.
    """
    base = config.get("base_model_name_or_path")
    _check_texts(config, ("base_model_name_or_path", "revision"), folder / ADAPTER_CONFIG)
    has_record = (folder / BASE_FILE).exists()
    recorded = read_object(folder / BASE_FILE) if has_record else {}
    _check_texts(recorded, ("path", "name", "revision", "digest", "configuration", "packaged"), folder / BASE_FILE)
    if recorded.get("packaged") is not None:
        return find_packaged(folder, recorded, weights_digest)
    if has_record and (recorded.get("path") is None or recorded.get("digest") is None):
        raise ValueError(
            f"{folder.name}: {BASE_FILE} lacks 'path' or 'digest', so it was damaged. Restore it, or delete it if "
            f"{ADAPTER_CONFIG} names the right base."
        )
    if not base and not recorded:
        raise ValueError(
            f"{folder.name}: {ADAPTER_CONFIG} names no base model. Write its path or hub id under "
            "'base_model_name_or_path'."
        )
    others, missing = [], []
    for where in _places(folder, base, config.get("revision"), recorded):
        try:
            found = where if isinstance(where, Path) else resolve(*where)
        except FileNotFoundError as error:
            missing.append(str(error).rstrip("."))
            continue
        if not found.is_dir():
            missing.append(f"{found} is not a folder")
        elif recorded and not _is_recorded(found, recorded):
            others.append(str(found))
        else:
            return Path(found).resolve()
    then = f", then accept it: {accepting(folder)}" if (folder / MANIFEST_FILE).exists() else ""
    how = (
        f"Write the base's folder (absolute, or relative to the adapter's folder) or hub id under "
        f"'base_model_name_or_path' in {folder.name}/{ADAPTER_CONFIG}{then}."
    )
    if others:
        raise ValueError(
            f"{folder.name}: {', '.join(others)} is not the base that this adapter was saved with: its weights or "
            f"configuration are others, so its vectors would be. {how} If that model is meant, delete "
            f"{BASE_FILE}{then}."
        )
    raise FileNotFoundError(
        f"{folder.name}: its base model {base or recorded['path']!r} was not found ({'; '.join(missing)}). {how}"
    )


def _check_texts(found: dict[str, Any], names: tuple[str, ...], file: Path) -> None:
    for name in names:
        if not isinstance(found.get(name), str | None):
            raise ValueError(f"{file}: {name!r} must be a string or null, got {kind(found[name])}. Restore the file.")


def configuration_digest(folder: Path) -> str:
    """Hex digest of a base's config.json without what does not change its vectors."""
    config = read_object(folder / "config.json")
    kept = {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _is_recorded(base: Path, recorded: dict[str, Any]) -> bool:
    same = weights_digest(base) == recorded["digest"]
    return same and recorded.get("configuration") in (None, configuration_digest(base))


def fit_rows(model: Any, tokenizer: Any, folder: Path, token: str, base_vocabulary: dict[str, int] | None) -> None:
    """Give a base model the rows that an adapter without `token_rows.safetensors` (peft's own) was trained with.

    `base_vocabulary` is that of the base's tokenizer, where it has one. Raises ValueError where the embed token is new
    and its row is nowhere. Warns where only the head's row is missing: vectors are right, but the token cannot be said.
    """
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config = read_object(folder / ADAPTER_CONFIG)
    layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    names = {which: layer_name(model, layer) for which, layer in layers.items() if layer is not None}
    rows = [_rows_of(name, shapes) for name in names.values()]
    saved = max((count for count in rows if count), default=0)
    before = int(model.get_input_embeddings().weight.shape[0])
    used = min(before, len(base_vocabulary) if base_vocabulary else before)
    resize(model, saved or max(before, len(tokenizer)), used)
    index = tokenizer.get_vocab().get(token)
    if base_vocabulary is None or token in base_vocabulary or index is None:
        return
    indices = config.get("trainable_token_indices") or {}
    if isinstance(indices, list):  # peft's short form: rows of the input embedding
        indices = {names["input"]: indices}
    held = {which: _holds(name, index, indices, shapes) for which, name in names.items()}
    if bare(layers["input"]).weight is (None if layers["output"] is None else bare(layers["output"]).weight):
        held = dict.fromkeys(held, any(held.values()))
    if not held["input"]:
        raise ValueError(
            f"{folder.name}: its tokenizer has {token}, its base model does not, and the adapter holds no row for it "
            f"({ROWS_FILE}, trainable_token_indices or modules_to_save): what it was trained with is lost. Save the "
            "adapter with the token's rows."
        )
    if not held.get("output", True):
        warnings.warn(
            f"{folder.name}: the adapter holds the input row of {token} but not the head's, which its untied base "
            f"model lacks, too: the model can hardly say the token, and reasoning ends when its budget is spent. "
            f"Train both rows: trainable_token_indices={{{names['input']!r}: [{index}], {names['output']!r}: "
            f"[{index}]}}.",
            stacklevel=2,
        )


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of a folder's tensors; of large ones 64 slices of 4 KiB.

    Our choice: a sample. Reading all of a 7B model takes a minute, and models that differ do so in most places.
    """
    digest = hashlib.sha256()
    for name, tensor, data in sorted(_tensors(folder), key=lambda one: one[0]):
        digest.update(f"{name}|{tensor['dtype']}|{tensor['shape']}|".encode())
        if len(data) <= _WHOLE:
            digest.update(data)
        else:
            for part in range(_SLICES):
                start = part * (len(data) - _SLICE) // (_SLICES - 1)
                digest.update(data[start : start + _SLICE])
    return digest.hexdigest()


def _tensors(folder: Path) -> Iterator[tuple[str, dict[str, Any], memoryview]]:
    """Name, header entry and bytes of every tensor in a folder's safetensors files."""
    for path in weight_files(folder):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(length), path, advice="Copy it again.")
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))[8 + length :]
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                yield name, tensor, data[start:end]


def _places(folder: Path, base: str | None, revision: str | None, recorded: dict[str, Any]) -> Iterator[Any]:
    """Where the base may lie: folders, and (name, revision) of what is not a folder."""
    if base:
        if not Path(base).is_absolute() and (folder / base).is_dir():
            yield folder / base
        if Path(base).is_dir():
            yield Path(base)
    if recorded and (folder / recorded["path"]).is_dir():
        yield folder / recorded["path"]
    if recorded.get("name"):
        yield recorded["name"], recorded["revision"]
    if base and not Path(base).is_dir():
        yield base, revision
    elif not base:
        yield folder / recorded["path"]


def _local(base: str | None, revision: str | None) -> Path | None:
    """The folder of a base that has been loaded: a path, or a hub id in the cache; None where it is neither."""
    if not base:
        return None
    if Path(base).is_dir():
        return Path(base).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _name(base: Path, assets: Path) -> tuple[str | None, str | None]:
    """The hub id and commit of a folder in the hub's cache, or a bundled model's name; else None."""
    if base.parent == assets:
        return base.name, None
    repository = base.parent.parent.name
    if base.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/"), base.name
    return None, None


def _vocabulary(base: Path) -> int:
    """Number of rows of a base folder's token matrices, by its configuration."""
    config = read_object(base / "config.json")
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _rows_of(name: str, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """How many rows a token matrix had, by the shapes of what was saved of it; None where nothing was."""
    for key, shape in shapes.items():
        head, found, rest = key.partition(f"{name}.")
        if not found or (head and not head.endswith(".")):
            continue
        if rest.endswith("token_adapter.base_layer.weight"):  # the whole matrix beside the rows that were trained
            return shape[0]
        if rest.endswith(("weight", "lora_B.weight")) and "lora_A" not in rest and "token_adapter" not in rest:
            return shape[0]
        if "lora_embedding_A" in rest:
            return shape[1]
    return None


def _holds(name: str, index: int, indices: dict[str, list[int]], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether an adapter holds the row `index` of a token matrix: trained alone, or with the whole matrix."""
    alone = any(name.endswith(part) and index in rows for part, rows in indices.items())
    whole = (f"{name}.weight", f"{name}.base_layer.weight")
    return alone or any(key.endswith(whole) for key in shapes)
