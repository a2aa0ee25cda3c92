"""Checks of a model folder's files before anything is loaded from it. Nothing is ever read from a pickle."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.manifest import deciding_files
from search_r3_mteb.json_files import kind, read_json, read_object

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def check_model_folder(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds a configuration and complete safetensors weights."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder.resolve().name}: there is no config.json, so this is not a model folder.")
    _check_quantization(folder, read_object(folder / "config.json").get("quantization_config"))
    # transformers would silently ignore a damaged one, and a turn would then not end where it should.
    if (folder / "generation_config.json").exists():
        read_object(folder / "generation_config.json")
    check_weights(folder)


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
    return sorted({*folder.glob(f"{stem}*.safetensors"), *(folder / name for name in names.values())})


def check_weights(folder: Path, stem: str = "model") -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds complete safetensors weights (`weight_files`)."""
    files = weight_files(folder, stem)
    missing = [path.name for path in files if not path.exists()]
    files = [path for path in files if path.exists()]
    if missing and files:
        raise FileNotFoundError(
            f"{folder.name}: {', '.join(missing)} is named in {stem}.safetensors.index.json but missing. Download it."
        )
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
        _check_safetensors(path)


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
        if name.endswith(".json"):
            read_json(folder / name, "Copy it again.")


def check_tokenizer(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError unless `folder` holds a tokenizer; transformers would make one up."""
    # Older checkpoints have the vocabulary that a fast tokenizer can be built from, in place of tokenizer.json.
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")):
        raise FileNotFoundError(
            f"{folder.name}: there is no tokenizer.json. Copy the tokenizer of these weights into the folder."
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_object(folder / name)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header and compares it with the file's length
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is damaged or truncated ({path.stat().st_size} bytes), or newer "
            f"than what safetensors {version('safetensors')} reads: {error}. Copy it again, or install a newer one."
        ) from error
