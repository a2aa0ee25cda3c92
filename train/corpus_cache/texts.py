"""The documents of a corpus: texts and ids by row, their tokens, and their vectors, which all processes share."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Int

from search_r3_mteb.encoder.documents import document_texts
from search_r3_mteb.search.arrays import RowNumbers, Vectors
from train.disk.token_ids import CorpusTokenizer, TokenIds
from train.processes.replicas import Arrays, Replicas, on_all, shares

Encode = Callable[..., Any]
"""Texts -> (len, dim) vectors under the present weights. Where the corpus has a `CorpusTokenizer`, it is also given the
token ids: encode(texts, token_ids)."""
CountTokens = Callable[[list[str]], Sequence[int]]
ENCODE = "encode its share of the documents, so the cache is unchanged in all of them"
_BYTES_PER_TOKEN = 4
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class CorpusTexts:
    """Texts by row. `texts` may be any sequence of strings, also one that reads them from disk.

    `ids` name the rows (default: their numbers as strings). `token_counts` are the tokens that encoding each text
    takes, or a function that counts them for a list of texts, or a `CorpusTokenizer`, whose ids are made once and kept;
    without it a token is taken to be four bytes of UTF-8 (our choice: the mean of English text in byte-pair
    vocabularies of 50,000 and more).

    Raises ValueError for no text, an empty text, an id that occurs twice, or another number of ids or counts than
    texts.
    """

    texts: Sequence[str]
    ids: Sequence[str] | None = None
    token_counts: Sequence[int] | Int[np.ndarray, " rows"] | CountTokens | CorpusTokenizer | None = field(
        default=None, repr=False
    )
    token_ids: TokenIds | None = field(default=None, init=False, repr=False)
    """Of a corpus with a `CorpusTokenizer`, once it is `measured`."""

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not len(self.texts):
            raise ValueError(f"A corpus is a sequence of at least one text, got {self.texts!r:.60}.")
        if self.ids is not None:
            if len(self.ids) != len(self.texts):
                raise ValueError(f"{len(self.ids)} ids for {len(self.texts)} texts: each text needs one.")
            if len(self._row_of_id) != len(self.ids):
                ((twice, _),) = Counter(self.ids).most_common(1)
                raise ValueError(
                    f"The id {twice!r} occurs more than once ({len(self.ids) - len(self._row_of_id)} such rows): a "
                    "judgement of it would mean two documents. Make the ids unique."
                )

    @classmethod
    def of(cls, corpus: "CorpusTexts | Mapping[str, Any] | Sequence[Any]") -> "CorpusTexts":
        """From a BEIR corpus {id: {"title", "text"}}, or a list of texts or documents."""
        if isinstance(corpus, CorpusTexts):
            return corpus
        if isinstance(corpus, Mapping):
            return cls(document_texts(list(corpus.values())), list(corpus))
        if isinstance(corpus, list | tuple) and not all(isinstance(text, str) for text in corpus):
            return cls(document_texts(corpus))
        return cls(corpus)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids or ())}

    def has(self, id_: str) -> bool:
        """Whether a row has this id; only where `ids` were given."""
        return id_ in self._row_of_id

    def rows_of(self, ids: Sequence[str]) -> Int[np.ndarray, " rows"]:
        """The rows of these ids. ValueError naming the first that the corpus does not have."""
        if self.ids is None:
            known = {name for name in ids if name.isdigit() and int(name) < len(self) and str(int(name)) == name}
            rows = [int(name) if name in known else -1 for name in ids]
        else:
            rows = [self._row_of_id.get(name, -1) for name in ids]
        if -1 in rows:
            raise ValueError(
                f"Document {ids[rows.index(-1)]!r} is not among the {len(self)} documents of the corpus, so it can "
                "never be retrieved. Add it, or leave out the queries that it is relevant for."
            )
        return np.asarray(rows, dtype=np.int64)

    def take(self, rows: Int[np.ndarray, " rows"]) -> list[str]:
        """The texts of these rows."""
        return [self.texts[row] for row in rows.tolist()]

    def measured(self, replicas: Replicas) -> "CorpusTexts":
        """The same corpus with its token counts at hand, each process counting a share, and its token ids.

        Raises like `count`, and OSError where the disk has no room for token ids.
        """
        if isinstance(self.token_counts, np.ndarray):
            return self
        found = copy(self)  # with the tables and the digest that it has made already
        if isinstance(self.token_counts, CorpusTokenizer):
            how = self.token_counts

            def ids_of(rows: range) -> Sequence[Sequence[int]]:
                texts = list(self.texts[rows.start : rows.stop])
                _check_texts(texts, rows.start)
                return how.tokenize(texts)

            fingerprint = f"{how.name} {self.digest()} {len(self)}"
            token_ids = TokenIds.open(how.folder, fingerprint, len(self), ids_of, replicas)
            object.__setattr__(found, "token_ids", token_ids)
            object.__setattr__(found, "token_counts", token_ids.counts())
            return found
        bounds = np.linspace(0, len(self), replicas.size + 1).astype(int).tolist()
        own = range(bounds[replicas.rank], bounds[replicas.rank + 1])
        parts = on_all(lambda: {"counts": self.count(own)}, replicas, "count its share of the documents' tokens")
        object.__setattr__(found, "token_counts", np.concatenate([part["counts"] for part in parts]))
        return found

    def count(self, rows: range | None = None) -> Int[np.ndarray, " rows"]:
        """Tokens of every text, or of a range of them, at least 1, int32.

        ValueError for an empty text or a count below 1, TypeError for another type.
        """
        rows = range(len(self)) if rows is None else rows
        if self.token_ids is not None:  # measured: the texts were read and checked then
            return self.token_ids.counts()[rows.start : rows.stop]
        counts = np.empty(len(rows), dtype=np.int32)
        for start, texts in self._parts(rows):
            _check_texts(texts, start)
            if self.token_counts is None:
                found: Any = [1 + len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN for text in texts]
            elif callable(self.token_counts):
                found = self.token_counts(texts)
            elif isinstance(self.token_counts, CorpusTokenizer):
                found = [len(ids) for ids in self.token_counts.tokenize(texts)]
            else:
                found = self.token_counts[start : start + len(texts)]
            if len(found) != len(texts) or min(found) < 1:
                raise ValueError(
                    f"token_counts gives {len(found)} numbers for the {len(texts)} documents from row {start}, the "
                    f"smallest {min(found, default=None)}: one number of at least 1 is needed for each."
                )
            counts[start - rows.start : start - rows.start + len(texts)] = found
        return counts

    def digest(self) -> str:
        """Hash of all texts and ids in order: two corpora with one digest are the same."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for _, texts in self._parts(range(len(self))):
            for text in texts:
                data = text.encode("utf-8", "surrogatepass")
                state.update(len(data).to_bytes(8, "little") + data)
        for name in self.ids or ():
            state.update(b"\0" + name.encode("utf-8", "surrogatepass"))
        return state.hexdigest()

    def _parts(self, rows: range) -> Iterator[tuple[int, list[str]]]:
        for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
            yield start, list(self.texts[start : min(start + _ROWS_AT_ONCE, rows.stop)])


