"""nDCG@10 of the model in training on held-out judged queries, by mode: the numbers that choose a checkpoint."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.evaluation.queries import DocumentScores, score, without_identical_ids
from search_r3_mteb.evaluation.query_scorer import best_documents
from search_r3_mteb.tasks.beir_folder import read_queries, read_relevance
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.data import JudgedSetSettings
from train.config.run import EvaluateSettings
from train.data.sources import documents_of
from train.model.model import evaluating

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

ByHops = list[tuple[int | None, float, int]]  # hop count (None: all), mean, queries


@dataclass(frozen=True)
class JudgedSet:
    """Queries with judgements over a corpus; `hops` holds the chain length of each query, hopworld only."""

    label: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    hops: Mapping[str, int]
    ignore_identical_ids: bool = False

    @cached_property
    def document_ids(self) -> list[str]:
        """The corpus's ids, in the order of its rows."""
        return list(self.documents)


@dataclass(frozen=True)
class Score:
    """Mean nDCG@10 over the queries of one set, mode and hop count (None: all), and what their reasoning cost.

    `dim` is the number of dimensions that vectors were cut to, None where they are whole.
    """

    task: str
    mode: str
    hops: int | None
    ndcg_at_10: float
    queries: int
    reasoning_tokens: float
    forced_share: float
    dim: int | None = None

    def __str__(self) -> str:
        """Task, mode, hop count, size and nDCG@10."""
        hops = f" {self.hops}-hop" if self.hops else ""
        dim = f" {self.dim}d" if self.dim else ""
        return f"{self.task} {self.mode}{hops}{dim} {self.ndcg_at_10:.3f}"

    def fields(self) -> dict[str, Any]:
        """The fields of a line of the log; the size only where vectors are cut to it."""
        return {name: value for name, value in asdict(self).items() if name != "dim" or value is not None}


def load(settings: JudgedSetSettings, max_queries: int | None, seed: int) -> JudgedSet:
    """The judged set that `settings` name; `seed` alone decides which `max_queries` queries are drawn from it."""
    queries, qrels, hops = _hopworld(settings) if settings.kind == "hopworld" else _beir(settings)
    kept = list(queries)
    if max_queries is not None and len(kept) > max_queries:
        kept = sorted(random.Random(f"evaluation {seed}").sample(sorted(kept), max_queries))
    return JudgedSet(
        label=settings.label,
        documents=dict(documents_of(settings)),
        queries={query: queries[query] for query in kept},
        qrels={query: qrels[query] for query in kept},
        hops={query: hops[query] for query in kept if query in hops},
        ignore_identical_ids=settings.ignore_identical_ids,
    )


