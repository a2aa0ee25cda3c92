"""Refresh policies: which rows a refresh re-encodes. One interface: `policy_of(settings).select(rows, counts, budget)`.

    none        nothing is refreshed: what staleness costs
    random      random rows
    local       what the batch touches (positives, every rollout's top k, their neighbours), then the oldest rows
    random+map  random rows, and every other row moves by the drift map fitted on them
    local+map   local rows, and the map
    full        the whole corpus at every refresh: the truth, at its price
    frozen      nothing, since the weights before training embed documents: always exact, only queries learn

A row's rank among the candidates is its staleness (steps since it was encoded) times how often it is retrieved: in this
batch, a neighbour counting half of its hit per edge of distance, plus its mean number of retrievals per step so far. A
positive counts like ten retrievals: its own cosine enters the reward, a competitor's only through the order. Source:
our choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from search_r3_mteb.extensions import REFRESH_POLICIES, Extension
from search_r3_mteb.search.arrays import RowNumbers
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.neighbor_graph import Neighbors, expand
from train.corpus_cache.row_ages import RowAges

POSITIVE_WEIGHT = 10.0
HOP_DECAY = 0.5


@dataclass(frozen=True)
class Hits:
    """The documents that the rollouts of a batch retrieved.

    `queries` (rollouts, dim): their unit vectors. `rows` (rollouts, k): the rows of the cache that they retrieved, best
    first. `positives`: for each rollout the rows of its relevant documents, at least one.
    """

    queries: Float[np.ndarray, "rollouts dim"]
    rows: Int[np.ndarray, "rollouts k"]
    positives: Sequence[Sequence[int] | RowNumbers]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.queries) == len(self.rows) == len(self.positives):
            raise ValueError(
                f"{len(self.queries)} query vectors, rows of shape {self.rows.shape} and positives of "
                f"{len(self.positives)} rollouts do not fit together: one of each per rollout."
            )
        for rollout, positives in enumerate(self.positives):
            if not len(positives):
                raise ValueError(
                    f"Rollout {rollout} has no positive document in the corpus, so no ranking could earn its reward. "
                    "Leave its query out, or add its documents to the corpus."
                )

    def check(self, n: int) -> None:
        """ValueError where a row is not one of a corpus of `n`."""
        for name, rows in (("rows", self.rows.ravel()), ("positives", self.positive_rows())):
            wrong = rows[(rows < 0) | (rows >= n)]
            if len(wrong):
                raise ValueError(
                    f"Hits.{name} names row {int(wrong[0])}, but the corpus has rows 0 to {n - 1}. These hits come "
                    "from another corpus, or from a search that padded its answer."
                )

    def positive_rows(self) -> RowNumbers:
        """The positives of all rollouts, one after the other."""
        parts = [np.asarray(rows, dtype=np.int64).ravel() for rows in self.positives]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@dataclass(frozen=True)
class RetrievalCounts:
    """How often the rows of a batch, ascending, were `retrieved`, and how often they were a rollout's `positive`."""

    rows: RowNumbers
    retrieved: Int[np.ndarray, " rows"]
    positive: Int[np.ndarray, " rows"]

    @classmethod
    def of(cls, hits: Hits) -> "RetrievalCounts":
        """The counts of a batch."""
        return cls._summed(hits.rows.ravel().astype(np.int64), hits.positive_rows())

    @classmethod
    def merged(cls, parts: Sequence[dict[str, Any]]) -> "RetrievalCounts":
        """The counts of several batches together: those of all processes, each as `arrays` gave them."""
        rows, place = np.unique(np.concatenate([part["rows"] for part in parts]), return_inverse=True)
        retrieved, positive = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        np.add.at(retrieved, place, np.concatenate([part["retrieved"] for part in parts]))
        np.add.at(positive, place, np.concatenate([part["positive"] for part in parts]))
        return cls(rows, retrieved, positive)

    @classmethod
    def none(cls) -> "RetrievalCounts":
        """The counts of an empty batch."""
        return cls._summed(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def _summed(cls, retrieved: RowNumbers, positives: RowNumbers) -> "RetrievalCounts":
        rows, place = np.unique(np.concatenate([retrieved, positives]), return_inverse=True)
        parts = place[: len(retrieved)], place[len(retrieved) :]
        return cls(rows.astype(np.int64), *(np.bincount(part, minlength=len(rows)) for part in parts))

    def arrays(self) -> dict[str, Any]:
        """The counts as arrays by name, to be gathered."""
        return {"rows": self.rows, "retrieved": self.retrieved, "positive": self.positive}


@dataclass(frozen=True)
class CorpusRows:
    """The facts about rows that a policy may read, none of them for the whole corpus."""

    n: int
    step: int
    row_step: Int[np.ndarray, " rows"]
    token_counts: Int[np.ndarray, " rows"]
    retrieved: Int[np.ndarray, " rows"]
    neighbors: Neighbors
    ages: RowAges
    hops: int
    sweep_share: float
    seed: int
    given: RowNumbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows whose vectors under the present weights are known already: refreshed in addition, at no cost."""

    def staleness(self, rows: RowNumbers) -> Int[np.ndarray, " rows"]:
        """Steps since the rows were encoded."""
        return self.step - self.row_step[rows].astype(np.int64)

    def cut(self, rows: RowNumbers, budget: int) -> RowNumbers:
        """The first of `rows` whose tokens stay within `budget`; a document longer than the budget is skipped."""
        tokens = self.token_counts[rows].astype(np.int64)
        rows, tokens = rows[tokens <= budget], tokens[tokens <= budget]
        return rows[: np.searchsorted(np.cumsum(tokens), budget, side="right")]

    def tokens(self, rows: RowNumbers) -> int:
        """Tokens that encoding the rows takes."""
        return int(self.token_counts[rows].sum(dtype=np.int64))


Select = Callable[[CorpusRows, RetrievalCounts, int], RowNumbers]


def nothing(corpus: CorpusRows, counts: RetrievalCounts, budget: int) -> RowNumbers:
    """No row."""
    return np.zeros(0, np.int64)


def everything(corpus: CorpusRows, counts: RetrievalCounts, budget: int) -> RowNumbers:
    """Every row, whatever the budget."""
    return np.arange(corpus.n)


def random_rows(corpus: CorpusRows, counts: RetrievalCounts, budget: int) -> RowNumbers:
    """Rows drawn uniformly without replacement, until the budget is spent."""
    rng = np.random.default_rng([corpus.seed, corpus.step])
    drawn = np.zeros(0, np.int64)
    wanted = budget  # a document has at least one token
    while len(drawn) < corpus.n:
        # Half more than the last draw: duplicates are dropped, and document lengths differ.
        more = rng.integers(corpus.n, size=min(2 * corpus.n, max(256, min(wanted, len(drawn) // 2 or 256))))
        together = np.concatenate([drawn, more])
        drawn = together[np.sort(np.unique(together, return_index=True)[1])]
        chosen = corpus.cut(drawn, budget)
        if len(chosen) < len(drawn):
            return chosen
    return corpus.cut(drawn, budget)


def local_rows(corpus: CorpusRows, counts: RetrievalCounts, budget: int) -> RowNumbers:
    """The given rows, those that the batch touches by rank, and the oldest for a share of the budget and the rest."""
    rows, distance = expand(counts.rows, corpus.neighbors, corpus.hops)
    touched = np.zeros(len(rows))
    touched[np.searchsorted(rows, counts.rows)] = counts.retrieved + counts.positive
    frequency = _with_neighbors(rows, distance, touched, corpus.neighbors) + corpus.retrieved[rows] / max(
        1, corpus.step
    )
    frequency[np.searchsorted(rows, counts.rows)] += (POSITIVE_WEIGHT - 1) * counts.positive
    stale = corpus.staleness(rows) * ~np.isin(rows, corpus.given)
    score = stale * frequency
    order = np.lexsort((rows, -score))
    order = order[stale[order] > 0]
    local = corpus.cut(rows[order], budget - int(budget * corpus.sweep_share))
    taken = {*local.tolist(), *corpus.given.tolist()}
    left = budget - corpus.tokens(local)

    def enough(oldest: RowNumbers) -> int:
        return len(_affordable(corpus, oldest, taken, left)[1])

    oldest = corpus.ages.oldest(enough, corpus.step - 1) if left > 0 else np.zeros(0, np.int64)
    return np.concatenate([corpus.given, local, _affordable(corpus, oldest, taken, left)[0]])


def _affordable(corpus: CorpusRows, oldest: RowNumbers, taken: set[int], left: int) -> tuple[RowNumbers, RowNumbers]:
    """The oldest rows that are not taken and fit, and the rows of the queue that had to be looked at for them."""
    free = np.array([row not in taken for row in oldest.tolist()], dtype=bool)
    tokens = corpus.token_counts[oldest].astype(np.int64) * free
    seen = int(np.searchsorted(np.cumsum(tokens), left, side="right"))
    return oldest[:seen][free[:seen]], oldest[:seen]


def _with_neighbors(
    rows: RowNumbers, distance: Int[np.ndarray, " rows"], touched: Float[np.ndarray, " rows"], neighbors: Neighbors
) -> Float[np.ndarray, " rows"]:
    """How often the batch touched the rows: at distance h, half of the most touched neighbour at distance h - 1."""
    for hop in range(1, int(distance.max(initial=0)) + 1):
        sources = np.flatnonzero(distance == hop - 1)
        named = np.asarray(neighbors[rows[sources]])
        valid = named >= 0
        inherited = np.zeros(len(rows))
        share = np.repeat(touched[sources] * HOP_DECAY, valid.sum(axis=1))
        np.maximum.at(inherited, np.searchsorted(rows, named[valid]), share)
        touched = np.where(distance == hop, inherited, touched)
    return touched


@dataclass(frozen=True)
class RefreshPolicy:
    """How a cache stays fresh. `uses_map`: the drift map moves the other rows. `is_exact`: no document moves."""

    name: str
    select: Select
    uses_map: bool = False
    rebuilds: bool = False
    is_exact: bool = False


POLICIES: dict[str, RefreshPolicy] = {
    policy.name: policy
    for policy in (
        RefreshPolicy("none", nothing),
        RefreshPolicy("random", random_rows),
        RefreshPolicy("local", local_rows),
        RefreshPolicy("random+map", random_rows, uses_map=True),
        RefreshPolicy("local+map", local_rows, uses_map=True),
        RefreshPolicy("full", everything, rebuilds=True),
        RefreshPolicy("frozen", nothing, is_exact=True),
    )
}


def policy_of(settings: CorpusCacheSettings) -> RefreshPolicy:
    """The policy that the settings name: ours, or another package's with its own settings."""
    if settings.policy in POLICIES:
        return POLICIES[settings.policy]
    extension, own = REFRESH_POLICIES.find(settings.policy), settings.own_settings

    def select(corpus: CorpusRows, counts: RetrievalCounts, budget: int) -> RowNumbers:
        return _checked_rows(extension, extension(corpus, counts, budget, own), corpus, budget)

    return RefreshPolicy(settings.policy, select, uses_map=settings.uses_map)


def _checked_rows(extension: Extension, rows: Any, corpus: CorpusRows, budget: int) -> RowNumbers:
    """What another package's policy has chosen. Raises ExtensionError unless it is distinct rows within the budget."""
    found = np.asarray(rows)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise extension.error(f"gave {found.dtype} of shape {found.shape}; row numbers are integers (rows,)")
    found = found.astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < corpus.n:
        wrong = int(found[(found < 0) | (found >= corpus.n)][0])
        raise extension.error(f"chose row {wrong}, but the corpus has rows 0 to {corpus.n - 1}")
    if len(np.unique(found)) < len(found):
        raise extension.error("chose a row twice, which would be encoded and counted twice")
    tokens = corpus.tokens(found[~np.isin(found, corpus.given)])
    if tokens > budget:
        raise extension.error(f"chose rows of {tokens} tokens, but the budget is {budget}: see CorpusRows.cut")
    return found


@dataclass(frozen=True)
class RefreshReport:
    """Result of one refresh. `rows` were re-encoded, in the order of their rank; seconds are those of this process."""

    step: int
    rows: Int[np.ndarray, " rows"]
    tokens: int = 0
    """Of the rows that were not given: what was spent."""
    budget: int = 0
    """Tokens that could be spent, after the audits' factor."""
    share: float = 0.0
    """Part of the corpus that was re-encoded."""
    seconds: float = 0.0
    encode_seconds: float = 0.0
    map_seconds: float = 0.0
    """Fit and application of the drift map, 0 where none was applied."""
    map_seconds_per_row: float = 0.0

    @property
    def own_seconds(self) -> float:
        """Everything but the encoder: selection, graph, map, disk."""
        return self.seconds - self.encode_seconds
