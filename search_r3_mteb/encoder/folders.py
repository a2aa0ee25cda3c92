"""Checks of a model folder's files before anything is loaded from it. Nothing is ever read from a pickle."""

import errno
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from search_r3_mteb.encoder.manifest import check_files, deciding_files
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from search_r3_mteb.extensions import BASELINES, BUNDLED, did_you_mean
from search_r3_mteb.json_files import kind, read_json, read_object

MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "model.safetensors")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "chat_template.jinja"),
)
EXPORT_TYPE = "search_r3"
"""The model type of an export, in its config.json."""
_MOST_LAYERS = 10_000  # our choice: libraries make one after the other, so that a damaged number takes hours
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes of one part of a path, and of all of it, on common systems
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def is_there(name: str) -> bool:
    """Whether a file or folder has this name; False for a text that none can have, which is too long or holds NUL."""
    try:
        return Path(name).exists()
    except ValueError:
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def check_name(name: str) -> None:
    """FileNotFoundError for a name that neither a folder nor a model of the hub can have."""
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if "\0" in name or longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        why = "with NUL among them" if "\0" in name else "too many for a file system"
        raise FileNotFoundError(
            f"There is no model {name[:60]!r}...: that is a name of {len(name)} characters, {why}, so it is neither a "
            "folder's nor a hub id. Check what was given."
        )


def method_hint(name: str) -> str:
    """What to add where a name that is not a model's may be one of query expansion, which an encoder does not know."""
    head, colon, _ = name.partition(":")
    methods = [each for each in BASELINES.reserved if each not in ("bm25", *BUNDLED)]
    if not colon or not did_you_mean(head, methods):
        return ""
    return (
        " METHOD:WRITER+ENCODER and rocchio:ENCODER are names of the command line and of `evaluate`; in Python make a "
        "search_r3_mteb.WriterEncoder(WRITER, ENCODER, method=METHOD), or a FeedbackEncoder for feedback and rocchio."
    )


def check_model_folder(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds a configuration and complete safetensors weights."""
    if not (folder / "config.json").exists():
        adapter = ", and no adapter_config.json beside the adapter" if any(folder.glob("adapter_model.*")) else ""
        raise FileNotFoundError(
            f"{folder.resolve().name}: there is no config.json{adapter}, so this is not a model folder. Check the "
            "path, or copy the file there."
        )
    config = read_object(folder / "config.json")
    check_layers(folder, config)
    _check_quantization(folder, config.get("quantization_config"))
    # transformers would silently ignore a damaged one, and a turn would then not end where it should.
    if (folder / "generation_config.json").exists():
        read_object(folder / "generation_config.json")
    check_weights(folder)


def check_layers(folder: Path, config: Mapping[str, Any]) -> None:
    """ValueError for a number of layers that no model has: libraries would be making them for ever."""
    for one in (config, config.get("text_config")):
        for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"):
            layers = one.get(name) if isinstance(one, dict) else None
            if isinstance(layers, int | float) and layers > _MOST_LAYERS:
                raise ValueError(
                    f"{folder.resolve().name}/config.json: {name!r} is {layers!r:.20}, and no model has more than "
                    f"{_MOST_LAYERS} layers. Restore the file."
                )


def _check_quantization(folder: Path, quantization: Any) -> None:
    """ValueError for a method that the installed transformers does not know: it would warn and load packed numbers."""
    if quantization is not None and not isinstance(quantization, dict):
        raise ValueError(
            f"{folder.name}/config.json: 'quantization_config' must be an object, got {kind(quantization)}. Copy it "
            "again, or remove the key where the weights are not quantised."
        )
    method = None if quantization is None else quantization.get("quant_method")
    if method is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if method not in (*AUTO_QUANTIZER_MAPPING, "bitsandbytes"):  # which is two methods in transformers
        raise ValueError(
            f"{folder.name}: the weights are quantised by {method!r}, which transformers {version('transformers')} "
            "does not know, so it would read them as they are packed. Install a newer one, or take other weights."
        )


def unknown_rotary(folder: Path) -> str:
    """What to add to an error of transformers, which names the value alone: the key of a rotary scaling to come."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = read_object(folder / "config.json")
    for key in ("rope_parameters", "rope_scaling"):
        given = config.get(key)
        groups = (given, *given.values()) if isinstance(given, dict) else ()  # one for each type of layer, perhaps
        for one in (each for each in groups if isinstance(each, dict)):
            name = one.get("rope_type", one.get("type"))
            if name is not None and name not in ("default", *ROPE_INIT_FUNCTIONS):
                return (
                    f". 'rope_type' under {key!r} in config.json is {name!r}; this version knows default, "
                    f"{', '.join(sorted(ROPE_INIT_FUNCTIONS))}. Install a newer one, or correct the file."
                )
    return ""


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files named `stem`*, and those that its index names, which may have any name, there or not."""
    index = folder / f"{stem}.safetensors.index.json"
    names = read_object(index).get("weight_map", {}) if index.exists() else {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: 'weight_map' must name a file for each tensor, got {kind(names)}. Copy it again.")
    for name in set(names.values()):
        if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(
                f"{index}: 'weight_map' names {name!r:.80}, which is not a file of this folder. Copy it again."
            )
    return sorted({*folder.glob(f"{stem}*.safetensors"), *(folder / name for name in names.values())})


def check_weights(folder: Path, stem: str = "model") -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds complete safetensors weights (`weight_files`)."""
    files = weight_files(folder, stem)
    missing = [path.name for path in files if not path.exists()]
    files = [path for path in files if path.exists()]
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if files and not any((folder / name).exists() for name in (whole, index)):
        raise FileNotFoundError(
            f"{folder.name}: there is no {whole}, and no {index}, which says what the other weights' files "
            f"({files[0].name}, ...) hold. Copy or download it."
        )
    if missing and files:
        raise FileNotFoundError(f"{folder.name}: {', '.join(missing)} is named in {index} but missing. Download it.")
    if not files:
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLED]
        if pickled:
            raise ValueError(
                f"{folder.name}: the weights are pickled ({', '.join(pickled)}), and a pickle can run any code when "
                "it is read. Convert them to safetensors where you trust them: model.save_pretrained(folder)."
            )
        raise FileNotFoundError(
            f"{folder.name}: there are no weights ({stem}.safetensors). Download or save the model again."
        )
    for path in files:
        check_safetensors(path)


