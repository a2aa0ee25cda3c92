"""Local tasks as MTEB retrieval tasks: a BEIR folder, hopworld, the Python standard library, and texts in memory.

They work offline, and their metadata are made per object, with a dataset revision that stands for the content. MTEB
2.26 returns a complete cached result of the same task name whatever its revision (evaluate.py, `_check_cache`), so the
name too tells contents apart: two folders, two worlds or two Python versions never share a result. Importing this
module imports mteb; importing the modules beside it does not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.encoder.setting_types import check_flag
from search_r3_mteb.tasks import beir_folder, stdlib
from search_r3_mteb.tasks.hopworld import DEFAULT_DOCUMENTS, GENERATOR_VERSION, HopWorld, hops_of

IDENTICAL_IDS = ":ignore_identical_ids"  # behind a folder's name on the command line
logger = logging.getLogger(__name__)
_ROWS_PER_BATCH = 10_000  # documents that exist as Python objects at a time while a corpus is read
_PER_HOP_CUTOFF = 10


class LocalRetrievalTask(AbsTaskRetrieval):
    """A retrieval task with one split and metadata of its own."""

    data_loaded: bool
    dataset: Any

    def __init__(self, metadata: TaskMetadata) -> None:
        self.metadata = metadata
        super().__init__()

    @property
    def split(self) -> str:
        """The one split that is evaluated."""
        return str(self.metadata.eval_splits[0])

    def unload_data(self) -> None:
        """Free the data and keep the metadata, which MTEB's own method would replace by the class's."""
        self.dataset = None
        self.data_loaded = False

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Fill `dataset`; MTEB passes further keywords (`timer`), which local data do not need."""
        if self.data_loaded:
            return
        self.dataset = {"default": {self.split: self._load_split()}}
        self.data_loaded = True

    def _load_split(self) -> dict[str, Any]:
        raise NotImplementedError

    def task_specific_scores(
        self, scores: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], *rest: Any, **named: Any
    ) -> dict[str, float]:
        """No further scores; ValueError for a query without results, which MTEB would leave out of its mean."""
        missing = [query_id for query_id in qrels if query_id not in scores]
        if missing:
            raise ValueError(
                f"{self.metadata.name}: the search returned nothing for {len(missing)} of {len(qrels)} queries, first "
                f"{missing[0]!r}; MTEB would leave them out of the mean. Return an entry for every query."
            )
        return {}


