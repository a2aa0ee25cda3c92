"""What callers hand in, checked before any work is done: one bad text must not end a run of hours at its last chunk."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_r3_mteb.encoder.documents import document_texts
from search_r3_mteb.encoder.prompts import check_text


def texts_of(texts: Any) -> list[str]:
    """The texts as a list; a single string is a list of one. Raises TypeError and ValueError that name the text."""
    if isinstance(texts, Mapping):
        raise TypeError(
            f"A text or a list of texts is needed, got a mapping with {list(texts)!r:.60}. Write [text, ...]."
        )
    return _checked([texts] if isinstance(texts, str) else list(_iterable(texts)))


def documents_of(documents: Any) -> tuple[list[str], bool]:
    """The text of each document, and whether a single one was given. Raises TypeError and ValueError that name it."""
    single = isinstance(documents, str) or (isinstance(documents, Mapping) and isinstance(documents.get("text"), str))
    return _checked(document_texts([documents] if single else _iterable(documents))), single


def _iterable(texts: Any) -> Any:
    if isinstance(texts, bytes) or not hasattr(texts, "__iter__"):
        raise TypeError(
            f"A text or a list of texts is needed, got {type(texts).__name__}: {texts!r:.60}. Write [text, ...]."
        )
    return texts


def _checked(texts: list[Any]) -> list[str]:
    for position, text in enumerate(texts):
        check_text(text, position)
    return texts


def instructions_of(instruction: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One instruction a text: one for all, or one for each."""
    if instruction is None or isinstance(instruction, str):
        given = [instruction] * count
    else:
        given = list(instruction)
    if len(given) != count:
        raise ValueError(f"{len(given)} instructions were given for {count} texts; give one for each, or one for all.")
    for position, each in enumerate(given):
        if each is not None:
            check_text(each, position, "Instruction")
    return given


def check_batch_size(batch_size: int | None) -> None:
    """Raises ValueError unless `batch_size` is None or at least one row."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 row.")


def refuse_keywords(method: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raises TypeError for keywords that `method` does not have, with those that it has."""
    if unknown:
        parameters = inspect.signature(method).parameters.values()
        valid = ", ".join(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        raise TypeError(f"{method.__name__}() has no keyword {', '.join(sorted(unknown))}. The valid ones are {valid}.")
