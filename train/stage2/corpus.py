"""The corpus that stage 2 searches, with ids that its training rows can be judged by."""

import hashlib
from collections.abc import Iterable

from train.config.data import RlDataSettings, SourceSettings
from train.corpus_cache.texts import CorpusTexts, CountTokens
from train.data.rows import TrainingRow
from train.data.sources import all_rows, documents_of, open_source


class SearchedCorpus:
    """All documents of the configured corpora. Several sources over one corpus (two hop counts of one world) share it.

    Where several corpora are searched together, an id is prefixed by its corpus, since "1" may be a document of each.
    """

    def __init__(self, settings: RlDataSettings, count_tokens: CountTokens) -> None:
        places = {_place(source): source for source in (settings.corpus or settings.sources)}
        self._prefixed = len(places) > 1 and not settings.corpus
        self._place_of = {source.label: _place(source) for source in settings.sources}
        self.ids: list[str] = []
        texts: list[str] = []
        for place, source in places.items():
            pairs = _positives(source, settings.on_bad_row) if source.kind in ("jsonl", "hub") else documents_of(source)
            for id_, text in pairs:
                self.ids.append(self._id(place, id_))
                texts.append(text)
        self.texts = CorpusTexts(texts, self.ids, count_tokens)

    def relevance(self, row: TrainingRow) -> dict[str, float]:
        """Document id -> relevance of a training row, by the corpus's ids; grades above 0 only.

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
        """The id of a row; for -1, a document that the index did not find, the empty id that the reward refuses."""
        return "" if row < 0 else self.ids[int(row)]

    def _id(self, place: str, id_: str) -> str:
        return f"{place}/{id_}" if self._prefixed else id_


def text_id(text: str) -> str:
    """The id of a document that has none: a hash of its text."""
    return f"text-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _id_of(row: TrainingRow) -> str:
    return row.positive_id or text_id(row.positive)


def _place(source: SourceSettings) -> str:
    """A name that is the same for two sources over the same documents."""
    if source.kind == "hopworld":
        return f"hopworld-{source.documents}-{source.world_seed}"
    return f"{source.kind}-{source.path}"


def _positives(source: SourceSettings, on_bad_row: str) -> Iterable[tuple[str, str]]:
    """(id, text) of the documents that the rows of a file name as relevant, each once."""
    seen: dict[str, str] = {}
    for row in all_rows(open_source(source), on_bad_row):
        seen.setdefault(_id_of(row), row.positive)
    return seen.items()
