"""Documents as one text each: title and body joined the way MTEB and BEIR join them."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from search_r3_mteb.encoder.tables import cells, check_list, column, column_names, is_missing, type_name

_COLUMNS = ("title", "text", "body")
Documents: TypeAlias = Sequence[str | Mapping[str, Any]] | Mapping[str, Any]


def join_title(title: str | None, text: str) -> str:
    """`title` and `text` with one space between, stripped of white space at the ends; without a title, the text."""
    return f"{title} {text}".strip() if title else text.strip()


def document_texts(documents: Documents) -> list[str]:
    """One text per document, in order.

    `documents` is a list whose members are strings or {"text", "title"?}, or columns {"text": [...], "title"?: [...]}
    as a mapping or a table (pandas, polars, pyarrow, datasets, a numpy array with fields), or a BEIR corpus
    {id: {"text", "title"?}}. Other keys of a document (id, metadata) are not embedded. A string is taken as it is.
    Raises TypeError and ValueError that name the document.
    """
    if isinstance(documents, str):
        raise TypeError(f"A list of documents is needed, got one string {documents[:40]!r}. Write [document].")
    check_list(documents, "document")
    names = column_names(documents)
    rows: Any = documents
    if names is not None:
        if "text" not in names:
            raise ValueError(
                f"The {type_name(documents)} has no column 'text', only {names}. Rename that of the bodies."
            )
        rows = _from_columns({name: column(documents, name) for name in _COLUMNS if name in names})
    elif isinstance(documents, Mapping):
        rows = _from_columns(documents) if has_columns(documents) else _values(documents)
    return [document_text(document, position) for position, document in enumerate(rows)]


def has_columns(documents: Mapping[str, Any]) -> bool:
    """Whether a mapping holds columns {"text": [...], ...}, and not documents by id."""
    column_of_texts = documents.get("text")
    return hasattr(column_of_texts, "__iter__") and not isinstance(column_of_texts, str | bytes | Mapping)


def _from_columns(columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    texts = cells(columns["text"])
    found = {"text": texts}
    for name in ("title", "body"):
        values = columns.get(name)
        if values is None:
            continue
        if isinstance(values, str) or len(values) != len(texts):
            raise ValueError(
                f"The columns hold {len(values)} {name}s for {len(texts)} texts; give one {name} (or '') for each."
            )
        found[name] = cells(values)
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _values(documents: Mapping[str, Any]) -> list[Any]:
    """The documents of a corpus by id. A string in place of one may be a field of a single document."""
    for key, document in documents.items():
        if isinstance(document, str):
            raise TypeError(
                f"A mapping of documents holds {{'text', 'title'}} under each id, got a string under {key!r}: "
                f"{document!r:.40}. Name the body of a single document 'text'; of texts by id write list(m.values())."
            )
    return list(documents.values())


def document_text(document: Any, position: int = 0) -> str:
    """The text of one document; `position` is its place in the caller's list, for the message."""
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        raise TypeError(
            f"Document {position} is of type {type(document).__name__}: {reprlib.repr(document)}. "
            "Give a string, or a dict with 'text' and perhaps 'title'."
        )
    if "text" not in document:
        raise ValueError(f"Document {position} has no 'text', only {sorted(map(str, document))}. Name its body 'text'.")
    title, text = document.get("title"), document["text"]
    title = None if is_missing(title) else title
    for name, value in (("title", title), ("text", text)):
        if not isinstance(value, str) and not (name == "title" and value is None):
            raise TypeError(
                f"The {name} of document {position} is of type {type(value).__name__}, not str: {reprlib.repr(value)}. "
                "Convert it, or drop the document."
            )
    if isinstance(document.get("body"), str) and text == join_title(title, document["body"]):
        return str(text)  # MTEB's form: the title is in the text already
    return join_title(title, text)
