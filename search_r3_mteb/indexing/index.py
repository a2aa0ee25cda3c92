"""SearchIndex: documents in a folder, found by questions that reason or do not."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.inputs import texts_of
from search_r3_mteb.encoder.setting_types import check_whole_number
from search_r3_mteb.encoder.settings import Mode
from search_r3_mteb.encoder.thoughts import Thought
from search_r3_mteb.indexing import writing
from search_r3_mteb.indexing.encoding import check_encoding, check_model, encoding_of, origin_of
from search_r3_mteb.indexing.results import Hit, SearchResult
from search_r3_mteb.indexing.settings import IndexSettings
from search_r3_mteb.indexing.snapshot import Snapshot, open_snapshot
from search_r3_mteb.indexing.state import IndexState, version_of
from search_r3_mteb.search.arrays import Vectors


class SearchIndex:
    """An index in a folder: `build` one, or `open` it, then `search`, `add` and `remove`; `len` is its documents.

        index = SearchIndex.build(documents, SearchR3Encoder("mini"), "my-index")
        [result] = index.search(["who wrote it?"], mode="reason", k=10)
        result.thought.text, result.hits[0].id

    Documents are embedded directly, queries after reasoning or directly: one index serves both modes. Other processes
    may change the index meanwhile; each search sees one complete state, the newest when it begins.
    """

    def __init__(self, folder: str | Path, encoder: SearchR3Encoder | None = None, *, verify: bool = True) -> None:
        """See `open`."""
        self.folder = Path(folder)
        self._verify, self._checked, self._lock = verify, set[str](), Lock()
        self._snapshot = open_snapshot(self.folder, self._checked, verify=verify)
        self._encoder: SearchR3Encoder | None = None
        self._twin: SearchR3Encoder | None = None  # the same model, in mode "direct"
        self._wanted: tuple[str | Path | None, dict[str, Any]] = (None, {})
        self._own = False  # whether the encoder was loaded as the index says, from where it says
        self._agreed: dict[str, Any] | None = None  # the encoding that the encoder was last compared with
        if encoder is not None:
            self._check(encoder)
            self._encoder = encoder

    @classmethod
    def build(
        cls,
        documents: Iterable[Any],
        encoder: SearchR3Encoder,
        folder: str | Path,
        *,
        model: str | Path | None = None,
        **settings: Any,
    ) -> "SearchIndex":
        """Embed `documents` and write them as a new index into `folder`; a killed build is resumed by the same call.

        Documents have `id`, `title` and `text`, as fields or keys; they are read once and never held as a whole.
        `settings` are those of `IndexSettings`. `model` is where `encoder` was loaded from, if that is a folder, so
        that `open` can load it again. Raises FileExistsError for a folder that is not empty, ValueError for an id
        that comes twice and for no documents, TypeError for what is not a document, OccupiedError where another process
        writes.
        """
        chosen = IndexSettings.from_keywords(settings)
        state = IndexState(encoding_of(encoder), origin_of(encoder, model), chosen)
        place = Path(folder)
        writing.write_new(place, state, writing.embedded(place, documents, encoder, lambda rows: None))
        return cls(folder, encoder, verify=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: SearchR3Encoder | str | Path | None = None,
        *,
        verify: bool = True,
        **settings: Any,
    ) -> "SearchIndex":
        """An index that is there, to be searched with `encoder`, with a model of that name, or with the one it names.

        `settings` are those of SearchR3Encoder where it is loaded here, such as `max_reasoning_tokens`; a model is
        loaded when it is first needed. `verify`: checksums of all files are compared, which reads them once; without
        it their sizes are. Raises FileNotFoundError where there is no index, ValueError for a damaged one, and for an
        encoder whose documents would be encoded otherwise.
        """
        if isinstance(encoder, SearchR3Encoder):
            if settings:
                raise TypeError(f"Settings ({', '.join(settings)}) were given beside an encoder, which has its own.")
            return cls(folder, encoder, verify=verify)
        index = cls(folder, verify=verify)
        index._wanted = encoder, settings
        return index

    def __len__(self) -> int:
        return self._current().state.living

    @property
    def encoder(self) -> SearchR3Encoder:
        """The encoder; loaded now, if it has not been."""
        if self._encoder is None:
            given, settings = self._wanted
            state = self._current().state
            name = state.model["name"] if given is None else given
            if name is None:
                raise ValueError(
                    f"{self.folder} was built with a model that was in memory, so where it lies is not known. Give the "
                    "encoder: SearchIndex.open(folder, encoder), or --model."
                )
            chosen = {name: state.encoding[name] for name in ("dtype", "max_length", "truncate_dim")}
            if given is None:
                chosen["revision"] = state.model["revision"]
            try:
                self._encoder = SearchR3Encoder(name, **(chosen | settings))
                self._own = given is None and not set(chosen) & set(settings)
            except ValueError:
                if given is not None:  # another model may have no room for this one's prompts, which says little
                    check_model(self.folder, state.encoding, state.model["name"], given)
                raise
        self._check(self._encoder)  # each time: weights may have been trained meanwhile, or the index been replaced
        return self._encoder

    def search(
        self,
        texts: str | Sequence[str],
        mode: Mode = "reason",
        k: int = 10,
        *,
        instruction: str | Sequence[str | None] | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[SearchResult]:
        """The `k` nearest documents of each query, or all where there are fewer; a single text gives a list of one.

        `mode` "reason" lets a query reason first, "direct" embeds it as a document is. `instruction` is one for all or
        one per query, as in SearchR3Encoder. Raises ValueError for another mode and for `k` below 1.
        """
        queries = texts_of(texts)
        check_whole_number("k", k)
        if k < 1:
            raise ValueError(f"k={k} documents are asked for; ask for at least one.")
        keywords = {"instruction": instruction, "show_progress_bar": show_progress_bar}
        vectors, thoughts = self._encoded(queries, mode, keywords)
        return self.find(queries, vectors, k, thoughts)

    def find(
        self, queries: Sequence[str], vectors: Vectors, k: int, thoughts: Sequence[Thought | None] | None = None
    ) -> list[SearchResult]:
        """The `k` nearest documents of query vectors (queries, dim) of unit length that this model has made.

        For those who encode queries themselves, as a server does. Raises ValueError where another process has replaced
        the index by one of another encoding since the encoder was compared with it.
        """
        if len(queries) == 0:
            return []
        snapshot = self._agreeing()
        found = snapshot.nearest(np.asarray(vectors, np.float32), k)
        documents = snapshot.read(place for hits in found for place, _ in hits)
        said: Sequence[Thought | None] = [None] * len(queries) if thoughts is None else thoughts
        return [
            SearchResult(query, thought, [_hit(documents[place], score) for place, score in hits])
            for query, thought, hits in zip(queries, said, found, strict=True)
        ]

    def check(self) -> None:
        """Raises ValueError or OSError where `find` would: the index was damaged, removed or replaced meanwhile."""
        self._agreeing()

    def add(self, documents: Iterable[Any], *, replace: bool = False) -> int:
        """Add documents; their number. They are found as soon as all of them are embedded and written.

        `replace`: a document whose id is there takes that one's place; without it that is a ValueError.
        """
        return self.written(documents, replace=replace)[0]

    def written(self, documents: Iterable[Any], *, replace: bool = False) -> tuple[int, int]:
        """`add`; the number of documents, and how many of them took the place of another."""
        return writing.write_more(
            self.folder,
            lambda look: writing.embedded(self.folder, documents, self.encoder, look),
            replacing=replace,
            checked=self._checked,
        )

    def remove(self, ids: str | Iterable[str], *, missing_ok: bool = False) -> int:
        """Remove documents by their ids; their number. Raises ValueError, and removes none, if one is not there."""
        wanted = [ids] if isinstance(ids, str) else ids
        return writing.remove(self.folder, wanted, missing_ok=missing_ok, checked=self._checked)

    def compact(self) -> None:
        """Rewrite all parts as one, without what is removed; needs room for a second copy. Changes no answer.

        Only IVF and HNSW, which are built again, may propose others.
        """
        writing.compact(self.folder, checked=self._checked)

    def parts(self) -> list[dict[str, Any]]:
        """Name, kind, rows and removed rows of each part."""
        return [
            {"name": each.name, "kind": each.kind, "rows": each.rows, "removed": each.removed}
            for each in self._current().state.parts
        ]

    @property
    def model(self) -> dict[str, Any]:
        """Name and revision of the model that has embedded the documents."""
        return self._snapshot.state.model

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _current(self) -> Snapshot:
        """The newest state."""
        with self._lock:
            if version_of(self.folder) != self._snapshot.version:
                self._snapshot = open_snapshot(self.folder, self._checked, verify=self._verify)
            return self._snapshot

    def _agreeing(self) -> Snapshot:
        """The newest state, if it is of the encoding that the encoder was compared with."""
        snapshot = self._current()
        if self._agreed not in (None, snapshot.state.encoding):
            raise ValueError(
                f"{self.folder} was replaced by an index of another encoding while it was open: these queries' vectors "
                "cannot be compared with its documents'. Open it again, with the model that made it."
            )
        return snapshot

    def _check(self, encoder: SearchR3Encoder) -> None:
        state = self._current().state
        check_encoding(self.folder, state.encoding, state.model["name"], encoder, own=self._own)
        self._agreed = state.encoding

    def _encoded(
        self, queries: list[str], mode: Mode, keywords: dict[str, Any]
    ) -> tuple[Vectors, list[Thought] | None]:
        if mode not in ("reason", "direct"):
            raise ValueError(f"mode={mode!r} does not exist; it is 'reason' or 'direct'.")
        if mode == "direct":
            return self._direct().encode_query(queries, **keywords), None
        thoughts = self.encoder.think(queries, **keywords)
        vectors = np.array([thought.vector for thought in thoughts], np.float32)
        return vectors.reshape(-1, self.encoder.dim), thoughts

    def _direct(self) -> SearchR3Encoder:
        """The same model, for queries that do not reason."""
        encoder = self.encoder
        if encoder.mode == "direct":
            return encoder
        if self._twin is None:
            kept = {"max_length": encoder.max_length, "truncate_dim": encoder.truncate_dim, **encoder.batches}
            self._twin = SearchR3Encoder(encoder.checkpoint, mode="direct", **kept)
        return self._twin


def _hit(document: tuple[str, str, str], score: float) -> Hit:
    id_, title, text = document
    return Hit(id_, score, title, text)
