"""The identity under which MTEB stores an encoder's results: name, revision and every setting that decides a vector."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.encoder.checkpoints import Checkpoint

if TYPE_CHECKING:
    from mteb.models import ModelMeta


def model_meta(checkpoint: Checkpoint, dim: int, experiment: Mapping[str, Any]) -> "ModelMeta":
    """MTEB's description of a checkpoint under the settings `experiment`, which include its fingerprint.

    MTEB stores a result under name, revision and `experiment_kwargs` only; the fingerprint in the latter keeps two
    checkpoints, modes or budgets apart even where names and revisions are the same.
    """
    parameters = list(checkpoint.model.parameters())  # tied ones count once
    return local_meta(
        name_for_mteb(checkpoint.name),
        dim,
        experiment,
        revision=checkpoint.revision or experiment["fingerprint"],
        n_parameters=sum(p.numel() for p in parameters),
        n_embedding_parameters=int(checkpoint.model.get_input_embeddings().weight.numel()),
        memory_usage_mb=round(sum(p.numel() * p.element_size() for p in parameters) / 2**20, 1),
        max_tokens=getattr(checkpoint.model.config, "max_position_embeddings", None),
        use_instructions=True,
    )


def local_meta(name: str, dim: int, experiment: Mapping[str, Any], **known: Any) -> "ModelMeta":
    """MTEB's description of a model of this machine; `known` are the fields that are known, the others are None."""
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    unknown = (
        *("release_date", "languages", "memory_usage_mb", "max_tokens", "license"),
        *("public_training_code", "public_training_data", "training_datasets"),
    )
    return ModelMeta(
        loader=None,
        name=name,
        embed_dim=dim,
        open_weights=True,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        experiment_kwargs=dict(experiment),
        **(dict.fromkeys(unknown) | known),
    )


def name_for_mteb(name: str) -> str:
    """`name` as "organisation/model": a hub id stays, a folder becomes local/LAST-PART without this machine's path."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        return name
    last = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")
    return f"local/{last or 'model'}"