class BeirFolder(LocalRetrievalTask):
    """Any BEIR folder as an MTEB task, offline.

    `split` defaults to "test", or to the only one there is. Documents whose id equals the query's stay in the ranking
    unless `ignore_identical_ids` is set (as ArguAna needs). The task's name is `name` (default: "beir-" and the
    folder's name) with eight digits of the content hash. `instruction` is the task instruction that MTEB passes to the
    encoder (none by default). `languages` are MTEB's codes, for its tables only.

    Raises FileNotFoundError or ValueError, naming file, line and reason: for missing files and splits here, for
    malformed lines when the data are loaded. Then, too, `unreachable` becomes the number of relevant judgements of
    documents that the corpus lacks, which are scored as not found, with a warning (ArguAna has some).
    """

    unreachable: int
    kept: Any = None  # what must live as long as the task: the folder, where that is a temporary one

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        name: str | None = None,
        ignore_identical_ids: bool = False,
        instruction: str | None = None,
        languages: Sequence[str] = ("eng-Latn",),
    ) -> None:
        check_flag("ignore_identical_ids", ignore_identical_ids)
        self.path = Path(path)
        self.ignore_identical_ids = ignore_identical_ids
        split = beir_folder.choose_split(self.path, split)
        self._content_hash = beir_folder.content_hash(self.path, split)
        folder = self.path.resolve().name
        label = re.sub(r"[^\w.-]+", "_", f"beir-{folder}" if name is None else name)
        mark = "-ignore_identical_ids" if ignore_identical_ids else ""
        name, revision = f"{label}-{self._content_hash[:8]}{mark}", f"{self._content_hash[:32]}{mark}"
        description = f"The BEIR folder {folder}, split {split}."
        super().__init__(_metadata(name, description, revision, split, languages, instruction=instruction))

    def _load_split(self) -> dict[str, Any]:
        if beir_folder.content_hash(self.path, self.split) != self._content_hash:
            raise ValueError(
                f"BEIR folder {str(self.path)!r} changed since this task was made, whose revision stands for the old "
                f"content: make a new BeirFolder."
            )
        queries = {query.id: query.text for query in beir_folder.read_queries(self.path)}
        relevance: dict[str, dict[str, int]] = {}
        for row in beir_folder.read_qrels(self.path, self.split, queries=queries):
            relevance.setdefault(row.query_id, {})[row.document_id] = row.relevance
        if not relevance:
            raise ValueError(f"BEIR folder {str(self.path)!r}: split {self.split!r} judges no query to score.")
        copies = _Copies({query_id: queries[query_id] for query_id in relevance})
        corpus = _table(
            copies.seen(beir_folder.read_corpus(self.path)), ("id", "title", "text"), f"{self.path}/corpus.jsonl: "
        )
        self.unreachable = self._unreachable(relevance, set(corpus["id"]))
        copies.warn(self.metadata.name, self.path, self.ignore_identical_ids)
        judged = ((query_id, text) for query_id, text in queries.items() if query_id in relevance)
        return _split_data(corpus, _table(judged, ("id", "text")), relevance)

    def _unreachable(self, relevance: Mapping[str, Mapping[str, int]], corpus: set[str]) -> int:
        """The number of relevant judgements of documents that the corpus lacks; the warning about them.

        Raises ValueError where no relevant document can be found, and for ids that differ by white space only.
        """
        relevant = [(q, d) for q, judged in relevance.items() for d, grade in judged.items() if grade > 0]
        lost = [(query_id, document_id) for query_id, document_id in relevant if document_id not in corpus]
        place = f"BEIR folder {str(self.path)!r}, split {self.split!r}"
        if not relevant:
            raise ValueError(f"{place} judges no document relevant (above 0), so every score would be 0.")
        if len(lost) == len(relevant):
            raise ValueError(
                f"{place}: none of {len(relevant)} relevant judgements names a document of the corpus (first: "
                f"{lost[0][1]!r}), so every score would be 0. A file is incomplete, or of another data set."
            )
        for query_id, document_id in lost:
            if document_id.strip() in corpus:
                raise ValueError(
                    f"{place}: query {query_id!r} is judged with document {document_id!r}; the corpus has it without "
                    "the white space. Remove it from the judgements."
                )
        if lost:
            logger.warning(
                "%s: %d of %d relevant judgements name documents that the corpus lacks (first: query %r, document %r). "
                "They count as not found, as in BEIR and MTEB, and no model can reach 1.",
                self.metadata.name,
                len(lost),
                len(relevant),
                *lost[0],
            )
        return len(lost)


