"""The texts and ids of a training set, one row at a time: JSON lines of several tools' formats, or a BEIR folder.

Columns are known by their names (`column_roles`). A document is a text, or an object with "text" and perhaps "title"
and an id; a column may hold a list of them. Columns of ids alone (Tevatron's, MS MARCO's) count as ids.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from search_r3_mteb.column_roles import ColumnRole, role_of, role_of_ids
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.files.opening import JSON_LINES, ending_of
from search_r3_mteb.json_files import kind, parse_json
from search_r3_mteb.tasks.beir_folder import read_corpus, read_qrels, read_queries

_OWN_IDS = ("id", "_id", "docid", "doc_id", "passage_id")


@dataclass(frozen=True)
class TrainingText:
    """One text of a row. `forms` are the text and, where it has a title, both joined; none where only the id is known.

    `number` is that of the line, from 1 (of the corpus or queries file in a BEIR folder).
    """

    number: int
    role: ColumnRole
    forms: tuple[str, ...]
    id: str | None = None


def read_training(path: Path, split: str | None = None) -> Iterator[list[TrainingText]]:
    """The texts of each row, streamed; a BEIR folder gives its judged queries and its documents, one by one.

    `split` is that of a BEIR folder's judgements ("train" unless given): queries without judgements there are not
    trained on, and documents that it does not call relevant count as negatives. Raises FileNotFoundError, and
    ValueError, with file and line, for what is not such a file.
    """
    if path.is_dir():
        return ([each] for each in _beir(path, split or "train"))
    if split is not None:
        raise ValueError(f"--train-split {split} is for a BEIR folder, and {path} is a file: leave it out.")
    return _lines(path)


def _beir(folder: Path, split: str) -> Iterator[TrainingText]:
    relevant: set[str] = set()
    judged: set[str] = set()
    for row in read_qrels(folder, split):
        judged.add(row.query_id)
        if row.relevance > 0:
            relevant.add(row.document_id)
    for number, query in enumerate(read_queries(folder), start=1):
        if query.id in judged:
            yield TrainingText(number, "query", (query.text,), query.id)
    for number, document in enumerate(read_corpus(folder), start=1):
        role: ColumnRole = "positive" if document.id in relevant else "negative"
        yield TrainingText(number, role, _forms(document.title, document.text), document.id)


def _lines(path: Path) -> Iterator[list[TrainingText]]:
    if not path.is_file():
        raise FileNotFoundError(f"--train {path}: no such file or folder.")
    if ending_of(path) not in JSON_LINES:
        raise ValueError(
            f"--train {path}: expected JSON lines ({', '.join(JSON_LINES)}, each also .gz) or a BEIR folder. Write one "
            'JSON object per line, such as {"query": ..., "positive": ..., "negatives": [...]}.'
        )
    packed = path.suffix.lower() == ".gz"
    known = False
    with cast("Any", gzip.open(path, "rb") if packed else path.open("rb")) as stream:
        try:
            for number, raw in enumerate(stream, start=1):
                if raw.strip():
                    found = row_texts(parse_json(raw, path, number), f"{path}, line {number}", number)
                    known = known or bool(found)
                    yield found
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file ({error}). Copy it again.") from error
    if not known:
        raise ValueError(f"--train {path}: holds no row.")


def row_texts(record: Any, place: str, number: int) -> list[TrainingText]:
    """The texts and ids of one record. Raises ValueError, naming `place`, where no column is known."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{place}: a row is one JSON object, got {kind(record)}.")
    texts: list[TrainingText] = []
    ids: list[tuple[ColumnRole, str]] = []
    for name, value in record.items():
        role = role_of(name)
        if role is not None:
            texts += [TrainingText(number, role, *each) for each in _documents(value, f"{place}: {name!r}")]
            continue
        role = role_of_ids(name)
        if role is not None:
            listed = value if isinstance(value, list) else [value]
            ids += [(role, str(each)) for each in listed if isinstance(each, str | int) and str(each)]
    if not texts and not ids:
        raise ValueError(
            f"{place}: no column of {', '.join(map(repr, record)) or '(an empty object)'} is known to hold queries or "
            "documents. Known are query (anchor, question), positive (pos, answer, positive_passages), negatives (neg, "
            "hard_negative_ctxs) and their kind, and columns of ids; rename yours."
        )
    return _with_ids(texts, ids, number)


def _with_ids(texts: list[TrainingText], ids: list[tuple[ColumnRole, str]], number: int) -> list[TrainingText]:
    """The texts with the ids of the record's own columns; ids without a text of their own stand apart."""
    for role, id_ in ids:
        places = [row for row, each in enumerate(texts) if each.role == role]
        if len(places) == 1 and texts[places[0]].id is None and sum(one == role for one, _ in ids) == 1:
            own = texts[places[0]]
            texts[places[0]] = TrainingText(number, role, own.forms, id_)
        else:
            texts.append(TrainingText(number, role, (), id_))
    return texts


def _documents(value: Any, place: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """(forms, id) of each document in the value of a column."""
    if value is None:
        return
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield _forms("", each), None
        elif isinstance(each, Mapping) and isinstance(each.get("text"), str):
            title = each.get("title")
            own = next((each[name] for name in _OWN_IDS if isinstance(each.get(name), str | int)), None)
            yield _forms(title if isinstance(title, str) else "", each["text"]), None if own is None else str(own)
        else:
            raise ValueError(f"{place} must hold texts, or objects with 'text', got {kind(each)}.")


def _forms(title: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form for form in (join_title(title, text), text) if form.strip()))
