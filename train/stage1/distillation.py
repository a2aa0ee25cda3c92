"""Distillation: the vectors of a sentence encoder as a target for the embed token's hidden state.

    L_distill = mean over texts of 1 - cos(vector, teacher's vector)
              + mean over queries of KL(teacher's similarities to the batch's documents || the model's)

The teacher reads a document, a query, and for the vector after reasoning the query with its reasoning.

Source: our choice, the paper has no distillation. A small model that starts from an encoder's weights, but with causal
attention, has no other way to regain in minutes what that encoder learned from a billion pairs. Vectors are matched as
in Reimers and Gurevych 2020 (arXiv 2004.09813, there with the mean squared error), similarities by a softmax over the
batch's documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.integrations.sentence_transformers import load_library_model
from train.losses.checks import require_finite, require_positive, share, unit
from train.processes import collectives


class Teacher:
    """A sentence-transformers model, with its own pooling, whose vectors are targets."""

    def __init__(self, path: str, device: torch.device) -> None:
        folder = resolve(path if "/" in path or Path(path).is_dir() else f"sentence-transformers/{path}")
        self.model: Any = load_library_model(folder, device=str(device)).eval()
        self.limit: int = self.model.max_seq_length

    def __call__(self, texts: Sequence[str], max_length: int) -> Float[Tensor, "texts dim"]:
        """Unit vectors of the texts' first `max_length` tokens, without gradient; equal texts are encoded once."""
        self.model.max_seq_length = min(self.limit, max_length)
        unique = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(unique)}
        vectors: Tensor = self.model.encode(
            unique, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors[[place[text] for text in texts]].clone()


@cache
def teacher(path: str, device: torch.device) -> Teacher:
    """The teacher in that folder, loaded once per process."""
    return Teacher(path, device)


@dataclass
class Distillation:
    """The distance of a batch's vectors to the teacher's; `targets` holds unit vectors under the same column names."""

    targets: Mapping[str, Float[Tensor, "rows dim"]]
    weight: float
    temperature: float
    vectors: bool = True
    """Whether the vectors themselves are matched, beside their similarities."""
    parts: dict[str, float] = field(default_factory=dict, init=False)

    def __call__(self, vectors: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of both terms; each is put into `parts`, unweighted. The documents are those of all."""
        names = list(vectors)
        device = vectors[names[0]].device
        count = collectives.shared_count(sum(len(vectors[name]) for name in names), device)
        queries = [name for name in names if name != "documents"]
        asked = collectives.shared_count(sum(len(vectors[name]) for name in queries), device)
        cosine = torch.zeros((), device=device)
        if self.vectors:
            distances = [cosine_distance(vectors[name], self.targets[name], count=count) for name in names]
            cosine = torch.stack(distances).sum()
        documents = collectives.gather_rows(vectors["documents"]), collectives.gather_rows(self.targets["documents"])
        similarity = torch.stack(
            [
                similarity_divergence(
                    vectors[name],
                    documents[0],
                    self.targets[name],
                    documents[1],
                    temperature=self.temperature,
                    count=asked,
                )
                for name in queries
            ]
        ).sum()
        self.parts |= {"distill": float(cosine.detach())} if self.vectors else {}
        self.parts |= {"distill_similarity": float(similarity.detach())}
        return self.weight * (cosine + similarity)


def cosine_distance(
    vectors: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows dim"], *, count: float | None = None
) -> Float[Tensor, ""]:
    """1 - cosine of each vector and its target, mean over rows. ValueError where the two spaces differ in dimension."""
    if vectors.shape != targets.shape:
        raise ValueError(
            f"The model gives vectors of shape {tuple(vectors.shape)}, the teacher {tuple(targets.shape)}: they have "
            "no cosine. Take a teacher of the model's width."
        )
    require_finite(vectors=vectors, targets=targets)
    return (1 - (unit(vectors) * unit(targets)).sum(dim=-1)).sum() / share(count, len(vectors))


def similarity_divergence(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    target_queries: Float[Tensor, "queries dim"],
    target_documents: Float[Tensor, "documents dim"],
    *,
    temperature: float,
    count: float | None = None,
) -> Float[Tensor, ""]:
    """KL(teacher || model) between the softmax over documents of cosine / temperature; nats, mean over queries."""
    require_positive(temperature=temperature)
    with torch.autocast(queries.device.type, enabled=False):  # it would compute these cosines in bfloat16
        model = (unit(queries) @ unit(documents).T / temperature).log_softmax(dim=-1)
        target = (unit(target_queries) @ unit(target_documents).T / temperature).log_softmax(dim=-1)
    return (target.exp() * (target - model)).sum() / share(count, len(queries))
