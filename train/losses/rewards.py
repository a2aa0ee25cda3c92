"""Rewards of rollouts: how well a rollout's vector ranks the right documents. Functions over arrays.

All rewards lie in [0, 1] per query before weights, penalties and costs. A reward that cannot be computed (no judged
document, an unknown query or document, NaN) raises and stops the run: a crashed reward that becomes 0 teaches the model
that its reasoning was bad.

Departures from the paper: its reward "DCG_scaled" is public only as "DCG combined with continuous cosine similarity",
so `dcg_scaled` is our reading. `margin` is ours, for the time when the top of the ranking is right and DCG no longer
changes; `ndcg` and `mrr` are for comparison.
"""

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from search_r3_mteb.extensions import REWARDS
from train.config.grpo import RewardSettings
from train.config.settings import OwnRewardSettings

Id = Hashable
Judgements = Mapping[Any, Mapping[Any, float]]
"""Query id -> document id -> relevance; above 0 is relevant, higher is better, as in BEIR's qrels."""


@dataclass(frozen=True)
class Rankings:
    """The documents that each rollout's vector retrieved, best first. Arrays may be numpy or torch.

    `document_ids` (rollouts, k) and `similarities` (rollouts, k), cosines; `positive_similarities` (rollouts,), the
    cosine with the most similar of the query's relevant documents, wherever that one ranks (needed by `margin` alone);
    `query_ids` (rollouts,), keys of the judgements, repeated for the rollouts of a group. `finished` is False where the
    embed token was forced, `reasoning_tokens` counts the tokens before it (needed by penalty and cost).
    """

    query_ids: Any
    document_ids: Any
    similarities: Any
    positive_similarities: Any = None
    finished: Any = None
    reasoning_tokens: Any = None


@dataclass(frozen=True)
class Graded:
    """Rankings as numbers, checked. `ideal` are the query's judged gains, best first, cut to k and filled with 0."""

    gains: Float[np.ndarray, "rollouts k"]
    ideal: Float[np.ndarray, "rollouts k"]
    similarities: Float[np.ndarray, "rollouts k"]
    positive_similarities: Float[np.ndarray, " rollouts"] | None = None


def grade(
    rankings: Rankings, judgements: Judgements, *, k: int | None = None, corpus: Container[Id] | None = None
) -> Graded:
    """Look the ranking's first `k` documents up in the judgements (all of them without `k`).

    A document that was not judged for the query, or judged negatively, gains 0. With `corpus`, the ids that exist,
    every retrieved and judged document must be among them.

    Raises ValueError for an unknown query, one without relevant document, an empty or unknown document id, a document
    twice in one ranking, or a similarity that is not a cosine; TypeError when ids and judgements differ in type.
    """
    similarities = _array(rankings.similarities)
    documents: list[list[Id]] = [_plain(row) for row in _plain(rankings.document_ids)]
    queries = _plain(rankings.query_ids)
    rollouts = len(queries)
    shape = (rollouts, len(documents[0]) if documents else 0)
    if similarities.shape != shape or len(documents) != rollouts or len({len(row) for row in documents}) > 1:
        raise ValueError(
            f"{rollouts} query ids, {len(documents)} rankings of {sorted({len(row) for row in documents})} documents "
            f"and similarities of shape {similarities.shape} do not fit together: rows are rollouts, columns ranks."
        )
    k = similarities.shape[1] if k is None else k
    if not 1 <= k <= similarities.shape[1]:
        raise ValueError(
            f"k={k}, but {similarities.shape[1]} documents were retrieved for each rollout. Search for at least k."
        )
    gains, ideal = np.zeros((rollouts, k)), np.zeros((rollouts, k))
    judgements_of = {query: _judged(query, judgements, corpus) for query in dict.fromkeys(queries)}
    for row, (query, retrieved) in enumerate(zip(queries, documents, strict=True)):
        judged = judgements_of[query]
        _check_retrieved(retrieved, row, next(iter(judged)), corpus)
        gains[row] = [max(judged.get(document, 0.0), 0.0) for document in retrieved[:k]]
        best = sorted((gain for gain in judged.values() if gain > 0), reverse=True)[:k]
        ideal[row, : len(best)] = best
    positive = rankings.positive_similarities
    return Graded(
        gains=gains,
        ideal=ideal,
        similarities=_cosines("similarities", similarities)[:, :k],
        positive_similarities=None if positive is None else _cosines("positive_similarities", _array(positive)),
    )


