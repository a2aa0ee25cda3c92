"""Checks that a text is one, before it is tokenised."""

from collections.abc import Sequence
from typing import Any


def check_texts(texts: Sequence[str]) -> None:
    """TypeError for one string in place of several, and what `check_text` raises for each."""
    if isinstance(texts, str):
        raise TypeError(f"A list of texts is needed, got one string {texts[:40]!r}. Write [text].")
    for index, text in enumerate(texts):
        check_text(text, index)


def check_text(text: Any, index: int, what: str = "Text") -> None:
    """TypeError unless `text` is a string; ValueError when UTF-8 cannot hold it. `index` is for the message."""
    if not isinstance(text, str):
        raise TypeError(
            f"{what} {index} is of type {type(text).__name__}, not str: {text!r:.60}. Convert it, or drop the row."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {index} holds a lone surrogate {text[error.start]!r} at character {error.start}, which no "
            "tokenizer can read. Decode the source with errors='replace', or remove the character."
        ) from error
