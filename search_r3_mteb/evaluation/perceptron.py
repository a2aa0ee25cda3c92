"""A two-layer perceptron on direct query vectors, trained on the same training queries: what few weights alone can do.

    q' = normalise(q + W2 gelu(W1 q + b1) + b2)

W1 (2 dim, dim), W2 (dim, 2 dim), W2 and b2 zero at the start, so that it begins as the encoder itself; documents stay
as they are. InfoNCE over cosine, temperature 0.05 as in stage 1, negatives are the batch's other positives. Every tenth
training query is held out: the weights of the epoch with the smallest loss on those are kept, the start included. All
sizes are our choice. It controls for "a function of the query's vector, learned from these judgements, would do": it
costs no token, sees the same queries and documents as the training of the reasoning, and cannot read the query again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int

from search_r3_mteb.encoder.settings import Mode, Statistics
from search_r3_mteb.encoder.store import fingerprint_of
from search_r3_mteb.evaluation.recording import RecordedEncoder
from search_r3_mteb.evaluation.systems import System

if TYPE_CHECKING:
    import torch

PERCEPTRON = "perceptron"
_HELD_OUT = 10  # every tenth query
_BATCH = 32


@dataclass(frozen=True)
class PerceptronPlan:
    """The training: `folder` is a BEIR folder, `split` its judgements; sizes are in pairs of a query and a document."""

    folder: str
    split: str = "train"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    temperature: float = 0.05
    seed: int = 0


class PerceptronEncoder:
    """`encoder` with a perceptron behind its query vectors, which is trained when the first query comes.

    Its statistics count the encoder's work on the texts and the perceptron's, not the training.
    """

    mode: Mode = "direct"

    def __init__(self, encoder: Any, plan: PerceptronPlan) -> None:
        self.encoder, self.plan = encoder, plan
        self.task_prompts: bool = getattr(encoder, "task_prompts", True)
        self.statistics = Statistics()
        self._perceptron: Any = None

    def think(self, texts: Sequence[str], **keywords: Any) -> list[Any]:
        """Nothing is written here. Raises ValueError."""
        raise ValueError("A perceptron on direct vectors does not reason.")

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **keywords: Any) -> Any:
        """MTEB's encode: queries through the perceptron, documents as the encoder embeds them."""
        from search_r3_mteb.encoder.inputs import is_query

        query = is_query(prompt_type)
        before, began = self._seconds(query), time.perf_counter()
        vectors = self.encoder.encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **keywords)
        # What the store of one of ours returns counts with the time that computing it took.
        seconds = time.perf_counter() - began if before is None else float(self._seconds(query) or 0.0) - before
        if not query:
            self.statistics.document_seconds += seconds
            return vectors
        import torch

        if self._perceptron is None:
            self._perceptron = self._trained(task_metadata)
        began = time.perf_counter()
        with torch.inference_mode():
            vectors = self._perceptron(torch.from_numpy(_unit(vectors))).numpy()
        self.statistics.query_seconds += seconds + time.perf_counter() - began
        return vectors

    def _seconds(self, query: bool) -> float | None:
        statistics = getattr(self.encoder, "statistics", None)
        if statistics is None:
            return None
        return float(statistics.query_seconds if query else statistics.document_seconds)

    def similarity(self, first: Any, second: Any) -> Any:
        """The encoder's own similarity (n, m)."""
        return self.encoder.similarity(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """The encoder's own similarity (n,), row by row."""
        return self.encoder.similarity_pairwise(first, second)

    def _trained(self, metadata: Any) -> Any:
        """The perceptron after training; the pairs' vectors come from the encoder, as the task's own do."""
        from mteb.types import PromptType

        queries, documents, pairs = training_pairs(self.plan)
        place = {"task_metadata": metadata, "hf_split": self.plan.split, "hf_subset": "default"}
        vectors = _unit(self.encoder.encode(_batches(queries), prompt_type=PromptType.query, **place))
        found = _unit(self.encoder.encode(_batches(documents), prompt_type=PromptType.document, **place))
        return train_perceptron(vectors, found, pairs, self.plan)


def with_perceptron(system: System, plan: PerceptronPlan) -> System:
    """The system with a perceptron on its query vectors, labelled LABEL-perceptron.

    Raises ValueError for a system that reasons, or that has no vectors, and FileNotFoundError or ValueError for a
    folder without the split.
    """
    from search_r3_mteb.tasks.beir_folder import choose_split, content_hash

    if system.mode != "direct" or not isinstance(system.model, RecordedEncoder):
        raise ValueError(
            f"{system.label} ({system.mode}): the perceptron stands on direct query vectors, which this system does "
            "not have. Give it to an encoder in mode 'direct'."
        )
    split = choose_split(plan.folder, plan.split)
    settings = {
        "perceptron": {**vars(plan), "folder": content_hash(Path(plan.folder), split)},
        "system": system.fingerprint,
    }
    fingerprint = fingerprint_of(settings)
    meta = system.model.mteb_model_meta.model_copy(
        update={
            "name": f"{system.model.mteb_model_meta.name}-{PERCEPTRON}",
            "experiment_kwargs": {"fingerprint": fingerprint[:16]},
        }
    )
    encoder = PerceptronEncoder(system.model.encoder, plan)
    return replace(
        system,
        label=f"{system.label}-{PERCEPTRON}",
        model=RecordedEncoder(encoder, meta),
        fingerprint=fingerprint,
        seed=plan.seed,
    )


def training_pairs(plan: PerceptronPlan) -> tuple[list[str], list[str], Int[np.ndarray, "pairs two"]]:
    """Queries, documents and the pairs (query, document) of the folder's judgements with relevance above 0.

    Raises ValueError where that leaves fewer than two queries.
    """
    from search_r3_mteb.encoder.documents import join_title
    from search_r3_mteb.tasks.beir_folder import read_corpus, read_queries, read_relevance

    judged = read_relevance(plan.folder, plan.split)
    texts = {query.id: query.text for query in read_queries(plan.folder) if query.id in judged}
    wanted = {document for grades in judged.values() for document, grade in grades.items() if grade > 0}
    documents = {each.id: join_title(each.title, each.text) for each in read_corpus(plan.folder) if each.id in wanted}
    query_ids, document_ids = sorted(texts), sorted(documents)
    rows, columns = _places(query_ids), _places(document_ids)
    pairs = [
        (rows[query], columns[document])
        for query in query_ids
        for document, grade in sorted(judged[query].items())
        if grade > 0 and document in columns
    ]
    if len({query for query, _ in pairs}) < 2:
        raise ValueError(
            f"{plan.folder} ({plan.split}): {len(pairs)} judged pairs, and a perceptron learns by comparing the "
            "documents of two queries at least. Name a folder with training judgements (train = FOLDER)."
        )
    return [texts[each] for each in query_ids], [documents[each] for each in document_ids], np.array(pairs)


def train_perceptron(
    queries: Float32[np.ndarray, "queries dim"],
    documents: Float32[np.ndarray, "documents dim"],
    pairs: Int[np.ndarray, "pairs two"],
    plan: PerceptronPlan,
) -> Any:
    """The perceptron of the epoch with the smallest held-out loss; the same arguments give the same weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        perceptron = _network(queries.shape[1])
    vectors, targets = torch.from_numpy(queries), torch.from_numpy(documents)
    known = np.unique(pairs[:, 0] * len(documents) + pairs[:, 1])
    held = pairs[:, 0] % _HELD_OUT == _HELD_OUT - 1 if len(queries) > _HELD_OUT else np.zeros(len(pairs), bool)
    kept, tested = pairs[~held], pairs[held] if held.any() else pairs

    def loss(rows: Any) -> "torch.Tensor":
        asked, answers = torch.from_numpy(rows[:, 0]), torch.from_numpy(rows[:, 1])
        scores = perceptron(vectors[asked]) @ targets[answers].T / plan.temperature
        own = torch.eye(len(rows), dtype=torch.bool)
        # Another document that is relevant too, or the same one, is not a negative.
        wanted = rows[:, 0, None] * len(documents) + rows[:, 1]
        # `known` is sorted: np.isin would sort all judgements again at every step.
        relevant = torch.from_numpy(known[np.searchsorted(known, wanted).clip(max=len(known) - 1)] == wanted)
        scores = scores.masked_fill(relevant & ~own, -torch.inf)
        return torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)))

    def measured() -> float:
        parts = np.array_split(tested, -(-len(tested) // plan.batch_size))
        with torch.no_grad():
            return sum(float(loss(part)) * len(part) for part in parts) / len(tested)

    rng, optimizer = np.random.default_rng(plan.seed), torch.optim.AdamW(perceptron.parameters(), plan.learning_rate)
    best, weights = measured(), _copied(perceptron)
    for _ in range(plan.epochs):
        order = rng.permutation(len(kept))
        for start in range(0, len(order), plan.batch_size):
            rows = kept[order[start : start + plan.batch_size]]
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        now = measured()
        if now < best:
            best, weights = now, _copied(perceptron)
    perceptron.load_state_dict(weights)
    return perceptron.eval()


def _network(dim: int) -> Any:
    import torch

    class _Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(dim, 2 * dim), torch.nn.Linear(2 * dim, dim)
            torch.nn.init.zeros_(self.second.weight)
            torch.nn.init.zeros_(self.second.bias)

        def forward(self, vectors: "torch.Tensor") -> "torch.Tensor":
            moved = vectors + self.second(torch.nn.functional.gelu(self.first(vectors)))
            return torch.nn.functional.normalize(moved, dim=-1)

    return _Residual()


def _copied(perceptron: Any) -> dict[str, Any]:
    return {name: weight.detach().clone() for name, weight in perceptron.state_dict().items()}


def _places(ids: Sequence[str]) -> Mapping[str, int]:
    return {each: place for place, each in enumerate(ids)}


def _batches(texts: Sequence[str]) -> Any:
    """The texts as MTEB's encoders take them."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    return DataLoader(Dataset.from_dict({"text": list(texts)}), batch_size=_BATCH)


def _unit(vectors: Any) -> Float32[np.ndarray, "rows dim"]:
    array = np.asarray(vectors, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)
