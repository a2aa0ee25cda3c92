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
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    parameters = list(checkpoint.model.parameters())  # tied ones count once
    return ModelMeta(
        loader=None,
        name=name_for_mteb(checkpoint.name),
        revision=checkpoint.revision or experiment["fingerprint"],
        release_date=None,
        languages=None,
        n_parameters=sum(p.numel() for p in parameters),
        n_embedding_parameters=int(checkpoint.model.get_input_embeddings().weight.numel()),
        memory_usage_mb=round(sum(p.numel() * p.element_size() for p in parameters) / 2**20, 1),
        max_tokens=getattr(checkpoint.model.config, "max_position_embeddings", None),
        embed_dim=dim,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        experiment_kwargs=dict(experiment),
    )


def name_for_mteb(name: str) -> str:
    """`name` as "organisation/model": a hub id stays, a folder becomes local/LAST-PART without this machine's path."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        return name
    last = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")
    return f"local/{last or 'model'}"
