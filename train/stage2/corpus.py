"""The corpus that stage 2 searches, with ids that its training rows can be judged by."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from search_r3_mteb.encoder.documents import join_title
from train.config.data import RlDataSettings, SourceSettings
from train.corpus_cache.texts import CorpusTexts, CountTokens
from train.data.rows import TrainingRow
from train.data.sources import all_rows, open_source


class SearchedCorpus:
    """All documents of the configured corpora. Several sources over one corpus (two hop counts of one world) share it.

    Where several corpora are searched together, an id is prefixed by its corpus, since "1" may be a document of each.
    """

    def __init__(self, settings: RlDataSettings, count_tokens: CountTokens) -> None:
        self._named = bool(settings.corpus)
        places = {_place(source): source for source in (settings.corpus or settings.sources)}
        self._prefixed = len(places) > 1 and not self._named
        self._place_of = {source.label: _place(source) for source in settings.sources}
        ids: list[str] = []
        texts: list[str] = []
        for place, source in places.items():
            for id_, text in _documents(source, settings.on_bad_row):
                ids.append(self._id(place, id_))
                texts.append(text)
        self.ids, self.texts = ids, CorpusTexts(texts, ids, count_tokens)

    def relevance(self, row: TrainingRow) -> dict[str, float]:
        """Document id -> relevance of a training row, by the corpus's ids; only what is relevant at all.

        Raises ValueError (from `CorpusTexts.rows_of`) for a document that the corpus does not have.
        """
        place = self._place_of[row.source]
        judged = row.relevant or ((_id_of(row), 1),)
        found = {self._id(place, id_): float(grade) for id_, grade in judged if grade > 0}
        self.texts.rows_of(list(found))
        return found

    def positive_id(self, row: TrainingRow) -> str:
        """The corpus's id of the row's own positive."""
        return self._id(self._place_of[row.source], _id_of(row))

    def id_of(self, row: int) -> str:
        """The id of a row; empty for -1, the place of a document that the index did not find, which the reward refuses."""
        return "" if row < 0 else self.ids[int(row)]

    def _id(self, place: str, id_: str) -> str:
        return f"{place}/{id_}" if self._prefixed else id_


def text_id(text: str) -> str:
    """The id of a document that has none: a hash of its text."""
    return f"text-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _id_of(row: TrainingRow) -> str:
    return row.positive_id or text_id(row.positive)


def _place(source: SourceSettings) -> str:
    """What two sources over the same documents have in common."""
    if source.kind == "hopworld":
        return f"hopworld-{source.documents}-{source.world_seed}"
    return f"{source.kind}-{source.path}"


def _documents(source: SourceSettings, on_bad_row: str) -> Iterable[tuple[str, str]]:
    """(id, text) of every document of a source."""
    if source.kind == "hopworld":
        from search_r3_mteb.tasks.hopworld import HopWorld

        corpus = HopWorld(source.documents, source.world_seed).corpus
        return ((id_, document["text"]) for id_, document in corpus.items())
    if source.kind == "beir":
        from search_r3_mteb.tasks.beir_folder import read_corpus

        return ((id_, join_title(title, text)) for id_, title, text in read_corpus(Path(str(source.path))))
    return _positives(source, on_bad_row)


def _positives(source: SourceSettings, on_bad_row: str) -> Iterable[tuple[str, str]]:
    """The documents that the rows of a file name as relevant, each once."""
    seen: set[str] = set()
    for row in all_rows(open_source(source), on_bad_row):
        id_ = _id_of(row)
        if id_ not in seen:
            seen.add(id_)
            yield id_, row.positive
