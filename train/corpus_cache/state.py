"""The state of a corpus cache: all that a refresh changes. A change is committed as a record, then applied.

    vectors    (n, dim) storage type   present values, which search scans
    originals  (n, dim) float32        encoded vectors; present where values are computed from them
    row_step   (n,) int32              optimizer step that encoded the row
    retrieved  (n,) int32              how often the row was retrieved
    tokens     (n,) int32              what encoding the row costs
    neighbors  (n, m) int32            the graph
    drift map                          composed moves, their steps, the fit's memory

Without originals, `vectors` holds the encoded vectors. With them, a value is a function of (original, row_step, drift
map), so applying a record again, after a crash and over a half-applied one, gives the same bytes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from search_r3_mteb.search.arrays import RowNumbers, Vectors
from search_r3_mteb.search.exact import Found, exact_search
from search_r3_mteb.search.products import as_tensor
from search_r3_mteb.search.storage import numpy_dtype, pack
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.drift_map import DriftMap
from train.corpus_cache.files import CacheFolder, ChangeRecord, create_arrays, open_folder
from train.corpus_cache.neighbor_graph import build_graph, columns
from train.corpus_cache.texts import CorpusTexts, Encode, counted_once, encoded_share, on_all
from train.processes.replicas import Replicas

_MAPPED_BYTES = 8 << 20


@dataclass(frozen=True)
class Origin:
    """The weights that encoded a state, by name and optimizer step, and the seed of policies, audits and graph."""

    fingerprint: str = ""
    step: int = 0
    seed: int = 0


@dataclass(frozen=True)
class DeviceCopies:
    """A cache's matrices on a device: the values, and the originals that they are computed from, where it has them."""

    values: Any
    originals: Any

    @classmethod
    def of(cls, arrays: Mapping[str, Any], device: Any, settings: CorpusCacheSettings) -> "DeviceCopies":
        """Values first, then originals stay on the device as far as `device_gigabytes` reaches."""
        from search_r3_mteb.search.device_rows import DeviceRows  # torch

        block, left = settings.block_megabytes << 20, int(settings.device_gigabytes * 1e9)
        values = DeviceRows(arrays["vectors"], device, block_bytes=block, resident_bytes=left)
        if "originals" not in arrays:
            return cls(values, None)
        left -= values.resident_bytes
        return cls(values, DeviceRows(arrays["originals"], device, block_bytes=block, resident_bytes=left))

    def map_rows(self, drift: DriftMap, row_step: Int[np.ndarray, " rows"]) -> None:
        """`CacheState.map_rows` on the device, into the host's values."""
        for start, block in self.originals.blocks():
            steps = np.asarray(row_step[start : start + len(block)])
            if drift.is_mapped(steps).any():
                self.values.write(start, drift.apply_tensor(block, steps).to(self.values.type))
        self.values.finish()

    def values_of(self, rows: RowNumbers, drift: DriftMap, row_step: Int[np.ndarray, " rows"]) -> Any:
        """Present float32 values of rows, a tensor on the device."""
        return drift.apply_tensor(self.originals.take(rows), np.asarray(row_step[rows]))

    def changed(self, rows: RowNumbers) -> None:
        """These rows were encoded again."""
        for copy in (self.values, self.originals):
            if copy is not None:
                copy.changed(rows)

    def changed_values(self) -> None:
        """Every value may have moved."""
        self.values.changed()