def dcg_scaled(graded: Graded) -> Float[np.ndarray, " rollouts"]:
    """Sum over the top k of rel_i * max(cos_i, 0) / log2(i + 1), divided by that of the ideal ranking with cosines 1.

    The ideal ranking holds the query's judged documents, best first, cut to k. Our reading of the paper's "DCG_scaled";
    a cosine below 0 counts as 0, which keeps the reward in [0, 1].
    """
    return _discounted(graded.gains * graded.similarities.clip(0, 1)) / _discounted(graded.ideal)


def ndcg(graded: Graded) -> Float[np.ndarray, " rollouts"]:
    """NDCG at k with linear gains, as trec_eval and MTEB compute it."""
    return _discounted(graded.gains) / _discounted(graded.ideal)


def mrr(graded: Graded) -> Float[np.ndarray, " rollouts"]:
    """One over the rank of the first relevant document; 0 when none is among the top k."""
    relevant = graded.gains > 0
    return np.where(relevant.any(axis=1), 1.0 / (relevant.argmax(axis=1) + 1), 0.0)


def margin(graded: Graded) -> Float[np.ndarray, " rollouts"]:
    """Cosine of the positive minus cosine of the best document that is not relevant, from [-2, 2] to [0, 1].

    0.5 is a tie. Raises ValueError without `positive_similarities`, or when all of the top k are relevant.
    """
    if graded.positive_similarities is None:
        raise ValueError(
            "margin needs `positive_similarities`, the cosine of each rollout with its best relevant document."
        )
    negative = np.where(graded.gains > 0, -np.inf, graded.similarities).max(axis=1)
    if not np.isfinite(negative).all():
        row = int(np.flatnonzero(~np.isfinite(negative))[0])
        raise ValueError(
            f"All {graded.gains.shape[1]} documents retrieved for rollout {row} are relevant, so there is no negative "
            "to compare with. Raise k above the number of relevant documents of a query."
        )
    return (graded.positive_similarities - negative + 2) / 4


REWARD_FUNCTIONS: Mapping[str, Callable[[Graded], Float[np.ndarray, " rollouts"]]] = {
    "dcg_scaled": dcg_scaled,
    "ndcg": ndcg,
    "mrr": mrr,
    "margin": margin,
}


@dataclass(frozen=True)
class Rewards:
    """`total` trains the policy; `parts` are the unweighted rewards, for the log."""

    total: Float[np.ndarray, " rollouts"]
    parts: Mapping[str, Float[np.ndarray, " rollouts"]]


def reward(
    rankings: Rankings,
    judgements: Judgements,
    settings: RewardSettings | None = None,
    *,
    corpus: Container[Id] | None = None,
) -> Rewards:
    """The weighted sum of rewards, minus the penalty where the token was forced, minus the cost of reasoning tokens.

    Raises ValueError when any of it cannot be computed; see `grade` and `margin`.
    """
    settings = settings or RewardSettings()
    graded = grade(rankings, judgements, k=settings.k, corpus=corpus)
    weights = settings.weights
    own = settings.own.tables
    missing = sorted(weights.keys() - REWARD_FUNCTIONS.keys() - own.keys())
    if missing:
        raise ValueError(
            f"The settings have a reward {missing[0]!r} that no function computes, so its weight would have no effect. "
            f"The rewards are {', '.join(REWARD_FUNCTIONS)}."
        )
    parts = {kind: REWARD_FUNCTIONS[kind](graded) for kind, weight in weights.items() if weight and kind not in own}
    parts |= {name: _own(name, graded, rankings, table) for name, table in own.items()}
    total = sum((weights[kind] * part for kind, part in parts.items()), np.zeros(len(rankings.query_ids)))
    if settings.forced_penalty:
        finished: Bool[np.ndarray, " rollouts"] = _column("finished", rankings, "forced_penalty").astype(bool)
        total = total - settings.forced_penalty * ~finished
    if settings.token_cost:
        tokens: Int[np.ndarray, " rollouts"] = _column("reasoning_tokens", rankings, "token_cost")
        total = total - settings.token_cost * tokens
    if not np.isfinite(total).all():
        raise ValueError(
            f"The reward of rollout {int(np.flatnonzero(~np.isfinite(total))[0])} is not finite; the parts are {parts}."
        )
    return Rewards(total=total, parts=parts)


