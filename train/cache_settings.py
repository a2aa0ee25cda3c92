"""What can be set about a corpus cache, and what a refresh reports."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from search_r3_mteb.evaluation.vector_storage import Storage, numpy_dtype
from train.drift_map import MAX_MAPS, MEMORY, RIDGE
from train.refresh_policies import policy


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a corpus cache. ValueError where one cannot hold."""

    policy: str = "local+map"
    """Which rows are refreshed, see `refresh_policies`."""
    neighbors: int = 16
    """Edges per document. Our choice: HNSW's usual M."""
    hops: int = 1
    """Neighbours of retrieved rows within so many edges are candidates."""
    sweep_share: float = 0.5
    """Part of the budget for the oldest rows. Our choice, measured on held-out queries in results/corpus_cache."""
    map_ridge: float = RIDGE
    """Ridge of the drift map, times pairs / dimensions + 3."""
    map_memory: float = MEMORY
    """How much of the earlier refreshes' Gram matrix the drift map's fit keeps; 0 fits each refresh alone."""
    max_maps: int = MAX_MAPS
    """Composed maps held at once, (dim + 1) x dim float32 each."""
    storage: Storage = "float32"
    """Type of the vectors that are scanned. In half precision the float32 originals stay on disk and score the best rows."""
    keep_originals: bool | None = None
    """Keep every row's encoded float32 vector beside its value. None: where the policy maps, or the storage is half."""
    encode_rows: int = 1024
    """Documents handed to the encoder at once by `build` and `rebuild`."""
    error_bound: float = 0.02
    """Reward error of an audit above which the budget grows."""
    budget_growth: float = 2.0
    """Factor by which it grows at each such audit, and shrinks again below half of the bound."""
    max_budget_factor: float = 8.0
    """What the factor never exceeds; the log then advises a rebuild."""
    log_megabytes: int = 64
    """Size of the change log at which it is folded into the state."""
    index_maps: int = 50
    """Drift maps after which the IVF index, whose other rows do not move with them, is made anew at the next search."""
    durable: bool = False
    """Wait for the disk at every refresh: needed against power cuts, not against killed processes."""
    seed: int = 0
    """Of the random policies, audits and the graph."""

    def __post_init__(self) -> None:
        policy(self.policy)
        numpy_dtype(self.storage)
        for name, least in (
            ("neighbors", 1),
            ("hops", 0),
            ("max_maps", 1),
            ("encode_rows", 1),
            ("log_megabytes", 0),
            ("index_maps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        for name, low, high in (("sweep_share", 0.0, 1.0), ("map_memory", 0.0, 0.999)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie between {low} and {high}.")
        if not self.map_ridge > 0:
            raise ValueError(f"map_ridge={self.map_ridge} must be above 0: the fit has fewer pairs than unknowns.")
        for name in ("budget_growth", "max_budget_factor"):
            if not getattr(self, name) >= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1: a large error must not shrink the budget."
                )
        if self.keep_originals is False and self.needs_originals:
            raise ValueError(
                f"keep_originals=False, but policy {self.policy!r} with storage {self.storage!r} computes values from the encoded "
                "originals. Leave keep_originals out, or choose a policy without map and float32."
            )

    @property
    def needs_originals(self) -> bool:
        """Whether values are computed from encoded originals."""
        return policy(self.policy).uses_map or self.storage != "float32"

    @property
    def originals(self) -> bool:
        """Whether the cache holds encoded originals beside the values."""
        return self.needs_originals if self.keep_originals is None else self.keep_originals


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh did. `rows` were re-encoded, in the order of their rank; seconds are this process's wall-clock time."""

    step: int
    rows: Int[np.ndarray, " rows"]
    tokens: int = 0
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
