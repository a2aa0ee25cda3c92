"""Reasonings of queries from a file, by query id: what an agent has thought, or a published set of rewrites.

    .jsonl, .ndjson, .jl, .json   {"_id" or another of ID_KEYS: ..., "reasoning" or another of TEXT_KEYS: ...}
    .tsv, .txt                    query id, tab, text; a header row of such names is skipped

Of several such keys the first of the list counts: per-query files of `search-r3 evaluate` ("query_id",
"reasoning") and QueryGym's JSON lines ("qid", and the rewrite in "query") are read as they are. Tables are read as
QueryGym writes its `.queries.tsv` (Python's csv: a text with quotation marks, tabs or line breaks is quoted, marks in
it doubled), or else as anserini reads its topics (one row per line, quotation marks are text); sources: QueryGym's
data/dataloader.py and runs, anserini's TsvStringTopicReader, as read in November 2026. Either may be packed as .gz. A
table whose lines can be read in both ways, as one quoted text or as several rows, is refused.

A file whose texts are the queries themselves says nothing: it is refused where another column may be the one that is
meant, else warned of.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.encoder.text_checks import check_text
from search_r3_mteb.file_kinds import split_lines
from search_r3_mteb.files.opening import JSON_ENDINGS, content, ending_of, json_records
from search_r3_mteb.json_files import kind

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

ID_KEYS = ("_id", "id", "query_id", "query-id", "qid")
TEXT_KEYS = ("reasoning", "rewrite", "reformulated", "reformulated_query", "text", "query")
_UNCLEAR = ("text", "query")  # of TEXT_KEYS: other files have the query itself there
_TABLES = (".tsv", ".txt")
_NAMED = 5  # ids in a message
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenFile:
    """The reasonings of a file by query id. `name` is the file's, without its folder.

    `column` is the key that they were read from, `left` are the keys of other texts, which were not read.
    """

    name: str
    texts: Mapping[str, str]
    column: str = field(default="", compare=False)
    left: tuple[str, ...] = field(default=(), compare=False)

    @property
    def digest(self) -> str:
        """sha256 (hex) of ids and texts, whatever their order and the file's format."""
        return hashlib.sha256(json.dumps(sorted(self.texts.items())).encode()).hexdigest()

    def of(self, ids: Sequence[str], subset: str) -> list[str]:
        """The reasonings of queries; in a task of several subsets, SUBSET/ID goes before ID. KeyError for none."""
        return [self.texts[f"{subset}/{id_}" if f"{subset}/{id_}" in self.texts else id_] for id_ in ids]

    def check(self, task: "AbsTaskRetrieval") -> None:
        """ValueError where a query of the loaded task has no reasoning; a warning names ids that it does not have."""
        wanted = [
            (subset, str(id_))
            for subset, splits in task.dataset.items()
            for split in task.eval_splits
            if split in splits
            for id_ in splits[split]["queries"]["id"]
        ]
        queries = [
            query
            for splits in task.dataset.values()
            for split in task.eval_splits
            if split in splits
            for query in splits[split]["queries"]["text"]
        ]
        missing = [id_ for subset, id_ in wanted if id_ not in self.texts and f"{subset}/{id_}" not in self.texts]
        if missing:
            raise ValueError(
                f"{self.name} has no reasoning for {len(missing)} of the {len(wanted)} queries of "
                f"{task.metadata.name}: {_some(missing)}. Its own ids are {_some(self.texts)}. Add them (an empty text "
                "is one, too), or evaluate the split that the file was made for with --split."
            )
        unknown = sorted(set(self.texts) - {id_ for _, id_ in wanted} - {f"{s}/{id_}" for s, id_ in wanted})
        if unknown:
            _log.warning(
                "%s: %d ids are not queries of %s and are left out: %s.",
                self.name,
                len(unknown),
                task.metadata.name,
                _some(unknown),
            )
        said = [text for subset, id_ in wanted for text in self.of([id_], subset)]
        self._check_news(said, queries, task.metadata.name)

    def _check_news(self, said: Sequence[str], queries: Sequence[Any], task: str) -> None:
        """ValueError where texts are the queries themselves and another column was meant; else a warning."""
        if not queries or any(_words(text) != _words(query) for text, query in zip(said, queries, strict=True)):
            return
        same = f"{self.name}: each of the {len(said)} reasonings is its query of {task} itself"
        if self.left:
            raise ValueError(
                f"{same}. They were read from {self.column!r}, and the rows hold {', '.join(map(repr, self.left))}, "
                f"too, which {'is' if len(self.left) == 1 else 'are'} not read. Name the column of the reasonings "
                f"{TEXT_KEYS[0]!r}."
            )
        _log.warning("%s: such a run shows only what reading a query twice does.", same)