def _own(name: str, graded: Graded, rankings: Rankings, settings: OwnRewardSettings) -> Float[np.ndarray, " rollouts"]:
    """The reward of another package, which must be one number from 0 to 1 for each rollout, as ours are."""
    extension = REWARDS.find(name)
    found = _array(extension(graded, rankings, settings))
    if found.shape != (len(graded.gains),):
        raise extension.error(
            f"gave an array of shape {found.shape}, not ({len(graded.gains)},): one value per rollout"
        )
    outside = ~((found >= -1e-6) & (found <= 1 + 1e-6))  # NaN is outside
    if outside.any():
        rollout = int(np.flatnonzero(outside)[0])
        raise extension.error(f"gave {found[rollout]} for rollout {rollout}; a reward lies between 0 and 1")
    return found.clip(0, 1)


def _discounted(gains: Float[np.ndarray, "rollouts k"]) -> Float[np.ndarray, " rollouts"]:
    """Discounted cumulative gain: ranks count from 1, rank i is worth 1 / log2(i + 1)."""
    discounted: Float[np.ndarray, " rollouts"] = gains @ (1.0 / np.log2(np.arange(gains.shape[1]) + 2.0))
    return discounted


def _judged(query: Id, judgements: Judgements, corpus: Container[Id] | None) -> Mapping[Id, float]:
    """The judgements of one query, checked."""
    if query not in judgements:
        raise ValueError(f"Query {query!r} has no judgements, so its reward is unknown. Train on judged queries only.")
    judged = judgements[query]
    wrong = [document for document, gain in judged.items() if not np.isfinite(gain)]
    if wrong:
        raise ValueError(
            f"The relevance of document {wrong[0]!r} for query {query!r} is {judged[wrong[0]]}; it must be a number."
        )
    if not any(gain > 0 for gain in judged.values()):
        raise ValueError(
            f"Query {query!r} has no relevant document among its {len(judged)} judgements: no ranking earns a reward."
        )
    if corpus is not None:
        missing = [document for document, gain in judged.items() if gain > 0 and document not in corpus]
        if missing:
            raise ValueError(
                f"Document {missing[0]!r}, relevant for query {query!r}, is not in the corpus: it is never retrieved."
            )
    return judged


def _check_retrieved(retrieved: Sequence[Id], row: int, judged: Id, corpus: Container[Id] | None) -> None:
    """Raise where a ranking holds ids of another type, empty or unknown ids, or an id twice."""
    for document in retrieved:
        if type(document) is not type(judged):
            raise TypeError(
                f"Rollout {row} retrieved document {document!r} ({type(document).__name__}), but judgements name "
                f"documents like {judged!r} ({type(judged).__name__}): none would ever match. Map rows to ids."
            )
        if document in ("", -1):
            raise ValueError(
                f"Rollout {row} has the empty document id {document!r}: the search returned fewer than k documents."
            )
        if corpus is not None and document not in corpus:
            raise ValueError(f"Rollout {row} retrieved the unknown document {document!r}, which is not in the corpus.")
    if len(set(retrieved)) != len(retrieved):
        twice = next(document for document in retrieved if retrieved.count(document) > 1)
        raise ValueError(
            f"Rollout {row} retrieved document {twice!r} twice; its gain would count twice. Deduplicate the index."
        )


def _cosines(name: str, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The values, once they are known to be cosines; float32 rounding may exceed 1 a little."""
    bad = ~(np.abs(values) <= 1 + 1e-3)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}{list(where)} is {values[where]}, not a cosine. Normalise the vectors, and look for NaN in them."
        )
    return values


def _column(name: str, rankings: Rankings, reason: str) -> Any:
    values = getattr(rankings, name)
    if values is None:
        raise ValueError(f"{reason} is above 0 but `{name}` was not given. Pass it, or set {reason} to 0.")
    array = _array(values)
    if array.shape != (len(rankings.query_ids),):
        raise ValueError(
            f"`{name}` has shape {array.shape}; one value for each of the {len(rankings.query_ids)} rollouts is needed."
        )
    return array


def _array(values: Any) -> Any:
    """A float64 array of numpy, torch or nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=np.float64)


def _plain(values: Any) -> list[Any]:
    """A list, with Python numbers and strings for those of numpy and torch."""
    return list(values.tolist() if hasattr(values, "tolist") else values)
