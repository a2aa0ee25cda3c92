"""Documents as one text each: title and body joined the way MTEB and BEIR join them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Documents: TypeAlias = Sequence[str | Mapping[str, Any]] | Mapping[str, Any]


def join_title(title: str | None, text: str) -> str:
    """`title` and `text` with one space between, stripped of white space at the ends; without a title, the text."""
    return f"{title} {text}".strip() if title else text.strip()


def document_texts(documents: Documents) -> list[str]:
    """One text per document, in order.

    `documents` is a list whose members are strings or {"text", "title"?}, or columns {"text": [...], "title"?: [...]},
    or a BEIR corpus {id: {"text", "title"?}}. Other keys of a document (id, metadata) are not embedded. A string is
    taken as it is. Raises TypeError and ValueError that name the document.
    """
    if isinstance(documents, str):
        raise TypeError(f"A list of documents is needed, got one string {documents[:40]!r}. Write [document].")
    if isinstance(documents, Mapping):
        documents = _from_columns(documents) if _has_columns(documents) else list(documents.values())
    return [document_text(document, position) for position, document in enumerate(documents)]


def _has_columns(documents: Mapping[str, Any]) -> bool:
    return isinstance(documents.get("text"), Sequence) and not isinstance(documents["text"], str)


def _from_columns(columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    texts = columns["text"]
    titles = columns.get("title") or [None] * len(texts)
    if isinstance(titles, str) or len(titles) != len(texts):
        raise ValueError(
            f"The columns hold {len(titles)} titles for {len(texts)} texts; give one title (or '') for each."
        )
    return [{"title": title, "text": text} for title, text in zip(titles, texts, strict=True)]


def document_text(document: Any, position: int = 0) -> str:
    """The text of one document; `position` is its place in the caller's list, for the message."""
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        raise TypeError(
            f"Document {position} is of type {type(document).__name__}: {document!r:.60}. "
            "Give a string, or a dict with 'text' and perhaps 'title'."
        )
    if "text" not in document:
        raise ValueError(f"Document {position} has no 'text', only {sorted(map(str, document))}. Name its body 'text'.")
    title, text = document.get("title"), document["text"]
    for name, value in (("title", title), ("text", text)):
        if not isinstance(value, str) and not (name == "title" and value is None):
            raise TypeError(
                f"The {name} of document {position} is of type {type(value).__name__}, not str: {value!r:.60}. "
                "Convert it, or drop the document."
            )
    return join_title(title, text)