def evaluate(
    checkpoint: Checkpoint,
    sets: Sequence[JudgedSet],
    settings: EvaluateSettings,
    max_length: int,
    dims: Sequence[int] = (),
    anchor: float = 0.0,
) -> list[Score]:
    """Scores of every set and mode; the model stays in its mode, and no global random number is drawn.

    `dims` are further sizes (see `check_sizes`), measured on the same vectors. An `anchor` above 0 adds the mode
    "anchored", normalise(direct + anchor x reasoned) of the two modes' vectors, which `settings.modes` must name both;
    its reasoning tokens are those of "reason".
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    scores: list[Score] = []
    with evaluating(checkpoint.model):
        for judged in sets:
            corpus: Any = None
            found: dict[str, tuple[Any, ByHops, ByHops]] = {}
            for mode in settings.modes:
                encoder = SearchR3Encoder(
                    checkpoint,
                    mode=mode,
                    max_length=max_length,
                    max_reasoning_tokens=settings.max_reasoning_tokens,
                    batch_tokens=settings.batch_tokens,
                    show_progress_bar=False,
                )
                if corpus is None:
                    corpus = encoder.encode_document(list(judged.documents.values()))
                found[mode] = _queries(encoder, judged)
            if anchor:
                sums = anchored(found["direct"][0], found["reason"][0], anchor)
                found["anchored"] = (first_dimensions(sums, sums.shape[1]), *found["reason"][1:])
            for name, (queries, tokens, forced) in found.items():
                costs = [(mean, share) for (_, mean, _), (_, share, _) in zip(tokens, forced, strict=True)]
                for dim in (None, *dims):
                    ndcg = per_query_ndcg(judged, first_dimensions(queries, dim), first_dimensions(corpus, dim))
                    for (hops, value, count), cost in zip(_by_hops(judged, ndcg), costs, strict=True):
                        scores.append(Score(judged.label, name, hops, value, count, *cost, dim))
    return scores


def _queries(encoder: "SearchR3Encoder", judged: JudgedSet) -> tuple[Any, ByHops, ByHops]:
    """Vectors of the queries (n, dim), their tokens of reasoning, and the share whose embed token was forced."""
    texts = list(judged.queries.values())
    if encoder.mode == "direct":
        none = _by_hops(judged, dict.fromkeys(judged.queries, 0.0))
        return encoder.encode_query(texts), none, none
    thoughts = dict(zip(judged.queries, encoder.think(texts), strict=True))
    tokens = {query: float(len(thought.token_ids)) for query, thought in thoughts.items()}
    forced = {query: float(not thought.finished) for query, thought in thoughts.items()}
    vectors = np.stack([thought.vector for thought in thoughts.values()])
    return vectors, _by_hops(judged, tokens), _by_hops(judged, forced)


def first_dimensions(vectors: Any, dim: int | None) -> Any:
    """The first `dim` dimensions of vectors (n, all), of unit length again; None: the vectors themselves."""
    if dim is None:
        return vectors
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)


def per_query_ndcg(judged: JudgedSet, queries: Any, corpus: Any) -> dict[str, float]:
    """nDCG@10 of each query, from unit vectors of the queries (n, dim) and the corpus (m, dim).

    By the code of `search-r3 evaluate`: ties are ordered by the documents' ids, as trec_eval does, and identical ids
    are left out where the set says so.
    """
    ranking: DocumentScores = best_documents(list(judged.queries), queries, judged.document_ids, corpus)
    if judged.ignore_identical_ids:
        ranking = without_identical_ids(ranking)
    measured = score(judged.qrels, ranking)
    return {query: measured[query]["ndcg_cut_10"] for query in judged.queries}


def sizes_of(config: Any) -> tuple[int, ...]:
    """The sizes that are measured beside the whole vectors: as set, else those that are trained."""
    if config.evaluate.dims is not None:
        return tuple(config.evaluate.dims)
    return tuple(config.loss.matryoshka_dims) if hasattr(config, "loss") else ()


def anchor_of(config: Any) -> float:
    """The weight of the reasoned vector in the anchored one; 0, none, in stage 1."""
    return float(config.reward.anchor) if hasattr(config, "reward") else 0.0


def check_sizes(config: Any, dim: int) -> None:
    """Raises ValueError for a size, trained or measured, that vectors of `dim` dimensions do not have."""
    (config.loss if hasattr(config, "loss") else config.replay.loss).check_sizes(dim)
    wrong = [size for size in sizes_of(config) if size >= dim]
    if wrong:
        raise ValueError(
            f"evaluate.dims = {list(sizes_of(config))}: the vectors have {dim} dimensions, and {wrong[0]} is not "
            "smaller. The whole vectors are always measured; leave it out."
        )


def mean_of(scores: Sequence[Score], mode: str) -> float:
    """Mean over the sets of one mode's nDCG@10: what chooses the best checkpoint."""
    values = [score.ndcg_at_10 for score in scores if score.mode == mode and score.hops is score.dim is None]
    return sum(values) / len(values)


def _by_hops(judged: JudgedSet, values: Mapping[str, float]) -> ByHops:
    """(hop count, mean, queries), first over all."""
    groups: dict[int | None, list[float]] = {None: list(values.values())}
    for query, hops in judged.hops.items():
        groups.setdefault(hops, []).append(values[query])
    ordered = sorted(groups.items(), key=lambda item: item[0] or 0)
    return [(hops, sum(group) / len(group), len(group)) for hops, group in ordered]


def _hopworld(settings: JudgedSetSettings) -> tuple[dict[str, str], dict[str, dict[str, int]], dict[str, int]]:
    """Texts, judgements and hop counts of the queries, by their ids."""
    world = HopWorld(settings.documents, settings.world_seed)
    queries = list(world.iterate_queries(settings.split, settings.hops))
    qrels = {query.id: {query.positive_id: 1} for query in queries}
    return {query.id: query.text for query in queries}, qrels, {query.id: query.hops for query in queries}


def _beir(settings: JudgedSetSettings) -> tuple[dict[str, str], dict[str, dict[str, int]], dict[str, int]]:
    """The same of a BEIR folder, whose queries have no hop counts."""
    folder = str(settings.path)
    qrels = read_relevance(folder, settings.split)
    return {id_: text for id_, text in read_queries(folder) if id_ in qrels}, qrels, {}
