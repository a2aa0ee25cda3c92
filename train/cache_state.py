"""Everything about a corpus cache that a refresh changes, and the one way to change it: commit a record, then apply it.

    vectors    (n, dim) storage type   present values, which search scans
    originals  (n, dim) float32        encoded vectors; present where values are computed from them
    row_step   (n,) int32              optimizer step that encoded the row
    retrieved  (n,) int32              how often the row was retrieved
    tokens     (n,) int32              what encoding the row costs
    neighbors  (n, m) int32            the graph
    drift map                          composed moves, their steps, the fit's memory

Without originals, `vectors` holds the encoded vectors. With them, a value is a function of (original, row_step, drift map), so applying
a record again, after a crash and over a half-applied one, gives the same bytes.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from search_r3_mteb.evaluation.vector_storage import numpy_dtype, pack
from train.cache_files import CacheFolder, Record, create_arrays
from train.cache_settings import CacheSettings
from train.drift_map import DriftMap

Rows = Int[np.ndarray, " rows"]
Vectors = Float[np.ndarray, "rows dim"]

_MAPPED_AT_ONCE = 32768


@dataclass
class CacheState:
    """The arrays of an open folder with the scalars that go with them. Only a process whose folder is writable writes arrays."""

    folder: CacheFolder
    settings: CacheSettings
    drift: DriftMap
    step: int
    fingerprint: str
    digest: str
    budget_factor: float = 1.0

    @property
    def n(self) -> int:
        """Number of documents."""
        return len(self.folder.arrays["vectors"])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.folder.arrays["vectors"].shape[1])

    @property
    def vectors(self) -> Shaped[np.ndarray, "rows dim"]:
        """The values as they are stored."""
        return self.folder.arrays["vectors"]

    @property
    def row_step(self) -> Int[np.ndarray, " rows"]:
        """Step that encoded each row."""
        return self.folder.arrays["row_step"]

    def values(self, rows: Rows) -> Vectors:
        """Present values of rows in float32, whatever the storage."""
        if self.settings.storage != "float32":
            return self.drift.apply(self.folder.arrays["originals"][rows], self.row_step[rows])
        return np.array(self.vectors[rows], dtype=np.float32)

    def commit(self, record: Record) -> float:
        """Make the record part of the state, for good. Seconds that applying its drift map took."""
        if self.folder.writable:
            self.folder.append(record)
        self.apply([record])
        seconds = 0.0
        if "move" in record and self.folder.writable:
            started = time.perf_counter()
            self.map_rows()
            seconds = time.perf_counter() - started
        if self.folder.writable and self.folder.log_bytes > self.settings.log_megabytes << 20:
            self.checkpoint()
        return seconds

    def redo(self, records: Sequence[Record]) -> None:
        """Apply what a log holds, over maps that may hold some of it already."""
        self.apply(records)
        if any("move" in record for record in records):
            self.map_rows()

    def apply(self, records: Sequence[Record]) -> None:
        """Write the records' rows; their maps are composed, and applied to the other rows by `map_rows`."""
        arrays = self.folder.arrays
        for record in records:
            self.step = int(record["step"])
            if "budget_factor" in record:
                self.budget_factor = float(record["budget_factor"])
            if "move" in record:
                self.drift.extend(record["move"], record["gram"], record["keys"])
            if self.folder.writable:
                rows = record["rows"]
                arrays["vectors"][rows] = pack(record["vectors"], self.settings.storage)
                if "originals" in arrays:
                    arrays["originals"][rows] = record["vectors"]
                arrays["row_step"][rows] = self.step
                arrays["neighbors"][rows] = record["edges"]
                arrays["retrieved"][record["retrieved_rows"]] = record["retrieved"]

    def map_rows(self) -> None:
        """Compute the value of every row that the drift map concerns from its encoded original: linear in n."""
        vectors, originals = self.vectors, self.folder.arrays["originals"]
        for start in range(0, self.n, _MAPPED_AT_ONCE):
            steps = np.asarray(self.row_step[start : start + _MAPPED_AT_ONCE])
            mapped = np.flatnonzero(self.drift.is_mapped(steps))
            if len(mapped) == len(steps):
                rows: Any = slice(start, start + len(steps))
            else:
                rows, steps = mapped + start, steps[mapped]
            vectors[rows] = pack(self.drift.apply(originals[rows], steps), self.settings.storage)

    def checkpoint(self, fingerprint: str | None = None) -> None:
        """Fold the log into the state that the manifest names."""
        if fingerprint is not None:
            self.fingerprint = fingerprint
        scalars = {
            "step": self.step,
            "fingerprint": self.fingerprint,
            "texts": self.digest,
            "n": self.n,
            "dim": self.dim,
            "budget_factor": self.budget_factor,
            "settings": asdict(self.settings),
        }
        maps = {"map_keys": self.drift.keys, "map_composed": self.drift.composed, "map_gram": self.drift.gram}
        self.folder.checkpoint(scalars, maps)


def new_state(path: Path, settings: CacheSettings, n: int, dim: int, m: int) -> CacheState:
    """An empty state beside whatever `path` holds; its first `checkpoint` makes it the one."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "vectors": ((n, dim), numpy_dtype(settings.storage)),
        "row_step": ((n,), np.dtype(np.int32)),
        "retrieved": ((n,), np.dtype(np.int32)),
        "tokens": ((n,), np.dtype(np.int32)),
        "neighbors": ((n, m), np.dtype(np.int32)),
    }
    if settings.originals:
        shapes["originals"] = ((n, dim), np.dtype(np.float32))
    folder = create_arrays(path, shapes, durable=settings.durable)
    return CacheState(folder, settings, drift_map(settings, dim), step=0, fingerprint="", digest="")


def opened_state(folder: CacheFolder, settings: CacheSettings) -> CacheState:
    """The state that the folder's manifest describes."""
    arrays, scalars = folder.arrays, folder.scalars
    drift = drift_map(settings, int(scalars["dim"]))
    drift.keys, drift.composed, drift.gram = arrays["map_keys"], arrays["map_composed"], arrays["map_gram"]
    return CacheState(
        folder=folder,
        settings=settings,
        drift=drift,
        step=int(scalars["step"]),
        fingerprint=scalars["fingerprint"],
        digest=scalars["texts"],
        budget_factor=float(scalars["budget_factor"]),
    )


def drift_map(settings: CacheSettings, dim: int) -> DriftMap:
    """A drift map that has seen nothing."""
    return DriftMap(dim, ridge=settings.map_ridge, memory=settings.map_memory, max_maps=settings.max_maps)


def checked_settings(folder: CacheFolder, settings: CacheSettings | None) -> CacheSettings:
    """The settings to go on with: those saved, or `settings` where they fit the arrays that are there. ValueError otherwise."""
    saved = CacheSettings(**folder.scalars["settings"])
    if settings is None:
        return saved
    if settings.storage != saved.storage or settings.neighbors != saved.neighbors:
        raise ValueError(
            f"The cache in {folder.path} was built with storage {saved.storage!r} and {saved.neighbors} neighbours, the settings "
            f"say {settings.storage!r} and {settings.neighbors}. Keep them, or build the cache again."
        )
    if settings.needs_originals and "originals" not in folder.arrays:
        raise ValueError(
            f"Policy {settings.policy!r} computes values from encoded originals, which the cache in {folder.path} does not hold: "
            f"it was built for policy {saved.policy!r}. Build it with keep_originals=True."
        )
    return settings