def _check_texts(texts: list[str], start: int) -> None:
    for row, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise TypeError(f"Document {row} is of type {type(text).__name__}, not str: {text!r:.60}.")
        if not text.strip():
            raise ValueError(
                f"Document {row} is empty: its vector means nothing, but could be retrieved. Drop empty documents."
            )


def encode_shared(
    texts: CorpusTexts, rows: RowNumbers, tokens: Int[np.ndarray, " rows"], encode: Encode, dim: int, replicas: Replicas
) -> Vectors:
    """Fresh unit vectors of `rows`, each process encoding its share by tokens. Only (row, vector) deltas travel."""
    mine = np.flatnonzero(shares(tokens, replicas.size) == replicas.rank) if replicas.size > 1 else np.arange(len(rows))
    fresh = np.empty((len(rows), dim), dtype=np.float32)
    share = partial(encoded_share, texts, mine, rows[mine], encode, dim)
    for part in on_all(share, replicas, ENCODE):
        fresh[part["at"]] = part["vectors"]
    return fresh


def encoded_share(texts: CorpusTexts, at: RowNumbers, rows: RowNumbers, encode: Encode, dim: int | None) -> Arrays:
    """One process's vectors, and the places that they belong to."""
    return {
        "at": at,
        "vectors": encode_rows(texts, rows, encode, dim) if len(rows) else np.zeros((0, dim or 0), np.float32),
    }


def encode_rows(texts: CorpusTexts, rows: RowNumbers, encode: Encode, dim: int | None) -> Vectors:
    """Unit vectors (rows, dim) float32 of these documents.

    Raises ValueError where the encoder gives another number of vectors, another dimension than `dim`, or a vector that
    is zero or not finite.
    """
    known = () if texts.token_ids is None else (texts.token_ids.take(rows),)
    found = encode(texts.take(rows), *known)
    if hasattr(found, "detach"):
        found = found.detach().cpu().float().numpy()
    vectors = np.array(found, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(rows):
        raise ValueError(
            f"The encoder gave shape {vectors.shape} for {len(rows)} documents; it must be ({len(rows)}, dim)."
        )
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(
            f"The encoder gives vectors of dimension {vectors.shape[1]}, the cache holds {dim}: it was built by "
            "another model. Build the cache again with this one."
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
    if len(bad):
        row = int(rows[bad[0]])
        raise ValueError(
            f"The encoder gave document {row} a vector of length {float(length[bad[0], 0])} ({len(bad)} such vectors): "
            f"it has no direction. Look at the weights and at the text {texts.texts[row]!r:.80}."
        )
    unit: Vectors = vectors / length
    return unit
