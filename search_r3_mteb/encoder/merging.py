"""Merging of adapters into their base models, and checkpoints that are compared with their source once written."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from search_r3_mteb.atomic import put_back, replaced_folder
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import Checkpoint, Dtype, load, save
from search_r3_mteb.encoder.comparison import (
    ProbeOutputs,
    allowed_difference,
    probe_outputs,
    probe_prompts,
    refuse_difference,
)
from search_r3_mteb.encoder.profiles import PROFILE_FILE
from search_r3_mteb.encoder.token_rows import bare, tied


def merge(adapter: str | Path, output: str | Path, *, dtype: Dtype = "auto", trust_remote_code: bool = False) -> Path:
    """Write an adapter folder, merged into its base model, as a whole checkpoint; returns the folder.

    Raises FileExistsError for an `output` that is not empty, ValueError for a folder that holds no adapter, and where
    the merged model gives other vectors or logits.
    """
    put_back(Path(output))
    if Path(output).exists() and any(Path(output).iterdir()):
        raise FileExistsError(f"{output} is not empty, and merging would replace it. Name another output.")
    checkpoint = load(adapter, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
    if not hasattr(checkpoint.model, "merge_and_unload"):
        raise ValueError(f"{adapter}: there is no adapter in this folder, so nothing to merge. Use it as it is.")
    before = outputs_of(checkpoint)
    allowed = allowed_difference(checkpoint.model, merged=True)
    whole = replace(checkpoint, model=merged(checkpoint.model, keep=False))
    return save_compared(whole, output, source=before, allowed=allowed, trust_remote_code=trust_remote_code)


def merged(model: Any, *, keep: bool) -> Any:
    """The causal LM with its adapter merged into its weights; with `keep` in a copy, `model` stays as it is.

    Where head and embedding are tied, peft would merge the adapter of one into both. They are untied before, and tied
    again only where they are equal afterwards. Raises ValueError for an adapter that peft cannot merge.
    """
    model = getattr(model, "module", model)  # accelerate's wrapper
    if not hasattr(model, "merge_and_unload"):
        return model
    if any(getattr(config, "layer_replication", None) for config in model.peft_config.values()):
        raise ValueError(
            "This adapter repeats layers of its base (layer_replication): the copies share its weights, and each "
            "has its own adapter, so that merged one weight would hold the sum of several. Use the adapter's folder "
            "itself."
        )
    if keep:
        model = copy.deepcopy(model)
    was_tied = tied(unwrap(model)) and unwrap(model).get_output_embeddings() is not None
    if was_tied:
        head = bare(unwrap(model).get_output_embeddings())
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    with warnings.catch_warnings():  # about what is done here
        warnings.filterwarnings("ignore", message=r"(?s).*tie_word_embeddings")
        whole = model.merge_and_unload()
    left = [name for name, module in whole.named_modules() if hasattr(module, "unmerge")]
    if left:
        raise ValueError(
            f"peft cannot merge this adapter: {', '.join(left[:3])} keep a part of it (two kinds on one layer, such as "
            "a trained token's row and LoRA). Use the adapter's folder itself."
        )
    if was_tied:
        embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
        equal = torch.equal(embedding.weight, head.weight)
        if equal:
            head.weight = embedding.weight
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = equal
    return whole


def outputs_of(checkpoint: Checkpoint) -> ProbeOutputs:
    """What a checkpoint makes of the texts by which models are compared."""
    prompts = probe_prompts(checkpoint.tokenizer, checkpoint.embed_token_id)
    return probe_outputs(checkpoint.model, checkpoint.embed_token_id, prompts)


def save_compared(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    source: ProbeOutputs | None = None,
    allowed: float | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Save a checkpoint, load it again on the CPU, and keep it only where it gives the outputs of its source.

    `source` is the checkpoint itself where it is not given. An earlier folder is replaced whole; after an error, or a
    kill at any moment, it is as it was. Raises FileExistsError where `folder` holds anything but a saved checkpoint,
    ValueError where outputs differ by more than `allowed`.
    """
    folder, causal = Path(folder), unwrap(checkpoint.model)
    if folder.exists() and any(folder.iterdir()) and not (folder / PROFILE_FILE).exists():
        raise FileExistsError(
            f"{folder} exists and holds no {PROFILE_FILE}, so it is not a checkpoint that was saved here, and would be "
            "lost. Name another folder."
        )
    if source is None:
        source = outputs_of(checkpoint)
    if allowed is None:
        allowed = allowed_difference(checkpoint.model, other_device=causal.device.type != "cpu")
    dtype: Any = str(causal.dtype).removeprefix("torch.")
    with replaced_folder(folder) as unfinished:
        save(checkpoint, unfinished)
        try:
            again = load(unfinished, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"The folder {folder.name} could not be loaded once it was written, so it was not kept, and what was "
                f"there before is as it was: {error}"
            ) from error
        refuse_difference(source, outputs_of(again), allowed, f"The folder {folder.name}")
    return folder
