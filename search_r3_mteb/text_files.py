"""Texts of files, line by line."""

import json
from pathlib import Path

from search_r3_mteb.encoder.documents import document_text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises ValueError where it is not UTF-8: a wrong decoding would go unnoticed."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 ({error.reason}). Convert the file to UTF-8.") from error
    lines = text.split("\n")  # not splitlines: U+2028 and others do not end a line
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_texts(source: Path) -> list[str]:
    """The texts of a file: one per line, or one JSON object per line with "text" and perhaps "title" (.jsonl)."""
    lines = read_lines(source)
    if source.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            texts.append(document_text(json.loads(line)))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{source}, line {number}: {error}") from error
    return texts
