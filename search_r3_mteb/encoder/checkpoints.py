"""Checkpoints: a causal LM, its tokenizer with the embed token and its profile, loaded, saved and identified.

Weights are read from safetensors only. A folder with `adapter_config.json` is a LoRA adapter on a base model.
"""

import reprlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from search_r3_mteb.encoder import model_names
from search_r3_mteb.encoder.adapters import (
    ADAPTER_CONFIG,
    check_kind,
    check_state,
    check_used,
    find_base,
    fit_rows,
    quiet_peft,
    save_base,
)
from search_r3_mteb.encoder.fingerprint import digest, weights_version
from search_r3_mteb.encoder.folders import (
    MODEL_FILES,
    TOKENIZER_FILES,
    built_from,
    check_model_folder,
    check_safetensors,
    check_tokenizer,
    check_weights,
    refuse_export,
    unknown_rotary,
)
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, check_files, write_manifest
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from search_r3_mteb.encoder.setting_types import check_device_name, check_flag
from search_r3_mteb.encoder.setting_types import check_kind as check_setting
from search_r3_mteb.encoder.special_tokens import can_spell_unknown, embed_token_id
from search_r3_mteb.encoder.token_rows import ROWS_FILE, load_rows, mean_row, resize, token_layers
from search_r3_mteb.json_files import read_object
from search_r3_mteb.search.products import cpu_multiplies_bfloat16

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class Checkpoint:
    """A causal LM in evaluation mode, its fast tokenizer and its profile; `name` has the form organisation/model.

    `verified`: `load` has compared all its files, weights too, with their manifest.
    """

    model: Any
    tokenizer: Any
    profile: Profile
    name: str
    revision: str | None = None
    verified: bool = field(default=False, init=False)
    _fingerprint: tuple[int, str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.embed_token_id = embed_token_id(self.tokenizer, self.profile.embed_token)
        rows = self.model.get_input_embeddings().weight.shape[0]
        if self.embed_token_id >= rows:
            raise ValueError(
                f"{self.name}: the embed token has id {self.embed_token_id}, but the model's vocabulary has {rows} "
                "rows. Tokenizer and weights are from different checkpoints; use the pair that was saved together."
            )
        _ = self.stop_token_ids  # raises where the configuration holds something else
        for module in self.model.modules():  # a configuration may ask for plain tuples, which name no output
            if getattr(getattr(module, "config", None), "return_dict", True) is False:
                module.config.return_dict = True

    @property
    def bundled(self) -> bool:
        """Whether it came with this package."""
        return self.name.startswith(model_names.BUNDLED_PREFIX)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an assistant's turn: the generation config's and the tokenizer's, never the embed token."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        found = [i for i in [*ids, self.tokenizer.eos_token_id] if i is not None]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
            raise ValueError(
                f"{self.name}: 'eos_token_id' must be a token's id or a list of ids, got {reprlib.repr(configured)}: a "
                "turn would not end where it should. Correct it in generation_config.json, or else in config.json."
            )
        return tuple(sorted({*found} - {self.embed_token_id}))

    @property
    def window(self) -> int | None:
        """Number of positions in which a row's vector is its own; None when the configuration does not say.

        That is what the model was made for, or less: see `architecture.positions_of`.
        """
        from search_r3_mteb.encoder.architecture import first_position, positions_of
        from search_r3_mteb.encoder.backbone import unwrap

        window = positions_of(self.model.config.get_text_config())
        return None if window is None else window - first_position(unwrap(self.model))

    def fingerprint(self) -> str:
        """Hex digest over weights, configuration, tokenizer, profile and stop ids.

        It is computed again after changes in place, as optimizers and `load_state_dict` make them; after
        `parameter.data = ...` make a new Checkpoint.
        """
        version = weights_version(self.model)
        if self._fingerprint is None or self._fingerprint[0] != version:
            rest = {"profile": self.profile.identity(), "stop": self.stop_token_ids}
            if self.profile.tokenization == "whole" and can_spell_unknown(self.tokenizer):
                rest["unknown"] = "text"
            self._fingerprint = (version, digest(self.model, self.tokenizer, rest))
        return self._fingerprint[1]


def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    probe: bool = True,
    verify: bool = False,
    trainable: bool = False,
) -> Checkpoint:
    """The named checkpoint: "nano", "mini" or "smol" (bundled), a local folder, a LoRA folder, or a hub id.

    `dtype` "auto" is the checkpoint's own; for a bundled one in bfloat16, float32 on a processor without instructions
    for that type, where it is faster. Raises FileNotFoundError for a folder or hub id that does not exist or has
    no weights, ValueError for one without the embed token, with pickled weights, or damaged or missing tensors, and for
    one that is not as its manifest says (`manifest.py`). `verify`: weights are compared with it, too, byte by byte.
    `probe`: a few tokens are run both ways, ours and the library's, and a checkpoint for which they differ is refused
    (`probe.py`); a state that has passed is not probed again (`probed.py`). `trainable`: an adapter's weights require a
    gradient, so that its training goes on; its base's never do.
    """
    _check_types(path_or_id, revision, device, trust_remote_code=trust_remote_code, probe=probe, verify=verify)
    check_flag("trainable", trainable)
    dtype, device = check_dtype(dtype), _check_device(device or default_device())
    folder = model_names.resolve(path_or_id, revision)
    if revision is None and folder.resolve().parent.name == "snapshots":
        revision = folder.resolve().name  # the hub's commit
    refuse_export(folder)
    check_files(folder, verify=verify)
    on_processor = str(device).startswith("cpu")
    if dtype == "auto" and model_names.is_bundled(folder) and on_processor and not cpu_multiplies_bfloat16():
        dtype = "float32"
    if (folder / ADAPTER_CONFIG).exists():
        model, base = _load_adapter(folder, dtype, trust_remote_code, verify, trainable)
        profile = Profile.load(folder if (folder / PROFILE_FILE).exists() else base)
        tokenizer_folder = folder if (folder / "tokenizer.json").exists() else base
    else:
        model, profile, base = load_model(folder, dtype, trust_remote_code), Profile.load(folder), folder
        tokenizer_folder = folder
    tokenizer = load_tokenizer(tokenizer_folder, trust_remote_code)
    name = model_names.display_name(str(path_or_id), folder)
    checkpoint = Checkpoint(model.to(device).eval(), tokenizer, profile, name, revision)
    checkpoint.verified = verify
    if probe:
        probe_once(checkpoint, tokenizer_folder, (folder, base))
    return checkpoint


