"""The corpus that stage 2 searches, with ids that its training rows can be judged by."""

import hashlib
from collections.abc import Iterable

import numpy as np

from train.config.corpus_cache import CorpusCacheSettings
from train.config.data import RlDataSettings, SourceSettings
from train.corpus_cache.texts import CorpusTexts, CountTokens
from train.data.rows import TrainingRow
from train.data.sources import all_rows, documents_of, open_source

WARNED_SECONDS, REFUSED_SECONDS = 10.0, 120.0
WARNED_HOURS, REFUSED_HOURS = 1.0, 72.0
_FLOATS_PER_SECOND = 7.5e10


class SearchedCorpus:
    """All documents of the configured corpora. Several sources over one corpus (two hop counts of one world) share it.

    `tokenizer` names `count_tokens`, so that its counts are kept (see `CorpusTexts`).
    Where several corpora are searched together, an id is prefixed by its corpus, since "1" may be a document of each.
    """

    def __init__(self, settings: RlDataSettings, count_tokens: CountTokens, tokenizer: str = "") -> None:
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
        self.texts = CorpusTexts(texts, self.ids, count_tokens, tokenizer)

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


def processor_seconds(documents: int, dim: int, queries: int, settings: CorpusCacheSettings, threads: int) -> float:
    """Seconds per step that two searches and the drift map take on a processor, estimated from their multiply-adds.

    7.5e10 operations per second and thread in float32, 2e11 in bfloat16: our choice, a typical server's.
    """
    rate = (2e11 if settings.storage == "bfloat16" else _FLOATS_PER_SECOND) * max(1, threads)
    searches = 2.0 * 2 * documents * dim * queries if settings.index == "exact" else 0.0
    mapped = 2.0 * documents * dim * dim if settings.policy.endswith("+map") else 0.0
    return (searches + mapped) / rate


def check_processor(
    documents: int, dim: int, queries: int, settings: CorpusCacheSettings, threads: int, encoding_flops: float = 0.0
) -> str | None:
    """The warning for a corpus that a processor searches, maps or encodes slowly; None below 10 seconds per step.

    `encoding_flops` are those of encoding all documents once. Raises ValueError above 120 seconds per step, and above
    three days of encoding: such a run would spend its time on the corpus.
    """
    seconds = processor_seconds(documents, dim, queries, settings, threads)
    hours = encoding_flops / (_FLOATS_PER_SECOND * max(1, threads)) / 3600
    said = (
        f"{documents:,} documents of {dim:,} dimensions on a CPU with {threads} threads: about {hours:,.1f} hours to "
        f"encode them once, and {seconds:,.0f} seconds per step to search and map them for {queries:,} rollouts."
    )
    if seconds > REFUSED_SECONDS or hours > REFUSED_HOURS:
        raise ValueError(
            f"{said} That is too much to train with. Train on a GPU, search a smaller [data.corpus], or sample fewer "
            'rollouts; corpus_cache.storage = "bfloat16" and policy = "local" cost less.'
        )
    slow = seconds > WARNED_SECONDS or hours > WARNED_HOURS
    return f"{said} A GPU, or a smaller [data.corpus], makes that less." if slow else None


def encoding_flops(texts: CorpusTexts, parameters: int, max_length: int) -> float:
    """Operations of encoding all documents once: two per weight and token, a token being four characters.

    The length is that of the first thousand documents, cut at `max_length` tokens.
    """
    sample = texts.take(np.arange(min(len(texts), 1000)))
    tokens = sum(min(max_length, 1 + len(text) // 4) for text in sample) / len(sample)
    return 2.0 * parameters * tokens * len(texts)


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
