"""The BEIR folder layout: streaming readers whose errors name file, line and reason, and one writer.

A folder holds `corpus.jsonl` ({"_id", "title", "text"}), `queries.jsonl` ({"_id", "text"}) and `qrels/SPLIT.tsv` (a
header row, then query id, document id and an integer relevance, separated by tabs), each also with `.gz` behind its
name. Source: BEIR's GenericDataLoader (beir 2.2.0); unlike it, nothing malformed is skipped silently. Further
differences: the title may be missing or null (it reads as ""), ids may be JSON integers, blank lines and a byte order
mark are skipped.

The same folder as an MTEB task is `mteb_tasks.BeirFolder`.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import reprlib
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from search_r3_mteb.atomic import replaced_folder
from search_r3_mteb.json_files import kind, parse_json

_HASH_CHUNK = 1 << 20  # bytes read at a time
# Names of the columns of judgements in the wild, without case and signs.
JUDGEMENT_COLUMNS = (
    ("queryid", "qid", "query", "topic", "topicid", "questionid"),
    ("corpusid", "docid", "did", "documentid", "document", "doc", "docno", "pid", "passageid", "itemid", "productid"),
    ("score", "relevance", "rel", "label", "grade", "judgment", "judgement", "relevancy"),
)


class Document(NamedTuple):
    """One document; the title is "" where the file has none."""

    id: str
    title: str
    text: str


class Query(NamedTuple):
    """One query."""

    id: str
    text: str


class Judgement(NamedTuple):
    """One row of a qrels file; relevance is graded (0: judged, not relevant)."""

    query_id: str
    document_id: str
    relevance: int


def read_corpus(path: str | Path) -> Iterator[Document]:
    """Stream the documents of a BEIR folder (or of one corpus file, .jsonl or .jsonl.gz), in file order.

    Raises FileNotFoundError for a missing file and ValueError (file, line, reason) for a malformed line, a repeated id,
    and a text that is not a string or cannot be written as UTF-8.
    """
    for file, number, record in _records(_find(path, "corpus.jsonl")):
        title = record.get("title")
        yield Document(
            id=_id(file, number, record),
            title="" if title is None else _text(file, number, record, "title"),
            text=_text(file, number, record, "text"),
        )


def read_queries(path: str | Path) -> Iterator[Query]:
    """Stream the queries of a BEIR folder (or of one queries file), in file order. Raises like `read_corpus`."""
    for file, number, record in _records(_find(path, "queries.jsonl")):
        yield Query(id=_id(file, number, record), text=_text(file, number, record, "text"))


def read_qrels(
    path: str | Path,
    split: str | None = None,
    *,
    queries: Container[str] | None = None,
    documents: Container[str] | None = None,
) -> Iterator[Judgement]:
    """Stream the judgements of one split of a BEIR folder (see `choose_split`), or of one qrels file.

    With `queries` or `documents` (known ids) a row that names another id raises. Raises FileNotFoundError for a missing
    file, ValueError (file, line, reason) for a missing header row, one that names the columns in another order, a row
    without exactly three columns, a relevance that is not an integer, and a pair judged twice with different relevance
    (the same judgement twice is fine).
    """
    path = Path(path)
    file = path if path.is_file() else _find(path / "qrels", f"{choose_split(path, split)}.tsv")
    seen: dict[tuple[str, str], int] = {}
    header_read = False
    for number, line in _lines(file):
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != 3:
            raise _error(
                file,
                number,
                f"a qrels row has 3 columns separated by tabs, this one has {len(columns)}: {reprlib.repr(line)}",
            )
        query_id, document_id, relevance = columns
        if not header_read:
            if (wrong := header_fault(columns)) is not None:
                raise _error(file, number, wrong)
            header_read = True
            continue
        if not is_relevance(relevance):
            raise _error(file, number, f"relevance must be an integer, got {reprlib.repr(relevance)}")
        if queries is not None and query_id not in queries:
            raise _error(file, number, f"judges query {query_id!r}, which the queries file does not have")
        if documents is not None and document_id not in documents:
            raise _error(file, number, f"judges document {document_id!r}, which the corpus file does not have")
        judgement = Judgement(query_id, document_id, int(relevance))
        first = seen.setdefault((query_id, document_id), judgement.relevance)
        if first != judgement.relevance:
            raise _error(
                file, number, f"judges {query_id!r}, {document_id!r} {relevance}, an earlier row judged it {first}"
            )
        yield judgement


def read_relevance(path: str | Path, split: str | None = None) -> dict[str, dict[str, int]]:
    """The judgements of one split as query id -> {document id: relevance}. Raises like `read_qrels`."""
    relevance: dict[str, dict[str, int]] = {}
    for judgement in read_qrels(path, split):
        relevance.setdefault(judgement.query_id, {})[judgement.document_id] = judgement.relevance
    return relevance


def splits(path: str | Path) -> list[str]:
    """The names of the splits under `qrels/`, sorted."""
    files = (file.name for file in (Path(path) / "qrels").glob("*.tsv*"))
    return sorted(
        {name.removesuffix(".gz").removesuffix(".tsv") for name in files if name.endswith((".tsv", ".tsv.gz"))}
    )


def choose_split(path: str | Path, split: str | None = None) -> str:
    """`split` if the folder has it; without one "test", else the only split. Raises ValueError listing the splits."""
    _folder(path)
    available = splits(path)
    if not available:
        raise FileNotFoundError(
            f"BEIR folder {str(path)!r}: no qrels/SPLIT.tsv, which says what is relevant. Make it from a table of "
            f"query-id, corpus-id and score: search-r3 convert {path} --output FOLDER --judgements FILE"
        )
    if split is None:
        if "test" in available or len(available) == 1:
            return "test" if "test" in available else available[0]
        raise ValueError(
            f"BEIR folder {str(path)!r}: no split was named and 'test' is not among {', '.join(available)}; name one."
        )
    if split not in available:
        raise ValueError(f"BEIR folder {str(path)!r}: no split {split!r}; it has {', '.join(available)}.")
    return split


def content_hash(path: str | Path, split: str) -> str:
    """SHA-256 (64 hex digits) of corpus, queries and one qrels file, uncompressed."""
    digest = hashlib.sha256()
    path = _folder(path)
    for folder, name in ((path, "corpus.jsonl"), (path, "queries.jsonl"), (path / "qrels", f"{split}.tsv")):
        file, size = _find(folder, name), 0
        with _open(file) as stream:
            while chunk := _read(file, stream):
                size += len(chunk)
                digest.update(chunk)
        digest.update(f"\0{name} {size}\0".encode())  # where one file ends and the next begins
    return digest.hexdigest()


def write_beir(
    folder: str | Path,
    *,
    corpus: Iterable[tuple[str, str, str]],
    queries: Iterable[tuple[str, str]] | None,
    qrels: Mapping[str, Iterable[tuple[str, str, int]]],
) -> None:
    """Write (id, title, text) documents, (id, text) queries and (query, document, relevance) rows per split, streaming.

    Without `queries` (None) documents are all that is written. Rows are read in that order, one after the other.
    The folder may exist if it is empty or holds only files that are overwritten; otherwise FileExistsError, since an
    old split beside a new corpus would be evaluated without complaint. So is a file in its place.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():  # a link to a file, too
        raise FileExistsError(f"{folder} is a file, and a BEIR folder would take its place. Name another place.")
    wanted = {Path("corpus.jsonl")}
    if queries is not None:
        wanted |= {Path("queries.jsonl"), *(Path("qrels", f"{split}.tsv") for split in qrels)}
    foreign = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    foreign = [name for name in foreign if Path(name) not in wanted]
    if foreign:
        raise FileExistsError(
            f"{folder} holds {foreign[0]!r}, which would not belong to the task written. Give a new or empty folder."
        )
    with replaced_folder(folder) as new:
        with (new / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
            for id_, title, text in corpus:
                stream.write(json.dumps({"_id": id_, "title": title, "text": text}, ensure_ascii=False) + "\n")
        if queries is None:
            return
        with (new / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
            for id_, text in queries:
                stream.write(json.dumps({"_id": id_, "text": text}, ensure_ascii=False) + "\n")
        (new / "qrels").mkdir()
        for split, rows in qrels.items():
            with (new / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as stream:
                stream.write("query-id\tcorpus-id\tscore\n")
                stream.writelines(f"{query_id}\t{document_id}\t{grade}\n" for query_id, document_id, grade in rows)


def _error(file: Path, number: int, reason: str) -> ValueError:
    return ValueError(f"{file}, line {number}: {reason}.")


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        prepared = (
            f" `python -m train.prepare {path.name}` in a checkout makes it, where `--list` names that set."
            if path.parent.name == "data" and re.fullmatch(r"[\w-]+", path.name)
            else ""
        )
        raise FileNotFoundError(
            f"BEIR folder {str(path)!r} does not exist or is not a folder; it holds corpus.jsonl, "
            f"queries.jsonl and qrels/.{prepared}"
        )
    return path


def _find(path: str | Path, name: str) -> Path:
    """`path` itself if it is a file, else `name` or `name`.gz in the folder, but not both."""
    path = Path(path)
    if path.is_file():
        return path
    plain, packed = _folder(path) / name, path / f"{name}.gz"
    if plain.is_file() and packed.is_file():
        raise ValueError(f"BEIR folder {str(path)!r} holds both {name} and {name}.gz; remove one of them.")
    if packed.is_file():
        return packed
    if plain.is_file():
        return plain
    raise FileNotFoundError(f"BEIR folder {str(path)!r}: neither {name} nor {name}.gz is there.")


def _open(file: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _read(file: Path, stream: BinaryIO) -> bytes:
    try:
        return stream.read(_HASH_CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: damaged or truncated gzip file ({error}); make it again.") from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    number = 0
    with _open(file) as stream:
        try:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise _error(file, number, f"not UTF-8 ({error.reason} at byte {error.start} of the line)") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _error(file, number + 1, f"damaged or truncated gzip file ({error})") from error


def _records(file: Path) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Numbered JSON objects whose "_id" was not seen before."""
    seen: dict[str, int] = {}
    for number, line in _lines(file):
        record = parse_json(line, file, number)
        if not isinstance(record, dict):
            raise _error(file, number, f"a line holds one JSON object, got {kind(record)}")
        first = seen.setdefault(_id(file, number, record), number)
        if first != number:
            raise _error(file, number, f"id {record['_id']!r} was already used in line {first}; ids are unique")
        yield file, number, record


def _id(file: Path, number: int, record: dict[str, Any]) -> str:
    if "_id" not in record:
        raise _error(file, number, f'no "_id"; the object has {_keys(record)}')
    value = record["_id"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise _error(file, number, f'"_id" must be a string that is not empty, got {reprlib.repr(value)}')
    return _utf8(file, number, "_id", value)


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(reprlib.repr, itertools.islice(record, 10))) or "no keys"


def _text(file: Path, number: int, record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise _error(file, number, f'no "{key}"; the object has {_keys(record)}')
    value = record[key]
    if not isinstance(value, str):
        raise _error(file, number, f'"{key}" must be a string, got {kind(value)}')
    return _utf8(file, number, key, value)


def _utf8(file: Path, number: int, key: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _error(file, number, f'"{key}" holds a lone surrogate, which is not text; remove the escape') from error
    return value


def is_relevance(text: str) -> bool:
    """Whether a column of a qrels file is an integer of at most nine digits, which pytrec_eval can hold."""
    return re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text) is not None


def header_fault(columns: Sequence[str]) -> str | None:
    """What is wrong with the first row of a qrels file, None for a header whose names stand in BEIR's order.

    BEIR and MTEB read columns by their place, whatever their names are. Names that are not known are left alone.
    """
    if re.fullmatch(r"\s*[+-]*[0-9.]+\s*", columns[2]):
        return "the header row (query-id, corpus-id, score) is missing; put it first"
    for place, column in enumerate(columns):
        name = re.sub(r"[^a-z]", "", column.lower())
        meant = next((kind for kind, names in enumerate(JUDGEMENT_COLUMNS) if name in names), place)
        if meant != place:
            return (
                f"the header names {', '.join(columns).strip()}, but columns are read in the order query-id, "
                "corpus-id, score; write them in that order"
            )
    return None
