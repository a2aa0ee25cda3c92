"""The state of a corpus cache: all that a refresh changes. A change is committed as a record, then applied.

    vectors    (n, dim) storage type   present values, which search scans
    originals  (n, dim) float32        encoded vectors; present where values are computed from them
    row_step   (n,) int32              optimizer step that encoded the row
    retrieved  (n,) int32              how often the row was retrieved
    tokens     (n,) int32              what encoding the row costs
    neighbors  (n, m) int32            the graph
    drift map                          composed moves, their steps, the fit's memory

Without originals, `vectors` holds the encoded vectors. With them, a value is a function of (original, row_step, drift
map), so applying a record again, after a crash and over a half-applied one, gives the same bytes; a damaged value is
computed again, while the damage of any other file is an error that names it.
"""

import logging
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
from train.corpus_cache.files import MANIFEST, CacheFolder, ChangeRecord, create_arrays, open_folder
from train.corpus_cache.neighbor_graph import build_graph, columns
from train.corpus_cache.texts import ENCODE, CorpusTexts, Encode, encoded_share
from train.disk.row_sums import changed_sum, whole_sum
from train.processes.replicas import Arrays, Replicas, on_all

_MAPPED_BYTES = 8 << 20
_SUM = "sum_"
_log = logging.getLogger(__name__)


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
            record = record | self._sums_after(record)
            self.folder.append(record)
        self.apply([record])
        seconds = 0.0
        if "move" in record and self.folder.writable:
            started = time.perf_counter()
            self.map_rows()
            seconds = time.perf_counter() - started
        if self.folder.writable and self.folder.log_bytes > self.settings.log_megabytes << 20:
            # The whole matrix would go to the disk every few steps: at a million documents, gigabytes.
            self.checkpoint(flush=self.folder.durable, fold=True)
        return seconds

    def restore(self, records: Sequence[ChangeRecord], named: CacheFolder) -> bool:
        """Apply the records of a log, over maps that may hold some of them already, and compare the maps' checksums.

        Values that are computed from originals are computed again where they may have changed. Returns whether anything
        may have. Raises ValueError for a damaged file, by the name that it has in the folder `named`.
        """
        folder = self.folder
        self.apply(records)
        for name in sorted(folder.maps.keys() - self._computed):
            if not self._intact(name):
                log = named.files["changes"]
                raise named.damaged(name, f"it does not match its checksum in {MANIFEST} and {log}, if these are whole")
        known = [name for name in self._computed if name in folder.sums]
        damaged = [name for name in self._computed if name not in known or not self._intact(name)]
        if damaged:
            if damaged[0] in known:
                file = named.path / named.files[damaged[0]]
                _log.warning("%s does not match its checksum: its values are computed again from the originals.", file)
            folder.sums.pop(damaged[0], None)
            self.map_rows(everything=True)
        return bool(records or damaged)

    def _intact(self, name: str) -> bool:
        return whole_sum(self.folder.arrays[name]) == self.folder.sums[name]

    @property
    def _computed(self) -> tuple[str, ...]:
        """Arrays that are a function of the others."""
        return ("vectors",) if "originals" in self.folder.arrays else ()

    def _changes(self, record: ChangeRecord) -> dict[str, tuple[RowNumbers, Any]]:
        """Rows and new values by array."""
        rows, arrays = record["rows"], self.folder.arrays
        changes: dict[str, tuple[RowNumbers, Any]] = {
            "vectors": (rows, pack(record["vectors"], self.settings.storage)),
            "row_step": (rows, np.full(len(rows), int(record["step"]), np.int32)),
            "neighbors": (rows, record["edges"]),
            "retrieved": (record["retrieved_rows"], record["retrieved"]),
        }
        return changes | ({"originals": (rows, record["vectors"])} if "originals" in arrays else {})

    def _sums_after(self, record: ChangeRecord) -> ChangeRecord:
        """The checksums that the record's arrays will have, as further entries of it."""
        folder = self.folder
        return {
            _SUM + name: np.array(changed_sum(folder.sums[name], folder.arrays[name], *change), np.uint64)
            for name, change in self._changes(record).items()
            if name not in self._computed
        }

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
                for name, (rows, values) in self._changes(record).items():
                    arrays[name][rows] = values
                self.folder.sums |= {n.removeprefix(_SUM): int(record[n]) for n in record if n.startswith(_SUM)}
                for name in self._computed:
                    self.folder.sums.pop(name, None)
                if self.device is not None:
                    self.device.changed(record["rows"])

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

    def map_rows(self, *, everything: bool = False) -> None:
        """Compute the value of every row that the drift map concerns from its encoded original: linear in n.

        `everything`: also where all rows of a block are as encoded.
        """
        if self.device is not None:
            assert not everything, "a device maps what is not as encoded"
            self.device.map_rows(self.drift, self.row_step)
            return
        vectors, originals = self.vectors, self.folder.arrays["originals"]
        for start in range(0, self.n, max(1, _MAPPED_BYTES // (4 * self.dim))):
            rows = slice(start, min(self.n, start + max(1, _MAPPED_BYTES // (4 * self.dim))))
            steps = np.asarray(self.row_step[rows])
            if not everything and not self.drift.is_mapped(steps).any():
                continue
            # Of a row without a map, the packed original is the value: the block is written as a whole.
            if self.settings.storage == "float32":
                vectors[rows] = self.drift.apply(originals[rows], steps)
            else:
                stored = as_tensor(vectors[rows])
                stored.copy_(self.drift.apply_tensor(as_tensor(originals[rows]), steps))

    def checkpoint(self, fingerprint: str | None = None, *, flush: bool = True, fold: bool = False) -> None:
        """Fold the log into the state that the manifest names.

        `fold`: between refreshes, without a pass over the values: where they are computed, the next reader does it.
        """
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
        self.folder.checkpoint(scalars, maps, flush=flush, unsummed=self._computed if fold else ())


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
    written: list[CacheState] = []

    def open_as_writer() -> Arrays:
        if replicas.writes:
            written.append(_restored(source, settings, working))
        return {}

    # The writer completes the work of a killed process before the others open the folder.
    on_all(open_as_writer, replicas, "open the cache")
    return written[0] if written else opened_state(open_folder(path, writable=False)[0], settings)


def _restored(source: Path, settings: CorpusCacheSettings | None, working: Path | None) -> CacheState:
    named = open_folder(source, writable=False)[0] if working is not None else None
    if named is not None and working is not None:
        named.copy_to(working)
    folder, records = open_folder(Path(working or source))
    state = opened_state(folder, settings)
    folder.durable = state.settings.durable
    if state.restore(records, named or folder):
        state.checkpoint()
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

    def finish() -> Arrays:
        if state is not None:
            if kept is not None:
                state.folder.arrays["retrieved"][:], state.budget_factor = kept
            state.checkpoint(origin.fingerprint)
        return {}

    on_all(finish, replicas, "write the cache")
    return opened_state(open_folder(path, writable=False)[0], settings) if state is None else state


def _written_state(
    path: Path, texts: CorpusTexts, encode: Encode, settings: CorpusCacheSettings, replicas: Replicas, origin: Origin
) -> CacheState | None:
    """New arrays under `path` with every document's vector, still without a manifest; None where this process does not
    write.

    Documents go to `encode` in row order, `encode_rows` at a time, whatever the number of processes: the same vectors
    bit for bit.
    """
    counts = texts.count()
    n = len(texts)
    state: list[CacheState] = []
    dim: int | None = None

    def make(dim: int) -> Arrays:
        if replicas.writes:
            state.append(new_state(path, settings, n, dim, columns(n, settings.neighbors), origin.seed))
        return {}

    for start in range(0, n, settings.encode_rows * replicas.size):
        own = np.arange(n)[start + replicas.rank * settings.encode_rows :][: settings.encode_rows]
        share = partial(encoded_share, texts, own, own, encode, dim)
        parts = on_all(share, replicas, ENCODE)
        if dim is None:
            dim = int(parts[0]["vectors"].shape[1])
            on_all(partial(make, dim), replicas, "reserve the cache on its disk")
        for part in parts:
            if state and len(part["at"]):
                arrays = state[0].folder.arrays
                arrays["vectors"][part["at"]] = pack(part["vectors"], settings.storage)
                if "originals" in arrays:
                    arrays["originals"][part["at"]] = part["vectors"]
    if not state:
        return None
    arrays = state[0].folder.arrays
    arrays["tokens"][:] = counts
    arrays["row_step"][:] = origin.step
    build_graph(arrays["vectors"], arrays["neighbors"], seed=origin.seed)
    state[0].step, state[0].digest = origin.step, texts.digest()
    return state[0]


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