@dataclass
class CacheState:
    """The arrays of an open folder and their scalars. Only a process whose folder is writable writes arrays."""

    folder: CacheFolder
    settings: CorpusCacheSettings
    drift: DriftMap
    step: int
    fingerprint: str
    digest: str
    seed: int
    budget_factor: float = 1.0
    device: DeviceCopies | None = None
    """Where blocks are searched and moved; None: here, with numpy."""

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

    def values(self, rows: RowNumbers) -> Vectors:
        """Present values of rows in float32, whatever the storage."""
        if self.settings.storage != "float32" and self.device is not None:
            found: Vectors = self.device.values_of(rows, self.drift, self.row_step).cpu().numpy()
            return found
        if self.settings.storage != "float32":
            return self.drift.apply(self.folder.arrays["originals"][rows], self.row_step[rows])
        return np.array(self.vectors[rows], dtype=np.float32)

    def search(self, queries: Vectors, k: int) -> Found:
        """The `k` most similar rows of each query, over all rows; the best are scored from float32 vectors."""
        rounded = self.settings.storage != "float32"
        if self.device is None:
            return exact_search(queries, self.vectors, k, exact_rows=self.values if rounded else None)
        from search_r3_mteb.search.device_search import device_search  # torch

        of_rows = partial(self.device.values_of, drift=self.drift, row_step=self.row_step) if rounded else None
        return device_search(queries, self.device.values, k, exact_rows=of_rows)

    def commit(self, record: ChangeRecord) -> float:
        """Make the record part of the state, permanently; the seconds that applying its drift map took."""
        if self.folder.writable:
            self.folder.append(record)
        self.apply([record])
        seconds = 0.0
        if "move" in record and self.folder.writable:
            started = time.perf_counter()
            self.map_rows()
            seconds = time.perf_counter() - started
        if self.folder.writable and self.folder.log_bytes > self.settings.log_megabytes << 20:
            # The whole matrix would go to the disk every few steps: at a million documents, gigabytes.
            self.checkpoint(flush=self.folder.durable)
        return seconds

    def redo(self, records: Sequence[ChangeRecord]) -> None:
        """Apply the records of a log, over arrays that may hold some of them already."""
        self.apply(records)
        if any("move" in record for record in records):
            self.map_rows()

    def apply(self, records: Sequence[ChangeRecord]) -> None:
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
                if self.device is not None:
                    self.device.changed(rows)

    def followed(self, rows: RowNumbers, *, moved: bool) -> None:
        """Another process has written `rows`, and the others too if they `moved`: read again what the device keeps."""
        if self.device is not None and not self.folder.writable:
            self.device.changed(rows)
            if moved:
                self.device.changed_values()

    def put_on(self, device: Any) -> None:
        """Search and map on this device from now on; None: here, with numpy."""
        self.drift.device = device
        self.device = None if device is None else DeviceCopies.of(self.folder.arrays, device, self.settings)

    def map_rows(self) -> None:
        """Compute the value of every row that the drift map concerns from its encoded original: linear in n."""
        if self.device is not None:
            self.device.map_rows(self.drift, self.row_step)
            return
        vectors, originals = self.vectors, self.folder.arrays["originals"]
        for start in range(0, self.n, max(1, _MAPPED_BYTES // (4 * self.dim))):
            rows = slice(start, min(self.n, start + max(1, _MAPPED_BYTES // (4 * self.dim))))
            steps = np.asarray(self.row_step[rows])
            if not self.drift.is_mapped(steps).any():
                continue
            # Of a row without a map, the packed original is the value: the block is written as a whole.
            if self.settings.storage == "float32":
                vectors[rows] = self.drift.apply(originals[rows], steps)
            else:
                stored = as_tensor(vectors[rows])
                stored.copy_(self.drift.apply_tensor(as_tensor(originals[rows]), steps))

    def checkpoint(self, fingerprint: str | None = None, *, flush: bool = True) -> None:
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
            "seed": self.seed,
            "settings": self.settings.model_dump(),
        }
        maps = {"map_keys": self.drift.keys, "map_composed": self.drift.composed, "map_gram": self.drift.gram}
        self.folder.checkpoint(scalars, maps, flush=flush)


def new_state(path: Path, settings: CorpusCacheSettings, n: int, dim: int, m: int, seed: int) -> CacheState:
    """An empty state beside the contents of `path`; its first `checkpoint` makes it the folder's state."""
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
    return CacheState(folder, settings, DriftMap(dim, settings), step=0, fingerprint="", digest="", seed=seed)


def opened_state(folder: CacheFolder, settings: CorpusCacheSettings | None) -> CacheState:
    """The state that the folder's manifest describes, under `settings` where they fit it (see `checked_settings`)."""
    arrays, scalars, settings = folder.arrays, folder.scalars, checked_settings(folder, settings)
    drift = DriftMap(int(scalars["dim"]), settings)
    drift.keys, drift.composed, drift.gram = arrays["map_keys"], arrays["map_composed"], arrays["map_gram"]
    return CacheState(
        folder=folder,
        settings=settings,
        drift=drift,
        step=int(scalars["step"]),
        fingerprint=scalars["fingerprint"],
        digest=scalars["texts"],
        seed=int(scalars["seed"]),
        budget_factor=float(scalars["budget_factor"]),
    )


def loaded_state(
    source: Path, settings: CorpusCacheSettings | None, working: Path | None, replicas: Replicas
) -> CacheState:
    """The state in `source` after its last complete record; with `working`, a copy there that is written instead."""
    path = Path(working or source)
    if not replicas.writes:
        replicas.barrier()  # the writer completes the work of a killed process before the others open the folder
        return opened_state(open_folder(path, writable=False)[0], settings)
    if working is not None:
        open_folder(source, writable=False)[0].copy_to(path)
    folder, records = open_folder(path)
    state = opened_state(folder, settings)
    folder.durable = state.settings.durable
    if records:
        state.redo(records)
        state.checkpoint()
    replicas.barrier()
    return state


def encoded_state(
    path: Path,
    texts: CorpusTexts,
    encode: Encode,
    settings: CorpusCacheSettings,
    replicas: Replicas,
    origin: Origin,
    kept: tuple[Int[np.ndarray, " rows"], float] | None = None,
) -> CacheState:
    """Encode every document into the folder's new state; `kept` are counts of retrievals and the budget's factor."""
    state = _written_state(path, texts, encode, settings, replicas, origin)
    if state is not None:
        if kept is not None:
            state.folder.arrays["retrieved"][:], state.budget_factor = kept
        state.checkpoint(origin.fingerprint)
    replicas.barrier()
    return opened_state(open_folder(path, writable=False)[0], settings) if state is None else state


def _written_state(
    path: Path, texts: CorpusTexts, encode: Encode, settings: CorpusCacheSettings, replicas: Replicas, origin: Origin
) -> CacheState | None:
    """New arrays under `path` with every document's vector, still without a manifest; None where this process does not
    write.

    Documents go to `encode` in row order, `encode_rows` at a time, whatever the number of processes: the same vectors
    bit for bit.
    """
    counts = counted_once(texts, path, replicas)
    n = len(texts)
    state: CacheState | None = None
    dim: int | None = None
    for start in range(0, n, settings.encode_rows * replicas.size):
        own = np.arange(n)[start + replicas.rank * settings.encode_rows :][: settings.encode_rows]
        share = partial(encoded_share, texts, own, own, encode, dim)
        for part in on_all(share, replicas):
            if not len(part["at"]):
                continue
            dim = int(part["vectors"].shape[1])
            if replicas.writes:
                if state is None:
                    state = new_state(path, settings, n, dim, columns(n, settings.neighbors), origin.seed)
                arrays = state.folder.arrays
                arrays["vectors"][part["at"]] = pack(part["vectors"], settings.storage)
                if "originals" in arrays:
                    arrays["originals"][part["at"]] = part["vectors"]
    if state is not None:
        arrays = state.folder.arrays
        arrays["tokens"][:] = counts
        arrays["row_step"][:] = origin.step
        build_graph(arrays["vectors"], arrays["neighbors"], seed=origin.seed)
        state.step, state.digest = origin.step, texts.digest()
    return state


def checked_settings(folder: CacheFolder, settings: CorpusCacheSettings | None) -> CorpusCacheSettings:
    """The settings to continue with: the saved ones, or `settings` where they fit the arrays. ValueError otherwise."""
    saved = CorpusCacheSettings(**folder.scalars["settings"])
    if settings is None:
        return saved
    if settings.storage != saved.storage or settings.neighbors != saved.neighbors:
        raise ValueError(
            f"The cache in {folder.path} was built with storage {saved.storage!r} and {saved.neighbors} neighbours, "
            f"the settings say {settings.storage!r} and {settings.neighbors}. Keep them, or build the cache again."
        )
    if settings.needs_originals and "originals" not in folder.arrays:
        raise ValueError(
            f"Policy {settings.policy!r} computes values from encoded originals, which the cache in {folder.path} does "
            f"not hold: it was built for policy {saved.policy!r}. Build it with keep_originals=True."
        )
    return settings


def check_origin(scalars: Mapping[str, Any], folder: Path, fingerprint: str, dim: int, texts: CorpusTexts) -> None:
    """ValueError unless the cache was made by these weights, for these documents."""
    if scalars["dim"] != dim:
        raise ValueError(
            f"The cache in {folder} holds vectors of dimension {scalars['dim']}, the model gives {dim}: it was built "
            "by another model. Build it again with this one."
        )
    if scalars["fingerprint"] != fingerprint:
        raise ValueError(
            f"The cache in {folder} was saved with weights {scalars['fingerprint']!r}, the model's are "
            f"{fingerprint!r}: its vectors are those of other weights. Load the weights it was saved with, or rebuild."
        )
    if scalars["n"] != len(texts) or scalars["texts"] != texts.digest():
        raise ValueError(
            f"The cache in {folder} was built for {scalars['n']} documents that are not the {len(texts)} given ones "
            "(hash of texts and ids): its rows would name other documents. Give the same corpus, or build it again."
        )