@dataclass
class _Copies:
    """Queries that are documents themselves, found while the corpus goes by: ids that both have, and equal texts.

    Texts are compared without case, white space and final punctuation, by which copies differ in the wild.
    """

    queries: Mapping[str, str]
    same_id: int = 0
    same_text: int = 0

    def seen(self, corpus: Iterable[beir_folder.Document]) -> Iterator[beir_folder.Document]:
        """The documents, counted."""
        for document in corpus:
            query = self.queries.get(document.id)
            if query is not None:
                self.same_id += 1
                texts = (document.text, join_title(document.title, document.text))
                self.same_text += _bare(query) in map(_bare, texts)
            yield document

    def warn(self, task: str, path: Path, ignored: bool) -> None:
        """Log a warning where queries find themselves, or where documents are left out that are not copies."""
        if self.same_text and not ignored:
            logger.warning(
                "%s: %d of %d queries are documents of the same id and text, but for case, white space and final "
                "punctuation; a model finds them first. Published scores (ArguAna, Quora) leave them out: "
                "--ignore-identical-ids, beir:%s%s, or BeirFolder(..., ignore_identical_ids=True).",
                task,
                self.same_text,
                len(self.queries),
                path,
                IDENTICAL_IDS,
            )
        if ignored and self.same_id > self.same_text:
            logger.warning(
                "%s: ignore_identical_ids leaves out %d documents that have a query's id but not its text; such ids "
                "may be equal by chance, and then the option is wrong here.",
                task,
                self.same_id - self.same_text,
            )


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+$", "", " ".join(text.casefold().split()))


class HopWorldTask(LocalRetrievalTask):
    """Hopworld as an MTEB task: its main score is nDCG@10 over the queries of all hop counts together.

    The result file also holds `ndcg_at_10_hop_K`, `recall_at_10_hop_K` and `queries_hop_K` for K = 1 to 4. `split` is
    "test" or "dev". Raises like `HopWorld`.
    """

    def __init__(self, documents: int = DEFAULT_DOCUMENTS, seed: int = 0, split: str = "test") -> None:
        if split not in ("test", "dev"):
            raise ValueError(f"HopWorldTask: split must be 'test' or 'dev', got {split!r}; train is not for testing.")
        self.world = HopWorld(documents=documents, seed=seed)
        name = f"HopWorld-v{GENERATOR_VERSION}"
        name += (f"-{documents}" if documents != DEFAULT_DOCUMENTS else "") + (f"-seed{seed}" if seed else "")
        description = f"Generated multi-hop questions (1 to 4 hops) over {documents} single facts, world seed {seed}."
        super().__init__(_metadata(name, description, self.world.revision, split, ("eng-Latn",)))

    def _load_split(self) -> dict[str, Any]:
        queries = self.world.queries(self.split)
        documents = ((id_, row["title"], row["text"]) for id_, row in self.world.corpus.items())
        return _split_data(
            _table(documents, ("id", "title", "text")),
            _table(((query.id, query.text) for query in queries), ("id", "text")),
            {query.id: {query.positive_id: 1} for query in queries},
        )

    def task_specific_scores(
        self, scores: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], *rest: Any, **named: Any
    ) -> dict[str, float]:
        """nDCG@10, recall@10 and the number of queries of each hop count."""
        super().task_specific_scores(scores, qrels, *rest, **named)
        by_hops: dict[int, list[dict[str, float]]] = {}
        for query_id in qrels:
            by_hops.setdefault(hops_of(query_id), []).append(scores[query_id])
        found: dict[str, float] = {}
        for hops, rows in sorted(by_hops.items()):
            found[f"ndcg_at_10_hop_{hops}"] = sum(row[f"ndcg_cut_{_PER_HOP_CUTOFF}"] for row in rows) / len(rows)
            found[f"recall_at_10_hop_{hops}"] = sum(row[f"recall_{_PER_HOP_CUTOFF}"] for row in rows) / len(rows)
            found[f"queries_hop_{hops}"] = len(rows)
        return found


class StdlibTask(LocalRetrievalTask):
    """Code search over the Python standard library of the running interpreter; see `search_r3_mteb.tasks.stdlib`."""

    def __init__(self) -> None:
        self.collection = stdlib.collect()
        description = f"Docstring sentences to functions of the Python {self.collection.python} standard library."
        languages = ("eng-Latn", "python-Code")
        name = f"PythonStdlib-{self.collection.revision.removeprefix('python')}"
        super().__init__(_metadata(name, description, self.collection.revision, "test", languages))

    def _load_split(self) -> dict[str, Any]:
        return _split_data(
            _table(((id_, "", text) for id_, text in self.collection.documents.items()), ("id", "title", "text")),
            _table(self.collection.queries.items(), ("id", "text")),
            {query_id: {document_id: 1} for query_id, document_id in self.collection.relevant.items()},
        )


