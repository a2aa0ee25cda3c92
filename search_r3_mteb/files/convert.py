"""Any input as a BEIR folder: documents alone, or with queries and judgements."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from search_r3_mteb.files.columns import ColumnError, Columns, logger
from search_r3_mteb.files.documents import iter_documents, iter_queries
from search_r3_mteb.files.judgements import IdColumns, iter_judgements, judgement_files
from search_r3_mteb.files.opening import STANDARD_INPUT, check_source, name_of
from search_r3_mteb.tasks.beir_folder import Document, Judgement, Query, read_qrels, write_beir

Identified = TypeVar("Identified", Document, Query)
DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class Converted:
    """What was written: numbers of documents and queries, and of judgements by split."""

    documents: int
    queries: int
    judgements: dict[str, int]


def convert(
    source: str | Path,
    output: Path,
    *,
    columns: Columns | None = None,
    queries: str | Path | None = None,
    query_columns: Columns | None = None,
    judgements: str | Path | None = None,
    split: str | None = None,
) -> Converted:
    """Write a BEIR folder of the documents of `source`, and of queries and judgements where they are given.

    A folder that holds queries and judgements (`corpus`, `queries` and `qrels` in any format) gives these, too.
    Documents without text are kept where they have an id, since judgements may name them. `split` names that of
    `judgements` ("test"). Everything is streamed, ids are kept in memory. Raises ValueError, FileNotFoundError and
    FileExistsError, before anything is written where possible; the folder is there completely or not at all.
    """
    qrels = {} if judgements is None else {split or DEFAULT_SPLIT: judgements}
    if str(source) != STANDARD_INPUT and Path(source).is_dir():
        folder = Path(source)
        qrels = qrels or dict(judgement_files(folder))
        if queries is None and any(folder.glob("queries.*")):
            queries = folder
    if qrels and queries is None:
        raise ValueError(
            f"Judgements are given ({', '.join(map(str, qrels.values()))}) without the queries that they judge. Name "
            "them: --queries FILE."
        )
    if queries is None and query_columns is not None and (query_columns.id, query_columns.text) != (None, None):
        raise ValueError("--query-id and --query-text name columns of --queries, and none are given. Leave them out.")
    if split is not None and judgements is None:
        raise ValueError(f"--split {split} names the split of --judgements, and none are given. Leave it out.")
    if split is not None and (not split or split != Path(split).name):
        raise ValueError(
            f"--split {split!r} is not a name: it becomes that of a file, qrels/SPLIT.tsv. Give test or dev."
        )
    given = [source, *([] if queries is None else [queries]), *qrels.values()]
    if [str(each) for each in given].count(STANDARD_INPUT) > 1:
        raise ValueError("Standard input (-) is named twice, and can be read once. Write one of the two into a file.")
    for each in given:
        check_source(each)
    documents = _Seen(lambda: _with_some_text(source, iter_documents(source, columns, keep_empty=True)))
    asked = _Seen(lambda: _queries(queries or source, query_columns))
    ids = (query_columns.id if query_columns else None, columns.id if columns else None)
    counts: dict[str, int] = {}
    write_beir(
        output,
        corpus=iter(documents),
        queries=None if queries is None else iter(asked),
        qrels={name: _judged((file, name, ids), documents.ids, asked.ids, counts) for name, file in qrels.items()},
    )
    return Converted(len(documents.ids), len(asked.ids), counts)


def _queries(source: str | Path, columns: Columns | None) -> Iterator[Query]:
    """The queries; a column that is not known is named with the options of `convert`."""
    try:
        yield from iter_queries(source, columns)
    except ColumnError as error:
        option = f"query-{error.option}"
        remedy = "" if error.name else f"Name it: --{option} NAME, or give its number where there is no header."
        raise ColumnError(error.what, option, error.name, remedy) from error


def _with_some_text(source: str | Path, documents: Iterator[Document]) -> Iterator[Document]:
    """The documents; those with neither title nor text are counted aloud. Raises ValueError where all of them are."""
    count = empty = 0
    for document in documents:
        count, empty = count + 1, empty + (not (document.title.strip() or document.text.strip()))
        yield document
    if empty == count:
        raise ValueError(f"{name_of(source)}: none of the {count} documents has a title or a text. Check the columns.")
    if empty:
        logger.warning(
            "%s: %d of %d documents have neither title nor text; they are kept, since judgements may name them.",
            name_of(source),
            empty,
            count,
        )


class _Seen(Iterable[Identified]):
    """Documents or queries whose ids are noted as they go by."""

    def __init__(self, rows: Callable[[], Iterator[Identified]]) -> None:
        self._rows: Callable[[], Iterator[Identified]] = rows
        self.ids: set[str] = set()

    def __iter__(self) -> Iterator[Identified]:
        for row in self._rows():
            self.ids.add(row.id)
            yield row


def _judged(
    given: tuple[str | Path, str, IdColumns], documents: set[str], queries: set[str], counts: dict[str, int]
) -> Iterator[Judgement]:
    """The judgements of a file (with its split, and names of columns), which is read after documents and queries.

    Those of queries that there are not are refused, and of documents that there are not named, as `evaluate` does.
    """
    file, split, ids = given
    path, lost, first, relevant = Path(file), 0, "", 0
    beir = path.parent.name == "qrels" and path.name.removesuffix(".gz").endswith(".tsv")
    rows = read_qrels(path) if beir else iter_judgements(file, ids)
    for row in rows:
        if row.query_id not in queries:
            raise ValueError(f"{name_of(file)}: judges query {row.query_id!r}, which is not among the queries.")
        if any(sign in id_ for id_ in row[:2] for sign in "\t\r\n"):
            raise ValueError(f"{name_of(file)}: {row[:2]!r} holds a tab or a line break, which a qrels file cannot.")
        counts[split] = counts.get(split, 0) + 1
        relevant += row.relevance > 0
        if row.document_id not in documents:
            lost, first = lost + 1, first or row.document_id
        yield row
    if lost == counts.get(split, 0):
        raise ValueError(
            f"{name_of(file)}: no judgement names a document of the corpus (the first: {first!r}). The ids are of "
            "another set, or in another column: --id NAME."
        )
    if not relevant:
        raise ValueError(
            f"{name_of(file)}: no grade is above 0, so no document is relevant and nothing can be measured. Give the "
            "relevant ones 1 or more."
        )
    if lost:
        logger.warning(
            "%s: %d of %d judgements name documents that are not there, the first %r.",
            name_of(file),
            lost,
            counts[split],
            first,
        )
