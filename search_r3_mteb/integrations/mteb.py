"""MTEB's side of the encoder: reading its batches, the identity that its result cache keys on, and its model registry."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32
    from mteb.models import ModelMeta

    from search_r3_mteb.encoder.encoder import SearchR3Encoder

# Encode arguments that cannot change a vector. MTEB's result cache does not see `encode_kwargs`, so whatever changes the
# vectors must be a setting of the encoder, where it becomes part of the identity.
ENCODE_KEYWORDS = ("batch_size", "show_progress_bar")


def encode_batches(
    encoder: "SearchR3Encoder",
    inputs: Iterable[Mapping[str, Any]] | Sequence[str],
    *,
    task_metadata: Any = None,
    hf_split: str | None = None,
    hf_subset: str | None = None,
    prompt_type: Any = None,
    **keywords: Any,
) -> "Float32[np.ndarray, 'texts dim']":
    """Vectors (texts, dim) of a DataLoader of MTEB batches, or of a list of texts, in order.

    `prompt_type` "query" reasons (in that mode); "document" and None, which symmetric tasks such as STS use for both sides,
    are embedded directly. `hf_split` and `hf_subset` say where the texts come from; no vector depends on that. Raises
    TypeError for keywords that MTEB's result cache would not see.
    """
    unknown = sorted(set(keywords) - set(ENCODE_KEYWORDS))
    if unknown:
        raise TypeError(
            f"encode() got {', '.join(unknown)}; it takes {', '.join(ENCODE_KEYWORDS)}. MTEB's result cache does not see "
            "encode_kwargs, so anything that changes a vector is set when the encoder is made: SearchR3Encoder(..., "
            "max_reasoning_tokens=64)."
        )
    if not is_query(prompt_type):
        texts, _ = read_batches(inputs, is_query=False)
        return encoder.encode_document(texts, **keywords)
    texts, instructions = read_queries(inputs, task_metadata if encoder.task_prompts else None)
    return encoder.encode_query(texts, instruction=instructions, **keywords)


def read_queries(
    inputs: Iterable[Mapping[str, Any]] | Sequence[str], task_metadata: Any = None
) -> tuple[list[str], list[str | None]]:
    """Queries, and for each its own instruction, else the prompt of `task_metadata`, else None. Never both."""
    texts, instructions = read_batches(inputs, is_query=True)
    prompt = task_prompt(task_metadata)
    # An empty instruction is none: it must not leave an empty line in the prompt.
    return texts, [instruction or prompt for instruction in instructions]


def is_query(prompt_type: Any) -> bool:
    """Whether MTEB's PromptType (or its name) means queries. Raises ValueError for a name that MTEB does not have."""
    name = getattr(prompt_type, "value", prompt_type)
    if name not in (None, "query", "document"):
        raise ValueError(f"prompt_type must be 'query', 'document' or None, got {prompt_type!r}.")
    return bool(name == "query")


def read_batches(
    inputs: Iterable[Mapping[str, Any]] | Sequence[str], *, is_query: bool
) -> tuple[list[str], list[str | None]]:
    """Texts and instructions of all batches.

    MTEB's `text` of a query is query and instruction run together; they are read apart, so that each has its own place in
    the prompt. Its `text` of a document is title and body, joined.
    """
    if isinstance(inputs, str):
        raise TypeError(
            f"A list of texts or MTEB's DataLoader is needed, got one string {inputs[:40]!r}. Write [text]."
        )
    texts: list[str] = []
    instructions: list[str | None] = []
    for batch in inputs:
        if isinstance(batch, str):
            texts.append(batch)
            instructions.append(None)
            continue
        if not isinstance(batch, Mapping) or "text" not in batch:
            held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(f"An MTEB batch holds 'text', got {held}: this encoder reads text only.")
        part = list(batch["query"] if is_query and "query" in batch else batch["text"])
        texts.extend(part)
        instructions.extend(list(batch["instruction"]) if is_query and "instruction" in batch else [None] * len(part))
    return texts, instructions


def task_prompt(task_metadata: Any) -> str | None:
    """The prompt that a task's metadata gives for its queries, or None."""
    prompt = getattr(task_metadata, "prompt", None)
    if isinstance(prompt, Mapping):
        prompt = prompt.get("query")
    return prompt or None


def model_meta(encoder: "SearchR3Encoder") -> "ModelMeta":
    """The identity of the encoder: name, revision, and every setting that decides a vector.

    MTEB stores a result under name, revision and `experiment_kwargs` and under nothing else; the fingerprint in the latter
    keeps two checkpoints, modes or budgets apart even where names and revisions are the same.
    """
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    total, embedding = _parameters(encoder.model)
    size = sum(p.numel() * p.element_size() for p in encoder.model.parameters())
    return ModelMeta(
        loader=None,
        name=name_for_mteb(encoder.name),
        revision=encoder.revision or encoder.fingerprint[:16],
        release_date=None,
        languages=None,
        n_parameters=total,
        n_embedding_parameters=embedding,
        memory_usage_mb=round(size / 2**20, 1),
        max_tokens=getattr(encoder.model.config, "max_position_embeddings", None),
        embed_dim=encoder.dim,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        experiment_kwargs=experiment_kwargs(encoder),
    )


def attach_meta(encoder: "SearchR3Encoder", meta: "ModelMeta") -> "ModelMeta":
    """`meta` as MTEB's `get_model` assigns it, with the encoder's own settings put back.

    What was assigned knows only the settings that the caller named; the others decide vectors as well.
    """
    declared = dict(meta.experiment_kwargs or {})
    return meta.model_copy(update={"experiment_kwargs": {**declared, **experiment_kwargs(encoder)}})


def experiment_kwargs(encoder: "SearchR3Encoder") -> dict[str, Any]:
    """The part of the identity that name and revision do not hold; it becomes a folder's name in MTEB's cache."""
    return {**encoder.settings, "mode": encoder.mode, "fingerprint": encoder.fingerprint[:16]}


def name_for_mteb(name: str) -> str:
    """`name` as "organisation/model": a hub id stays, a folder becomes local/LAST-PART, never a path of this machine."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        return name
    last = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")
    return f"local/{last or 'model'}"


def register_models() -> None:
    """Make `mteb.get_model("ytgui/Search-R3.0-Small")` and `-Large` work in this process.

    MTEB has no plug-in mechanism; its registry is a dictionary. Entries that MTEB itself brings one day are left alone.
    """
    from mteb.models.model_implementations import MODEL_REGISTRY

    from search_r3_mteb.integrations.mteb_models import SEARCH_R3_MODELS

    for meta in SEARCH_R3_MODELS:
        MODEL_REGISTRY.setdefault(meta.name, meta)


def _parameters(model: Any) -> tuple[int, int]:
    """Parameters in all, and those of the input embedding; tied ones count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, int(model.get_input_embeddings().weight.numel())
