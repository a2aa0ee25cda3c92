"""Load, save and identify checkpoints: a causal LM, its tokenizer with the embed token, and its profile.

Weights are read from safetensors only. A folder with `adapter_config.json` is a LoRA adapter on a base model.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from search_r3_mteb.encoder.prompts import PROFILE_FILE, Profile, embed_token_id

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ASSETS = Path(__file__).resolve().parent.parent / "assets"
ADAPTER_CONFIG = "adapter_config.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass
class Checkpoint:
    """A causal LM in evaluation mode, its fast tokenizer and its profile; `name` has the form organisation/model."""

    model: Any
    tokenizer: Any
    profile: Profile
    name: str
    revision: str | None = None
    _fingerprint: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.embed_token_id = embed_token_id(self.tokenizer, self.profile.embed_token)
        rows = self.model.get_input_embeddings().weight.shape[0]
        if self.embed_token_id >= rows:
            raise ValueError(
                f"{self.name}: the embed token has id {self.embed_token_id}, but the model's vocabulary has {rows} rows. The "
                "tokenizer and the weights are from different checkpoints; use the pair that was saved together."
            )

    def fingerprint(self) -> str:
        """Hex digest over weights, tokenizer and profile; computed once: a model that trains needs a new Checkpoint."""
        if self._fingerprint is None:
            self._fingerprint = _digest(self)
        return self._fingerprint


def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """The checkpoint named: "nano" (bundled), a local folder, a LoRA folder, or a hub id.

    `dtype` "auto" is the checkpoint's own. Raises FileNotFoundError for a folder or hub id that is not there, ValueError for
    one without the embed token, without weights, with pickled weights only, or with a damaged safetensors file.
    """
    folder = resolve(path_or_id, revision)
    name = str(path_or_id)
    if (folder / ADAPTER_CONFIG).exists():
        model, base = _load_adapter(folder, dtype, trust_remote_code)
        profile = Profile.load(folder if (folder / PROFILE_FILE).exists() else base)
        tokenizer_folder = folder if (folder / "tokenizer.json").exists() else base
    else:
        model, profile, tokenizer_folder = load_model(folder, dtype, trust_remote_code), Profile.load(folder), folder
    tokenizer = load_tokenizer(tokenizer_folder, trust_remote_code)
    model = model.to(device or default_device()).eval()
    return Checkpoint(model, tokenizer, profile, display_name(name, folder), revision)


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a bundled name, a path, or a hub id (downloaded when it is not in the hub's cache)."""
    name = str(path_or_id)
    if (ASSETS / name / "config.json").exists() and "/" not in name:
        return ASSETS / name
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        bundled = ", ".join(sorted(p.parent.name for p in ASSETS.glob("*/config.json"))) or "none"
        raise FileNotFoundError(
            f"There is no model {name!r}: not a folder, not a hub id of the form organisation/model, and not bundled "
            f"(bundled: {bundled}). Check the path."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.py"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"The model {name!r} (revision {revision or 'main'}) is neither a local folder nor to be had from the hub: {error}. "
            "Check the name and the network, or download it elsewhere and give the folder."
        ) from error


def save(checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Write model (safetensors; a PEFT model as its adapter), tokenizer and profile; the folder can be loaded again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The token row lives in `trainable_token_indices`; without this peft would store the whole embedding matrix beside it.
    extra = {"save_embedding_layers": False} if hasattr(checkpoint.model, "peft_config") else {}
    checkpoint.model.save_pretrained(folder, **extra)
    checkpoint.tokenizer.save_pretrained(folder)
    checkpoint.profile.save(folder)
    return folder


def add_embed_token(model: Any, tokenizer: Any, token: str) -> int:
    """Add the embed token to a causal LM that lacks it; returns its id.

    Other special tokens stay. A free row of a padded vocabulary is used before the matrix is resized. A row that was never
    trained starts at the mean of the used rows: Qwen's padding rows are near zero, and a vector would start from nothing
    (our choice; mean initialisation is also transformers' default for new rows).
    """
    import torch
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    if token in known:
        return int(known[token])
    used = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    index = int(tokenizer.convert_tokens_to_ids(token))
    if index >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(index + 1, mean_resizing=False)
    with torch.no_grad():
        seen: set[int] = set()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                layer.weight[index] = layer.weight[:used].float().mean(dim=0).to(layer.weight.dtype)
    return index


def default_device() -> str:
    """The accelerator that torch sees, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator) if accelerator is not None else "cpu"


def load_model(folder: Path, dtype: Dtype, trust_remote_code: bool) -> Any:
    """The causal LM in a folder, from safetensors; it may lack the embed token (training adds it)."""
    from transformers import AutoModelForCausalLM

    check_weights(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder.name}: transformers cannot load this folder as a causal LM: {error}") from error


def _load_adapter(folder: Path, dtype: Dtype, trust_remote_code: bool) -> tuple[Any, Path]:
    """The base model with the adapter on it, and the base's folder."""
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{folder.name}: {ADAPTER_CONFIG} names no base model. Write its path or hub id under 'base_model_name_or_path'."
        )
    nearby = folder / base
    base_folder = nearby.resolve() if nearby.is_dir() else resolve(base)
    check_weights(folder, "adapter_model")
    model = load_model(base_folder, dtype, trust_remote_code)
    tokenizer = load_tokenizer(folder if (folder / "tokenizer.json").exists() else base_folder, trust_remote_code)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False), base_folder


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder, as its files say."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = folder / "tokenizer_config.json"
    declared = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") if config.exists() else None
    # transformers 5 picks Qwen2's own pre-tokenizer for every folder whose model is Qwen2-shaped, whatever tokenizer.json
    # says. A folder that declares the generic class means its tokenizer.json.
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").exists()
    try:
        if generic:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder.name}: no tokenizer can be loaded from this folder: {error}") from error


def check_weights(folder: Path, stem: str = "model") -> None:
    """FileNotFoundError or ValueError unless `folder` holds whole safetensors weights."""
    if stem == "model" and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder.name}: there is no config.json, so this is not a model folder.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLED]
        if pickled:
            raise ValueError(
                f"{folder.name}: the weights are pickled ({', '.join(pickled)}), and a pickle can run any code when it is read. "
                "Convert them to safetensors where you trust them: model.save_pretrained(folder)."
            )
        raise FileNotFoundError(
            f"{folder.name}: there are no weights (*.safetensors). Download or save the model again."
        )
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(wanted - {p.name for p in files})
        if missing:
            raise FileNotFoundError(
                f"{folder.name}: {', '.join(missing)} is named in {index.name} but missing. Download it."
            )
    for path in files:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header and compares it with the file's length
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is damaged or truncated ({path.stat().st_size} bytes): {error}. Copy it again."
        ) from error


def display_name(name: str, folder: Path) -> str:
    """MTEB wants organisation/model."""
    if folder.parent == ASSETS:
        return f"search-r3-mteb/{folder.name}"
    if name.count("/") == 1 and not Path(name).is_dir():
        return name
    return f"local/{folder.resolve().name}"


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, the tokenizer's files and the profile."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().data)
    digest.update(checkpoint.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(checkpoint.tokenizer.chat_template).encode())
    digest.update(json.dumps(checkpoint.profile.to_dict(), sort_keys=True).encode())
    return digest.hexdigest()