class MemoryTask(LocalRetrievalTask):
    """A retrieval task of texts in memory, for tasks of other packages.

    `corpus` maps document ids to texts, or to (title, text); `queries` ids to texts; `relevant` query ids to document
    ids and their grades (whole numbers, above 0 is relevant). `split` is the name of the one split. The task's name is
    `name` with eight digits of a hash of all of it, so that no other content shares its results. `instruction` is what
    MTEB gives to encoders. Raises ValueError for judgements of what is not there, and for a query without any.
    """

    def __init__(
        self,
        name: str,
        corpus: Mapping[str, str | tuple[str, str]],
        queries: Mapping[str, str],
        relevant: Mapping[str, Mapping[str, int]],
        *,
        split: str = "test",
        description: str = "",
        instruction: str | None = None,
        languages: Sequence[str] = ("eng-Latn",),
    ) -> None:
        pairs = {key: ("", each) if isinstance(each, str) else tuple(each) for key, each in corpus.items()}
        judged = {query: dict(grades) for query, grades in relevant.items() if grades}
        for query, grades in judged.items():
            lost = next((each for each in grades if each not in pairs), None)
            if query not in queries or lost is not None or max(grades.values()) <= 0:
                what = f"document {lost!r} is not in the corpus" if lost is not None else "nothing is relevant for it"
                what = what if query in queries else "there is no such query"
                raise ValueError(f"The task {name!r} has judgements of query {query!r}: {what}.")
        if not judged or set(queries) - set(judged):
            lost = next(iter(set(queries) - set(judged)), "(there are none)")
            raise ValueError(f"The task {name!r} has no judgement of query {lost!r}, so nothing could be scored.")
        self._corpus, self._queries, self._judged = pairs, dict(queries), judged
        held = json.dumps([list(pairs.items()), list(self._queries.items()), judged, instruction], ensure_ascii=False)
        revision = hashlib.sha256(held.encode("utf-8", "surrogatepass")).hexdigest()
        label = re.sub(r"[^\w.-]+", "_", name)
        description = description or f"The task {name} of {len(pairs)} documents and {len(queries)} queries."
        super().__init__(
            _metadata(f"{label}-{revision[:8]}", description, revision[:32], split, languages, instruction=instruction)
        )

    def _load_split(self) -> dict[str, Any]:
        documents = ((id_, title, text) for id_, (title, text) in self._corpus.items())
        return _split_data(
            _table(documents, ("id", "title", "text")), _table(self._queries.items(), ("id", "text")), self._judged
        )


def _metadata(
    name: str, description: str, revision: str, split: str, languages: Sequence[str], instruction: str | None = None
) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        dataset={"path": f"local/{name}", "revision": revision},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=[split],
        eval_langs=list(languages),
        main_score="ndcg_at_10",
        prompt=None if instruction is None else {"query": instruction},
    )


def _table(rows: Iterable[Sequence[str]], columns: tuple[str, ...], place: str = "") -> Dataset:
    """Rows of strings as an in-memory Arrow table, made in batches: a large corpus is never a list of objects."""
    rows = iter(rows)
    batches: list[Dataset] = []
    while batch := list(itertools.islice(rows, _ROWS_PER_BATCH)):
        batches.append(Dataset.from_dict({column: [row[i] for row in batch] for i, column in enumerate(columns)}))
    if not batches:
        raise ValueError(
            f"{place}A retrieval task needs at least one row of ({', '.join(columns)}); its file holds no entry."
        )
    return concatenate_datasets(batches)


def _split_data(corpus: Dataset, queries: Dataset, relevance: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {"corpus": corpus, "queries": queries, "relevant_docs": relevance, "top_ranked": None}