def read_given(path: Path | str) -> GivenFile:
    """The reasonings in a file.

    Raises FileNotFoundError, and ValueError with file and line for another format, a row without id or text, and an id
    that comes twice.
    """
    path = Path(path)
    ending = ending_of(path)
    if ending not in (*_TABLES, *JSON_ENDINGS):
        known = ", ".join((*JSON_ENDINGS, *_TABLES))
        raise ValueError(f"{path}: reasonings are read from {known} (also with .gz at the end), got {ending!r}.")
    text = content(path)
    columns: dict[str, None] = {}
    left: dict[str, None] = {}
    rows = _from_table(path, text) if ending in _TABLES else _from_json(path, text, ending, columns, left)
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for place, id_, said in rows:
        if not id_:
            raise ValueError(f"{place}: the query id is empty. Give the id that the task has.")
        if id_ in found:
            raise ValueError(f"{place}: the query {id_!r} has a reasoning already, at {places[id_]}. Keep one of them.")
        try:
            check_text(said, 0, "Reasoning")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        found[id_], places[id_] = said, place
    if not found:
        raise ValueError(f"{path} holds no reasoning. Give one row per query: its id and the text.")
    others = tuple(key for key in left if key not in columns)
    if others and (unclear := [key for key in columns if key in _UNCLEAR]):
        _log.warning(
            "%s: the reasonings are read from %s, which may be the query; %s are left out. Name the column that is "
            "meant %r.",
            path.name,
            _some(unclear),
            _some(others),
            TEXT_KEYS[0],
        )
    return GivenFile(path.name, found, ", ".join(columns), others)


def _from_json(
    path: Path, text: str, ending: str, columns: dict[str, None], left: dict[str, None]
) -> Iterator[tuple[str, str, str]]:
    """Rows; the keys that are read, and those of other texts, are put into `columns` and `left`."""
    for what, number, record in json_records(path, text, ending):
        place = f"{path}, {what} {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a JSON object with a query id and a reasoning is needed, got {kind(record)}.")
        id_ = record[_key(place, record, ID_KEYS, "query id")]
        if isinstance(id_, bool) or not isinstance(id_, str | int):
            raise ValueError(f"{place}: the query id must be a string or a whole number, got {kind(id_)}.")
        column = _key(place, record, TEXT_KEYS, "reasoning")
        said = record[column]
        columns[column] = None
        left |= {key: None for key, value in record.items() if isinstance(value, str) and _is_left(key, column)}
        if not isinstance(said, str):
            raise ValueError(f"{place}: the reasoning must be a string, got {kind(said)}.")
        yield place, str(id_), said


def _is_left(key: str, column: str) -> bool:
    """Whether a text under this key may be the reasoning that was meant; the query's own place is behind all others."""
    return key not in (*ID_KEYS, column) and (key not in TEXT_KEYS or column in _UNCLEAR)


def _key(place: str, record: Mapping[str, Any], keys: Iterable[str], what: str) -> str:
    for key in keys:
        if key in record:
            return key
    held = ", ".join(record) or "nothing"
    raise ValueError(f"{place}: no {what}: one of {', '.join(keys)} is needed, the row holds {held:.80}.")


def _from_table(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    rows = _quoted(path, text)
    for position, (number, cells) in enumerate(_plain(text) if rows is None else rows):
        place = f"{path}, line {number}"
        if len(cells) != 2:
            raise ValueError(f"{place}: a row is a query id, one tab and a text, this one has {len(cells)} columns.")
        names = [cell.strip().lower() for cell in cells]
        if position == 0 and names[0] in ID_KEYS and names[1] in TEXT_KEYS:
            continue
        yield place, cells[0].strip(), cells[1]


def _quoted(path: Path, text: str) -> list[tuple[int, list[str]]] | None:
    """Rows as Python's csv writes them, None for a text whose quotation marks are none of csv's.

    Raises ValueError for a text of several lines each of which is a row, too.
    """
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter="\t", strict=True)
    rows: list[tuple[int, list[str]]] = []
    before = 0
    try:
        for cells in reader:
            own = lines[before : reader.line_num]
            if len(own) > 1 and all(line.count("\t") == 1 for line in own if line.strip()):
                raise ValueError(
                    f"{path}, lines {before + 1} to {reader.line_num}: a quotation mark at the beginning of a text is "
                    "closed on a later line, and between them each line is a row of its own, so that this is either "
                    f"one text of {len(own)} lines or {len(own)} rows. Write the file as .jsonl, or take the "
                    "quotation marks at the beginnings of texts away."
                )
            if cells:
                rows.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        if "field larger" in str(error):
            raise ValueError(f"{path}, line {before + 1}: {error} characters. Write it as .jsonl.") from error
        return None
    return rows if all(len(cells) == 2 for _, cells in rows) else None


def _plain(text: str) -> list[tuple[int, list[str]]]:
    return [(number, line.split("\t")) for number, line in enumerate(split_lines(text), start=1) if line.strip()]


def _words(text: Any) -> list[str]:
    return str(text).casefold().split()


def _some(ids: Iterable[str]) -> str:
    """Some ids for a message."""
    every = list(ids)
    shown = ", ".join(f"{id_!r:.60}" for id_ in every[:_NAMED])
    return shown + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
