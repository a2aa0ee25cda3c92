"""Reasonings of queries from a file, by query id: what an agent has thought, or a published set of rewrites.

    .jsonl, .ndjson, .jl, .json   {"_id" or another of ID_KEYS: ..., "reasoning" or another of TEXT_KEYS: ...}
    .tsv, .txt                    query id, tab, text; a header row of such names is skipped

Of several such keys the first of the list counts: per-query files of `search-r3 evaluate` ("query_id",
"reasoning") and QueryGym's JSON lines ("qid", and the rewrite in "query") are read as they are. Tables are read as
QueryGym writes its `.queries.tsv` (Python's csv: a text with quotation marks, tabs or line breaks is quoted, marks in
it doubled), or else as anserini reads its topics (one row per line, quotation marks are text); sources: QueryGym's
data/dataloader.py and runs, anserini's TsvStringTopicReader, as read in November 2026. Either may be packed as .gz.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_TABLES = (".tsv", ".txt")
_NAMED = 5  # ids in a message
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenFile:
    """The reasonings of a file by query id. `name` is the file's, without its folder."""

    name: str
    texts: Mapping[str, str]

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
                "%s: %d ids are no queries of %s and are left out: %s.",
                self.name,
                len(unknown),
                task.metadata.name,
                _some(unknown),
            )


def read_given(path: Path | str) -> GivenFile:
    """The reasonings in a file.

    Raises FileNotFoundError, and ValueError with file and line for another format, a row without id or text, and an id
    that comes twice.
    """
    path = Path(path)
    ending = ending_of(path)
    if ending not in (*_TABLES, *JSON_ENDINGS):
        known = ", ".join((*JSON_ENDINGS, *_TABLES))
        raise ValueError(f"{path}: reasonings are read from {known} (perhaps with .gz behind), got {ending!r}.")
    text = content(path)
    rows = _from_table(path, text) if ending in _TABLES else _from_json(path, text, ending)
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
    return GivenFile(path.name, found)


def _from_json(path: Path, text: str, ending: str) -> Iterator[tuple[str, str, str]]:
    for what, number, record in json_records(path, text, ending):
        place = f"{path}, {what} {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a JSON object with a query id and a reasoning is needed, got {kind(record)}.")
        id_ = _value(place, record, ID_KEYS, "query id")
        if isinstance(id_, bool) or not isinstance(id_, str | int):
            raise ValueError(f"{place}: the query id must be a string or a whole number, got {kind(id_)}.")
        said = _value(place, record, TEXT_KEYS, "reasoning")
        if not isinstance(said, str):
            raise ValueError(f"{place}: the reasoning must be a string, got {kind(said)}.")
        yield place, str(id_), said


def _value(place: str, record: Mapping[str, Any], keys: Iterable[str], what: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
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
    """Rows as Python's csv writes them, None for a text whose quotation marks are none of csv's."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    rows: list[tuple[int, list[str]]] = []
    before = 0
    try:
        for cells in reader:
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


def _some(ids: Iterable[str]) -> str:
    """Some ids for a message."""
    every = list(ids)
    shown = ", ".join(f"{id_!r:.60}" for id_ in every[:_NAMED])
    return shown + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