def _check_types(path_or_id: Any, revision: Any, device: Any, **flags: Any) -> None:
    check_setting("path_or_id", path_or_id, (str, Path), "a bundled name, a folder (str or Path), or a hub id")
    check_setting("revision", revision, (str, NoneType), "a commit or branch of the hub (str), or None")
    check_device_name(device)
    for name, flag in flags.items():
        check_flag(name, flag)


def probe_once(checkpoint: Checkpoint, tokenizer_folder: Path, folders: Iterable[Path]) -> None:
    """Probe a loaded checkpoint unless its files, in these folders, have passed with the libraries installed now."""
    from search_r3_mteb.encoder.probed import has_passed, remember, state_of

    state = state_of(folders, str(checkpoint.model.dtype), str(checkpoint.model.device.type))
    if not has_passed(state):
        from search_r3_mteb.encoder.probe import probe

        probe(checkpoint, tokenizer_folder)
        remember(state)


def save(checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Write model (safetensors; a PEFT model as its adapter), tokenizer and profile; the folder can be loaded again.

    The manifest is written last: an older one refuses a folder over which a kill has left half of this model.
    Beside an adapter lie `base_model.json` (where its base is, and its digest) and the base's rows of new tokens.
    Raises ValueError for a PEFT model that one adapter folder cannot hold, FileExistsError for whole weights where an
    adapter lies, and the reverse.
    """
    folder = Path(folder)
    adapter = hasattr(checkpoint.model, "peft_config")
    if adapter:
        check_state(checkpoint.model)
    if (folder / ("config.json" if adapter else ADAPTER_CONFIG)).exists():
        raise FileExistsError(
            f"{folder} holds {'a whole model' if adapter else 'an adapter'}, and beside it this one would load as "
            "something else. Save to another folder, or delete this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # The token's rows are kept by themselves; by default peft would also store the whole embedding matrix.
    checkpoint.model.save_pretrained(folder, **({"save_embedding_layers": False} if adapter else {}))
    if adapter:
        save_base(checkpoint.model, checkpoint.embed_token_id, folder, model_names.ASSETS)
    checkpoint.tokenizer.save_pretrained(folder)
    checkpoint.profile.save(folder)
    write_manifest(folder)
    return folder


def add_embed_token(model: Any, tokenizer: Any, token: str) -> int:
    """Add the embed token to a causal LM that lacks it; returns its id.

    Other special tokens stay. A free row of a padded vocabulary is used before the matrix is resized. A row that was
    never trained starts at the mean of the used rows, in the embedding and in a head of its own: Qwen's padding rows
    are near zero, and a vector would start from nothing (our choice; also transformers' default for new rows).
    """
    import torch
    from tokenizers import AddedToken

    used = len(tokenizer)
    known = token in tokenizer.get_vocab()
    if not known:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    index = int(tokenizer.convert_tokens_to_ids(token))
    rows = int(model.get_input_embeddings().weight.shape[0])
    if known and index < rows:
        return index
    used = min(used, index, rows)
    resize(model, max(rows, index + 1), used)
    with torch.no_grad():
        for layer in token_layers(model).values():
            layer.weight[index] = mean_row(layer.weight, used)
    return index


def default_device() -> str:
    """The accelerator that torch sees, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator) if accelerator is not None else "cpu"


def load_model(folder: Path, dtype: Dtype, trust_remote_code: bool) -> Any:
    """The causal LM in a folder, from safetensors; it may lack the embed token (training adds it)."""
    from transformers import AutoModelForCausalLM

    check_flag("trust_remote_code", trust_remote_code)
    check_model_folder(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # missing libraries, newer formats: each library raises errors of its own
        raise ValueError(
            f"{folder.name}: transformers cannot load this folder as a causal LM (version {version('transformers')}, "
            f"{type(error).__name__}): {error}{unknown_rotary(folder)}. {built_from(folder, MODEL_FILES)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers only warns, and fills them with random numbers
        raise ValueError(
            f"{folder.name}: the weights lack {len(missing)} tensors that {type(model).__name__} needs "
            f"({', '.join(missing[:3])}), so the file belongs to another model or is incomplete. Copy or save it again."
        )
    return model


def _load_adapter(
    folder: Path, dtype: Dtype, trust_remote_code: bool, verify: bool, trainable: bool
) -> tuple[Any, Path]:
    """The base model with the adapter on it, and the base's folder; a base of others need not have a manifest."""
    from peft import PeftModel

    config = read_object(folder / ADAPTER_CONFIG)
    check_kind(config, folder.name)
    base_folder = find_base(folder, config, model_names.resolve)
    check_files(base_folder, verify=verify and (base_folder / MANIFEST_FILE).exists())
    if (base_folder / ADAPTER_CONFIG).exists():  # transformers would put that adapter on the base without a word
        raise ValueError(
            f"{folder.name}: the folder of its base model, {base_folder.name}, holds an adapter as well, which "
            "would act beside this one. Give the base a folder of its own."
        )
    if any(folder.glob("model*.safetensors*")):
        raise ValueError(
            f"{folder.name} holds whole weights and an adapter, and they may be two models. Move the adapter's "
            "files to a folder of their own, or delete the files that are not meant."
        )
    check_weights(folder, "adapter_model")
    model = load_model(base_folder, dtype, trust_remote_code)
    if (folder / ROWS_FILE).exists():
        check_safetensors(folder / ROWS_FILE)
        load_rows(model, folder)
    else:
        own, base = (folder / "tokenizer.json").exists(), (base_folder / "tokenizer.json").exists()
        tokenizer = load_tokenizer(folder if own else base_folder, trust_remote_code)
        vocabulary = load_tokenizer(base_folder, trust_remote_code).get_vocab() if own and base else None
        profile = Profile.load(folder if (folder / PROFILE_FILE).exists() else base_folder)
        fit_rows(model, tokenizer, folder, profile.embed_token, vocabulary)
    try:
        with quiet_peft():
            # peft only warns when the file lacks a part of the adapter, which then does nothing.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        check_used(adapted, folder)
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        raise ValueError(
            f"{folder.name}: the adapter does not fit its base model {base_folder.name}: {error}. Use the base that it "
            f"was trained on, and {ADAPTER_CONFIG} and adapter_model.safetensors as they were saved together."
        ) from error
    except Exception as error:  # values of a wrong type: peft checks few, and fails on the others somewhere
        raise ValueError(
            f"{folder.name}: peft {version('peft')} cannot put this adapter on its base model by its {ADAPTER_CONFIG} "
            f"({type(error).__name__}: {error}). Restore the configuration that it was saved with."
        ) from error
    for one in adapted.peft_config.values():  # a relative path would lead elsewhere from the next folder
        one.base_model_name_or_path, one.revision = str(base_folder), None
    if not trainable:
        from search_r3_mteb.encoder.merged_rows import remember_merged_rows

        remember_merged_rows(adapted)
    return adapted, base_folder


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder, of the class that its files declare."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_flag("trust_remote_code", trust_remote_code)
    check_tokenizer(folder)
    config = folder / "tokenizer_config.json"
    declared = read_object(config).get("tokenizer_class") if config.exists() else None
    # transformers 5 picks Qwen2's own pre-tokenizer for every folder whose model is Qwen2-shaped, whatever
    # tokenizer.json says. A folder that declares the generic class means its tokenizer.json.
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").exists()
    try:
        if generic:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # the tokenizers library raises plain exceptions for formats that it does not know
        raise ValueError(
            f"{folder.name}: no tokenizer can be loaded from this folder (tokenizers {version('tokenizers')}, "
            f"{type(error).__name__}): {error}. {built_from(folder, TOKENIZER_FILES)}"
        ) from error
    # What transformers takes as it is, and fails on when it is used.
    for name, kinds in (("chat_template", str | dict | None), ("model_max_length", int | float | None)):
        value = getattr(tokenizer, name, None)
        if not isinstance(value, kinds):
            raise ValueError(
                f"{folder.name}/tokenizer_config.json: {name!r} cannot be {reprlib.repr(value)}. Restore it."
            )
    return tokenizer


def check_dtype(dtype: Any) -> Dtype:
    """The name of a dtype, which may be given as a torch dtype; ValueError for one that is not supported."""
    name = str(dtype).removeprefix("torch.")
    valid = get_args(Dtype)
    if name not in valid:
        raise ValueError(f"dtype={dtype!r} is not supported; it is one of {', '.join(valid)}.")
    return name  # type: ignore[return-value]


def _check_device(device: str) -> str:
    """The device; ValueError when torch cannot use it, before gigabytes are read."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here: {error}. Name another one, or leave it out to get "
            f"{default_device()!r}."
        ) from error
    return device
