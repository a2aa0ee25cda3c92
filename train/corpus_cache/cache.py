"""The corpus cache: document vectors that stay true enough for the reward, at a small and bounded cost.

In stage 2 the weights change at every step, and every document's vector with them. `refresh` re-encodes the rows that a
batch touched, within a budget of tokens, and moves all other rows by a map fitted on these (`drift_map`). Each row
knows the step that encoded it, an audit measures the error of the rest, and a killed process loses at most the refresh
in flight (`files`).

    cache = CorpusCache.build(texts, encode, folder=run / "cache", fingerprint=...)
    found = cache.search(query_vectors, k)                                  # exact, in blocks
    report = cache.refresh(Hits(query_vectors, found.rows, positives), encode, budget=65536)
    cache.audit(256, encode)                                                # every N steps
    cache.save(checkpoint / "cache", fingerprint=...)                       # a snapshot, beside the weights

`encode` is any function from a list of texts to (len, dim) vectors under the present weights.

Departures from the paper: its "selective local graph refresh" is public in these words only. The graph, the ranking,
the background sweep, the audit and the drift map are ours.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from search_r3_mteb.search.arrays import RowNumbers, Vectors
from search_r3_mteb.search.exact import Found, checked_queries
from search_r3_mteb.search.ivf import IvfIndex, best_of
from search_r3_mteb.search.storage import unpack
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.audit import Audit, Probes, compare, grown_budget, sample_rows
from train.corpus_cache.files import ChangeRecord, read_manifest
from train.corpus_cache.neighbor_graph import Neighbors, repaired_edges
from train.corpus_cache.refresh_policies import CorpusRows, Hits, RefreshReport, RetrievalCounts, policy_of
from train.corpus_cache.row_ages import Age, RowAges
from train.corpus_cache.state import CacheState, Origin, check_origin, encoded_state, loaded_state
from train.corpus_cache.texts import CorpusTexts, Encode, encode_shared
from train.disk.token_ids import CorpusTokenizer
from train.processes.replicas import Replicas, on_all

CorpusLike = CorpusTexts | Mapping[str, Any] | Sequence[Any]


class CorpusCache:
    """Vectors (n, dim), the step that encoded each, and a neighbour graph. Made by `build` or `load`."""

    def __init__(self, state: CacheState, texts: CorpusTexts, replicas: Replicas) -> None:
        self.settings = state.settings
        self.texts = texts
        self.policy = policy_of(state.settings)
        self._state = state
        self._replicas = replicas
        self._device: Any = None
        self._ages = RowAges(state.row_step)
        self._probes: Probes | None = None
        self._index: IvfIndex | None = None

    # ---------------------------------------------------------------------------------------------- build, save, load

    @classmethod
    def build(
        cls,
        corpus: CorpusLike,
        encode: Encode,
        *,
        folder: Path,
        settings: CorpusCacheSettings | None = None,
        fingerprint: str = "",
        step: int = 0,
        seed: int = 0,
        replicas: Replicas | None = None,
    ) -> "CorpusCache":
        """Encode the whole corpus (texts, documents, a BEIR corpus or `CorpusTexts`) into `folder`, as of step `step`.

        `fingerprint` names the weights; `seed` is that of the random policies, of audits and of the graph. A cache that
        the folder held before stays readable until the new one is complete. Raises ValueError for duplicate ids, empty
        documents, or vectors that are not finite, zero or of changing dimension.
        """
        settings, replicas = settings or CorpusCacheSettings(), replicas or Replicas()
        texts = CorpusTexts.of(corpus).measured(replicas)
        state = encoded_state(Path(folder), texts, encode, settings, replicas, Origin(fingerprint, step, seed))
        return cls(state, texts, replicas)

    @classmethod
    def load(
        cls,
        folder: Path,
        corpus: CorpusLike,
        *,
        fingerprint: str,
        dim: int,
        settings: CorpusCacheSettings | None = None,
        working: Path | None = None,
        replicas: Replicas | None = None,
    ) -> "CorpusCache":
        """Open the cache in `folder` as of its last complete refresh, to continue there; with `working`, in a copy.

        `fingerprint` is that of the last `save` (or `build`), `dim` the model's, `corpus` the documents that were
        built. `settings` default to the saved ones. Raises FileNotFoundError where no finished cache is, ValueError for
        a cache of other weights, another dimension, other documents or another layout, and for damaged files.
        """
        replicas, source, texts = replicas or Replicas(), Path(folder), CorpusTexts.of(corpus)
        check_origin(read_manifest(source)["scalars"], source, fingerprint, dim, texts)
        if isinstance(texts.token_counts, CorpusTokenizer):
            texts = texts.measured(replicas)
        return cls(loaded_state(source, settings, working, replicas), texts, replicas)

    def on(self, device: Any) -> "CorpusCache":
        """Search and map on a torch device from now on (None: the processor, with numpy); returns the cache itself.

        The files stay the copy that counts: blocks travel to the device and back, and `device_gigabytes` of them stay.
        """
        self._device = device
        self._state.put_on(device)
        return self

    def save(self, folder: Path | None = None, *, fingerprint: str | None = None) -> None:
        """Fold the log of changes into the state; with `folder`, also write the state there, completely or not at all.

        `fingerprint` names the present weights; `load` asks for it. Without `folder`, load the cache's own folder.
        """
        self.snapshot(folder, fingerprint=fingerprint)
        self._replicas.barrier()

    def snapshot(self, folder: Path | None = None, *, fingerprint: str | None = None) -> None:
        """`save` without waiting for the other processes: for a caller for whom they wait already."""
        if self._replicas.writes:
            self._state.checkpoint(fingerprint)
            if folder is not None:
                self._state.folder.copy_to(Path(folder))

    # ------------------------------------------------------------------------------------------------------ contents

    def __len__(self) -> int:
        return self._state.n

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._state.dim

    @property
    def step(self) -> int:
        """Optimizer step of the last refresh."""
        return self._state.step

    @property
    def budget_factor(self) -> float:
        """Factor by which audits have made the budget grow."""
        return self._state.budget_factor

    @property
    def vectors(self) -> Shaped[np.ndarray, "rows dim"]:
        """All values as they are stored: a memory map, to be read only."""
        return _read_only(self._state.vectors)

    @property
    def row_step(self) -> Int[np.ndarray, " rows"]:
        """The optimizer step that encoded each row."""
        return _read_only(self._state.row_step)

    @property
    def mapped(self) -> Any:
        """Which rows the drift map has moved since they were encoded, (n,) bool; the others are as encoded."""
        return self._state.drift.is_mapped(np.asarray(self._state.row_step))

    @property
    def neighbors(self) -> Neighbors:
        """The neighbour graph (n, m), -1 where there are fewer."""
        return _read_only(self._state.folder.arrays["neighbors"])

    def values(self, rows: RowNumbers) -> Vectors:
        """Present unit vectors of rows, float32 (rows, dim): constants for a loss."""
        return self._state.values(rows)

    def originals(self, rows: RowNumbers) -> Vectors:
        """The vectors of rows as they were last encoded, before any map, float32 (rows, dim)."""
        arrays = self._state.folder.arrays
        return unpack(np.array(arrays.get("originals", arrays["vectors"])[rows]))

    def rows_of(self, ids: Sequence[str]) -> RowNumbers:
        """Rows of document ids. ValueError for an id that is not in the corpus."""
        return self.texts.rows_of(ids)

    def age(self, step: int | None = None) -> Age:
        """How old the rows are at `step` (default: the last refresh). Documents of frozen weights do not age."""
        if self.policy.is_exact:
            return Age(mean=0.0, median=0, p90=0, maximum=0, mapped_share=0.0)
        keys = self._state.drift.keys
        return self._ages.age(self.step if step is None else step, int(keys[-1]) if len(keys) else None)

    def search(self, vectors: Vectors, k: int, exact: bool = True) -> Found:
        """The `k` most similar documents of each unit vector, best first; all where the corpus has fewer than `k`.

        `exact=True` scans every row in blocks; `exact=False` asks a FAISS IVF index, which is built in memory at the
        first such search. Both score the best rows from float32 vectors. Row -1 with score -inf fills the places for
        which the IVF index found no document.
        """
        if exact:
            return self._state.search(vectors, k)
        queries = checked_queries(vectors, self.dim)
        if k < 1:
            raise ValueError(f"k={k}: at least one row must be asked for.")
        if self._index is None:
            self._index = IvfIndex(self._state.vectors, self.settings.storage, max_moves=self.settings.index_maps)
        candidates = self._index.candidates(queries, min(4 * k + 32, len(self)))
        return best_of(queries, candidates, min(k, len(self)), self.values)

    # -------------------------------------------------------------------------------------------------------- refresh

    def refresh(
        self, hits: Hits, encode: Encode, budget: int, *, step: int | None = None, given: RowNumbers | None = None
    ) -> RefreshReport:
        """Re-encode the rows that the policy selects, within `budget` document tokens; the drift map moves the others.

        `hits` are this process's rollouts; those of the other processes are added. `step` is the optimizer step of the
        present weights (default: one more than the last). The budget is multiplied by the factor that audits have set;
        0 changes nothing at all. The `full` policy re-encodes everything for any other budget. If `encode` fails,
        nothing has changed. `given` are rows that `encode` gives at no cost (positives that the loss has just encoded):
        the local policies refresh them in addition to the budget.
        Raises ValueError for hits of another corpus, a negative budget, or a step before the last one.
        """
        started = time.perf_counter()
        step = self.step + 1 if step is None else step
        if budget < 0 or step < self.step:
            raise ValueError(
                f"budget={budget}, step={step}: a budget counts tokens, and steps do not go back from {self.step}."
            )
        hits.check(len(self))
        if budget == 0:
            return RefreshReport(step=self.step, rows=np.zeros(0, np.int64), seconds=time.perf_counter() - started)
        budget = int(budget * self.budget_factor)
        timed = _Timed(encode)
        counts = RetrievalCounts.merged(self._replicas.gather(RetrievalCounts.of(hits).arrays()))
        corpus = self._corpus_rows(step, self._shared(given))
        rows = self.policy.select(corpus, counts, budget)
        tokens = corpus.tokens(rows[~np.isin(rows, corpus.given)])  # given rows are refreshed beside the budget
        if self.policy.rebuilds:
            self.rebuild(timed, step=step)
            map_seconds = 0.0
        else:
            map_seconds = self._refresh_rows(rows, timed, counts, step)
        self._probes = Probes.of(hits) if len(hits.queries) else self._probes
        return RefreshReport(
            step=step,
            rows=rows,
            tokens=tokens,
            budget=budget,
            share=len(rows) / len(self),
            seconds=time.perf_counter() - started,
            encode_seconds=timed.seconds,
            map_seconds=map_seconds,
            map_seconds_per_row=map_seconds / len(self),
        )

    def rebuild(self, encode: Encode, *, step: int | None = None) -> None:
        """Encode every document again: the cache that `build` would make with these weights, bit for bit.

        Until it is complete the folder holds the old state. Counts of retrievals and the budget's factor are kept.
        """
        old, self.texts = self._state, self.texts.measured(self._replicas)
        retrieved = np.array(old.folder.arrays["retrieved"])
        state = encoded_state(
            old.folder.path,
            self.texts,
            encode,
            self.settings,
            self._replicas,
            Origin(old.fingerprint, old.step if step is None else step, old.seed),
            kept=(retrieved, old.budget_factor),
        )
        self._state, self._ages, self._index = state, RowAges(state.row_step), None
        old.put_on(None)
        state.put_on(self._device)

    def audit(self, n: int, encode: Encode, *, step: int | None = None) -> Audit:
        """Encode a sample of `n` rows and report the cache's error on it (see `train.corpus_cache.audit`).

        Vectors do not change. Above `error_bound` the budget of the next refreshes grows, up to `max_budget_factor`,
        where the log advises a rebuild; below half of the bound it shrinks again. `step` is that of the present weights
        (default: that of the last refresh).
        """
        step = self.step if step is None else step
        positives = np.concatenate(self._probes.positives) if self._probes is not None else None
        rows = sample_rows(len(self), n, self._shared(positives), (self._state.seed, step, 1))
        tokens = np.asarray(self._state.folder.arrays["tokens"][rows])
        fresh = encode_shared(self.texts, rows, tokens, encode, self.dim, self._replicas)
        found = compare(self.values(rows), fresh, rows, self._probes)
        # Every process has its own rollouts: they must agree on the budget, so the errors are averaged.
        drift, recall, error = np.mean(
            [part["found"] for part in self._replicas.gather({"found": np.array(found)})], axis=0
        )
        factor, advised = grown_budget(float(error), step, self.budget_factor, self.settings)
        if factor != self.budget_factor:
            no_rows, no_hits = np.zeros(0, np.int64), RetrievalCounts.none()
            self._commit(self._record(no_rows, fresh[:0], no_hits, self.step, budget_factor=factor))
        return Audit(
            step=step,
            rows=len(rows),
            queries="rollouts" if self._probes is not None else "documents",
            cosine_drift=float(drift),
            recall_at_10=float(recall),
            reward_error=float(error),
            budget_factor=factor,
            rebuild_advised=advised,
        )

    # -------------------------------------------------------------------------------------------------------- details

    def _refresh_rows(self, rows: RowNumbers, encode: Encode, counts: RetrievalCounts, step: int) -> float:
        """Encode the rows, commit and apply; the seconds that the drift map took."""
        tokens = np.asarray(self._state.folder.arrays["tokens"][rows])
        fresh = encode_shared(self.texts, rows, tokens, encode, self.dim, self._replicas)
        before = np.array(self._state.row_step[rows])
        started = time.perf_counter()
        record = self._record(rows, fresh, counts, step)
        move: ChangeRecord = self._move(rows, fresh, step) if self.policy.uses_map and len(rows) else {}
        fitting = time.perf_counter() - started if move else 0.0
        self._replicas.barrier()  # from here on no process reads the old values
        mapping = self._commit(record | move)
        self._state.followed(rows, moved=bool(move))
        self._ages.move(rows, before, step)
        if self._index is not None and not self._index.update(rows, fresh, others_moved=bool(move)):
            self._index = None
        return fitting + mapping

    def _commit(self, record: ChangeRecord) -> float:
        """Commit on every process, and wait until the writer has written; the seconds that the drift map took."""
        done = on_all(
            lambda: {"seconds": np.array(self._state.commit(record))}, self._replicas, "write its refresh to the cache"
        )
        return float(done[self._replicas.rank]["seconds"])

    def _record(
        self, rows: RowNumbers, fresh: Vectors, counts: RetrievalCounts, step: int, budget_factor: float | None = None
    ) -> ChangeRecord:
        """The changes of a refresh, as values."""
        arrays = self._state.folder.arrays
        order = np.argsort(rows)

        def vectors_of(wanted: RowNumbers) -> Vectors:
            """Fresh vectors of refreshed rows, present values of others."""
            vectors = unpack(np.array(self._state.vectors[wanted]))
            place = np.searchsorted(rows, wanted, sorter=order)
            place = order[np.minimum(place, len(rows) - 1)]
            is_fresh = rows[place] == wanted
            vectors[is_fresh] = fresh[place[is_fresh]]
            return vectors

        record: ChangeRecord = {
            "step": np.array(step),
            "rows": rows,
            "vectors": fresh,
            "edges": repaired_edges(rows, arrays["neighbors"], vectors_of),
            "retrieved_rows": counts.rows,
            "retrieved": np.asarray(arrays["retrieved"][counts.rows]) + counts.retrieved.astype(np.int32),
        }
        return record if budget_factor is None else record | {"budget_factor": np.array(budget_factor)}

    def _move(self, rows: RowNumbers, fresh: Vectors, step: int) -> ChangeRecord:
        """The drift map's fit on the refreshed rows."""
        drift = self._state.drift
        move, gram = drift.fit(self.values(rows), fresh)
        return {"move": move, "gram": gram, "keys": drift.keys_after(step, self._ages.encoded_by)}

    def _shared(self, rows: RowNumbers | None) -> RowNumbers:
        """The rows of all processes, each once, ascending; None is not a row."""
        own = np.zeros(0, np.int64) if rows is None else rows
        return np.unique(np.concatenate([part["rows"] for part in self._replicas.gather({"rows": own})]))

    def _corpus_rows(self, step: int, given: RowNumbers) -> CorpusRows:
        arrays = self._state.folder.arrays
        return CorpusRows(
            n=len(self),
            step=step,
            row_step=self._state.row_step,
            token_counts=arrays["tokens"],
            retrieved=arrays["retrieved"],
            neighbors=arrays["neighbors"],
            ages=self._ages,
            hops=self.settings.hops,
            sweep_share=self.settings.sweep_share,
            seed=self._state.seed,
            given=given,
        )


class _Timed:
    """An encoder that knows how long it took."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self.seconds = 0.0

    def __call__(self, texts: list[str], *token_ids: Any) -> Any:
        started = time.perf_counter()
        vectors = self._encode(texts, *token_ids)
        self.seconds += time.perf_counter() - started
        return vectors


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view
