"""The encoding that an index holds: everything that decides a document's vector, compared before anything is searched.

Documents are embedded directly in both modes, so one index serves direct and reasoned queries. The number of threads
and the device, which move half-precision vectors by some 1e-3, are not part of it: an index made on a GPU is searched
on a processor.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.store import fingerprint_of

_WORDS = {
    "dim": "vectors of {} dimensions",
    "dtype": "numbers of the type {}",
    "max_length": "prompts of at most {} tokens (max_length)",
    "prompt": "one prompt around a document",
    "checkpoint": "the checkpoint {} (weights, tokenizer, template and profile)",
}
_OTHERS = _WORDS | {"prompt": "another prompt around a document"}


class OtherEncodingError(ValueError):
    """An encoder whose documents cannot be compared with those of an index; `what` is the message without a remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what


def encoding_of(encoder: SearchR3Encoder) -> dict[str, Any]:
    """What decides the vectors of this encoder's documents, as JSON scalars. Raises TypeError for another object."""
    if not isinstance(encoder, SearchR3Encoder):
        raise TypeError(
            f"An index is built and searched with a SearchR3Encoder, got {type(encoder).__name__}: only that tells a "
            "query that reasons from a document that does not. Write SearchR3Encoder(model)."
        )
    return {
        "dim": encoder.dim,
        "truncate_dim": encoder.truncate_dim,
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        "max_length": encoder.max_length,
        "prompt": fingerprint_of({"frame": encoder.renderer.frame_ids("direct")})[:16],
        "checkpoint": encoder.checkpoint.fingerprint(),
    }


def check_encoding(
    folder: Path, wanted: Mapping[str, Any], model: str | None, encoder: SearchR3Encoder, *, own: bool = False
) -> None:
    """OtherEncodingError unless the encoder's documents are encoded as those of the index are; `model` made them.

    `own`: the encoder is what lies now where the index's model was, loaded as it was then.
    """
    found = encoding_of(encoder)
    different = [name for name in _WORDS if found[name] != wanted[name]]
    if not different:
        return
    # A checkpoint in another type, of another size or with another prompt has another digest, which says no more.
    explained = {"dim", "dtype", "prompt"} & set(different)
    told = [name for name in different if name != "checkpoint" or not explained]
    held, got = (
        "; ".join(words[name].format(str(each[name])[:16]) for name in told)
        for words, each in ((_WORDS, wanted), (_OTHERS, found))
    )
    raise OtherEncodingError(
        f"{folder} holds documents encoded with {held}; {encoder.name} has {got}. Vectors of the two cannot be "
        "compared.",
        "The model was changed since: build another index with it." if own else _remedy(folder, model),
    )


def check_model(folder: Path, wanted: Mapping[str, Any], model: str | None, given: str | Path) -> None:
    """OtherEncodingError unless `given`, which could not be loaded as the index asks, is the model of its documents."""
    checkpoint = load(given, dtype=wanted["dtype"], probe=False)
    if checkpoint.fingerprint() != wanted["checkpoint"]:
        raise OtherEncodingError(
            f"{folder} holds documents encoded by another model than {given}. Vectors of the two cannot be compared.",
            _remedy(folder, model),
        )


def _remedy(folder: Path, model: str | None) -> str:
    if model is None:
        return "Search with the model that made the index, loaded as it was then, or build another index with this one."
    command = shlex.join(["search-r3", "search", str(folder), "QUESTION"])
    return (
        f"Either build another index with this one, or name no model, and the index's own is taken, {model}, loaded as "
        f"it was then: {command}"
    )


def origin_of(encoder: SearchR3Encoder, model: str | Path | None) -> dict[str, Any]:
    """From where the model can be loaded again: bundled name, folder or hub id, None for one that was in memory only.

    `model` is what the caller has loaded.
    """
    name: str | None = encoder.name
    if model is not None and Path(model).is_dir():
        name = str(Path(model).resolve())
    elif encoder.name.startswith("local/") or "/" not in encoder.name:
        name = None
    return {"name": name, "revision": encoder.revision}
