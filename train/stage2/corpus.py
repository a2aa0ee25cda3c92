"""The corpus that stage 2 searches, with ids that its training rows can be judged by."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from search_r3_mteb.keys import key_of
from train.config.data import RlDataSettings, SourceSettings
from train.corpus_cache.texts import CorpusTexts, CountTokens
from train.data.rows import RowSource, TrainingRow, positives_of, text_id
from train.data.sources import documents_of, open_source
from train.disk.token_ids import CorpusTokenizer

_FILES = ("jsonl", "hub")  # kinds of source without a corpus of their own


class SearchedCorpus:
    """All documents of the configured corpora. Several sources over one corpus (two hop counts of one world) share it.

    `tokens` are how documents are tokenised, or counted (see `CorpusTexts`).
    Where several corpora are searched together, an id is prefixed by its corpus, since "1" may be a document of each.
    The corpus of a file's rows are all relevant documents of all of its rows. A query's relevant documents are those of
    every row with its text, in any file and any of the `opened` sources (by label). A document of a row is known by its
    id; where it has none, by its text: that of the row is the whole text in the corpus, the title before it.

    Raises ValueError for a relevant document that the corpus does not have, and for an id with two texts.
    """

    def __init__(
        self,
        settings: RlDataSettings,
        tokens: CorpusTokenizer | CountTokens,
        opened: Mapping[str, RowSource] | None = None,
    ) -> None:
        places = {_place(source): source for source in (settings.corpus or settings.sources)}
        self._prefixed = len(places) > 1 and not settings.corpus
        self._place_of = {source.label: _place(source) for source in settings.sources}
        self.ids: list[str] = []
        texts: list[str] = []
        for place, source in places.items():
            for id_, text in _documents(source, settings.on_bad_row):
                self.ids.append(self._id(place, id_))
                texts.append(text)
        self.texts = CorpusTexts(texts, self.ids, tokens)
        self._judged: dict[int, dict[str, float]] = {}  # of queries with several relevant documents
        for source in settings.sources:
            rows = (opened or {}).get(source.label)
            if rows is None and source.kind in _FILES:
                rows = open_source(source)
            if rows is not None:
                self._judge(rows, source, settings.on_bad_row)

    def relevance(self, row: TrainingRow) -> dict[str, float]:
        """Document id -> relevance of a training row, by the corpus's ids; grades above 0 only.

        Raises ValueError (from `CorpusTexts.rows_of`) for a document that the corpus does not have.
        """
        judged = row.relevant or ((_id_of(row), 1),)
        texts = {text_id(text): text for id_, text in positives_of(row) if id_ is None}
        found = {
            known: float(grade)
            for id_, grade in judged
            if grade > 0
            for known in self._ids_of(row.source, id_, texts.get(id_), row.source)
        }
        for id_, grade in self._judged.get(key_of(row.query), {}).items():
            found[id_] = max(grade, found.get(id_, 0.0))
        self.texts.rows_of(list(found))
        return found

    def positive_id(self, row: TrainingRow) -> str:
        """The corpus's id of the row's own positive."""
        return self._ids_of(row.source, _id_of(row), None if row.positive_id else row.positive, row.source)[0]

    def id_of(self, row: int) -> str:
        """The id of a row; for -1, a document that the index did not find, the empty id that the reward refuses."""
        return "" if row < 0 else self.ids[int(row)]

    def _id(self, place: str, id_: str) -> str:
        return f"{place}/{id_}" if self._prefixed else id_

    def _ids_of(self, label: str, id_: str, text: str | None, where: str) -> list[str]:
        """The corpus's ids of a document of a source: all with its `text` where it has no id of its own."""
        own = self._id(self._place_of[label], id_)
        if text is None or self.texts.has(own):
            return [own]
        if text.strip() not in self._by_text:
            raise ValueError(
                f"{where}: no document of the searched corpus ({len(self.texts):,} documents, titles before their "
                f"texts) is {text!r:.80}, and the row has no id of it, so it can never be retrieved. Add the document "
                "to the corpus, name its id there in the row (positive_id), or leave the row out."
            )
        return self._by_text[text.strip()]

    @cached_property
    def _by_text(self) -> dict[str, list[str]]:
        """Ids of every text; only made where rows without ids meet a corpus with ids."""
        found: dict[str, list[str]] = defaultdict(list)
        for id_, text in zip(self.ids, self.texts.texts, strict=True):
            found[text.strip()].append(id_)
        return dict(found)

    def _judge(self, rows: RowSource, source: SourceSettings, on_bad_row: str) -> None:
        """Add the judgements of a source; a query's only document is known from its row and is not kept."""
        first: dict[int, tuple[str, float]] = {}
        for pair in rows.judgements(on_bad_row):
            key, grade = key_of(pair.query), float(pair.relevance)
            where = source.label if pair.number is None else f"{source.path}, line {pair.number}"
            text = pair.document if pair.document_id == text_id(pair.document) else None
            for id_ in self._ids_of(source.label, pair.document_id, text, where):
                if not self.texts.has(id_):
                    raise ValueError(
                        f"{where}: document {id_!r} is not among the {len(self.texts):,} documents of the corpus, so "
                        "it can never be retrieved. Add it, or leave out the queries that it is relevant for."
                    )
                known = self._judged.get(key)
                if known is None and first.setdefault(key, (id_, grade))[0] != id_:
                    known = self._judged[key] = dict([first[key]])
                if known is not None:
                    known[id_] = max(grade, known.get(id_, 0.0))


def encoding_flops(texts: CorpusTexts, parameters: int, max_length: int) -> float:
    """Operations of encoding all documents once: two per weight and token, a token being four characters.

    The length is that of the first thousand documents, cut at `max_length` tokens.
    """
    sample = texts.take(np.arange(min(len(texts), 1000)))
    tokens = sum(min(max_length, 1 + len(text) // 4) for text in sample) / len(sample)
    return 2.0 * parameters * tokens * len(texts)


def _id_of(row: TrainingRow) -> str:
    return row.positive_id or text_id(row.positive)


def _place(source: SourceSettings) -> str:
    """A name that is the same for two sources over the same documents."""
    if source.kind == "hopworld":
        return f"hopworld-{source.documents}-{source.world_seed}"
    return f"{source.kind}-{source.path}"


def _documents(source: SourceSettings, on_bad_row: str) -> Iterable[tuple[str, str]]:
    """(id, text) of a corpus; that of a file are the documents that its rows call relevant, each once."""
    if source.kind not in _FILES:
        return documents_of(source)
    seen: dict[str, str] = {}
    for pair in open_source(source).judgements(on_bad_row):
        if seen.setdefault(pair.document_id, pair.document) != pair.document:
            raise ValueError(
                f"{source.label}: the id {pair.document_id!r} stands for two documents, {seen[pair.document_id]!r:.60} "
                f"and {pair.document!r:.60}, so what is found could not be judged. Make the ids of the rows' documents "
                "unique, or leave them out: then a document is known by its text."
            )
    return seen.items()