def refuse_pickled_modules(folder: Path) -> None:
    """ValueError for a sentence-transformers folder in which a module's weights are pickled, and not safetensors."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in _PICKLED and path.is_file() and not any(path.parent.glob("*.safetensors")):
            raise ValueError(
                f"{folder.name}: the weights of a module are pickled ({path.relative_to(folder)}), and a pickle can "
                "run any code when it is read. Convert them to safetensors where you trust them: "
                "SentenceTransformer(folder).save_pretrained(folder)."
            )


def check_json(folder: Path) -> None:
    """ValueError for JSON that decides a folder's vectors and cannot be read: libraries name neither file nor line."""
    for name in deciding_files(folder):
        if name == "modules.json":
            _check_modules(folder / name)
        elif name.endswith(".json"):
            read_object(folder / name)


def _check_modules(path: Path) -> None:
    modules = read_json(path, "Copy it again.")
    texts = ("path", "type")
    if not isinstance(modules, list) or not all(
        isinstance(one, dict) and all(isinstance(one.get(name), str) for name in texts) for one in modules
    ):
        raise ValueError(f"{path}: must hold an array of objects with 'path' and 'type'. Copy it again.")


def check_tokenizer(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds a tokenizer; transformers would make one up."""
    # Older checkpoints have the vocabulary that a fast tokenizer can be built from, in place of tokenizer.json.
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")):
        raise FileNotFoundError(
            f"{folder.name}: there is no tokenizer.json. Copy the tokenizer of these weights into the folder."
        )
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).exists():
            read_object(folder / name)


def is_export(folder: Path) -> bool:
    """Whether `search-r3 export` wrote the folder, for sentence-transformers."""
    config = folder / "config.json"
    return config.is_file() and f'"model_type": "{EXPORT_TYPE}"'.encode() in config.read_bytes()


def is_sentence_transformer(folder: Path) -> bool:
    """Whether a folder is an ordinary sentence-transformers model (modules.json), without a profile of ours."""
    return (folder / "modules.json").exists() and not (folder / PROFILE_FILE).exists()


def can_write(folder: Path) -> bool:
    """False for a model that is trained to embed or to fill gaps, by its files: a causal LM's weights have a head."""
    if (folder / PROFILE_FILE).exists() or not (folder / "config.json").exists():
        return not is_sentence_transformer(folder)  # ours, or an adapter, whose base decides
    config = read_object(folder / "config.json")
    kinds = config.get("architectures")
    said = [each for each in kinds if isinstance(each, str)] if isinstance(kinds, list) else []
    if "AutoModelForCausalLM" in (config.get("auto_map") or ()):
        return True
    writes = any(word in each for each in said for word in ("CausalLM", "LMHead", "ConditionalGeneration"))
    fills = any("MaskedLM" in each for each in said)
    return writes or not (fills or is_sentence_transformer(folder))


def check_folder(folder: Path, *, embeds: bool) -> None:
    """Raise as loading would for what shows without reading weights; `embeds`: a Search-R3 folder has an embed token.

    FileNotFoundError or ValueError. Of an adapter only its own files are looked at, not its base.
    """
    check_files(folder)
    if is_sentence_transformer(folder):
        refuse_pickled_modules(folder)
        check_json(folder)
        if (folder / "config.json").exists():
            check_tokenizer(folder)
        return
    if not (folder / "adapter_config.json").exists():
        refuse_export(folder)
        check_model_folder(folder)
        check_tokenizer(folder)
    if embeds and (folder / "tokenizer.json").exists():
        token = Profile.load(folder).embed_token
        held = b"".join((folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists())
        if not any(form.encode("utf-8", "surrogatepass") in held for form in (token, json.dumps(token)[1:-1])):
            raise ValueError(
                f"{folder.name}: its tokenizer has no token {token!r}, so there is no place to read a vector from. An "
                "ordinary causal LM writes beside an encoder (hyde:WRITER+ENCODER), or becomes a checkpoint by "
                "`search-r3 init MODEL --output FOLDER` and training; where the token has another name, give that as "
                f'"embed_token" in {PROFILE_FILE}.'
            )


def refuse_export(folder: Path) -> None:
    """Raise ValueError for an export, where a checkpoint is meant."""
    if is_export(folder):
        raise ValueError(
            f"{folder.name} is an export for sentence-transformers, not a checkpoint. Load it with "
            f"`from search_r3_mteb import SentenceTransformer; SentenceTransformer({str(folder)!r})`, or name the "
            "checkpoint that it was exported from."
        )


def built_from(folder: Path, names: Sequence[str]) -> str:
    """What to do after an error of a library that names no file: it is in one of these, or something is missing."""
    there = [name for name in names if (folder / name).exists()]
    return f"Restore what was changed of {', '.join(there)}, or install what is needed."


def check_safetensors(path: Path) -> None:
    """ValueError for a file that is not a safetensors file, or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header and compares it with the file's length
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is damaged or truncated ({path.stat().st_size} bytes), or newer "
            f"than what safetensors {version('safetensors')} reads: {error}. Copy it again, or install a newer one."
        ) from error
