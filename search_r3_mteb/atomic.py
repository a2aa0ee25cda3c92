"""Atomic writes: a file or folder is complete or absent, whenever the process is killed.

New content has a hidden name beside its place, reaches the disk, and is renamed. A folder cannot be renamed over
another, so the old one is renamed aside first; `recover` puts it back after a kill between the two renames.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` when the block ends; after an error `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, line ends as they are."""
    with written_file(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON object per line. ASCII escapes keep even lone surrogates."""
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def write_array(path: Path, array: Any) -> None:
    """Write a NumPy array as `.npy`, without pickle."""
    import numpy as np

    with written_file(path) as stream:
        np.save(stream, array, allow_pickle=False)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends; after an error `folder` is as it was.

    Where `folder` is a symbolic link, the folder that it leads to is replaced, and the link stays.
    """
    folder = _followed(folder)
    recover(folder)
    unfinished, replaced = _aside(folder, "unfinished"), _aside(folder, "replaced")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        flush(unfinished)
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    except Exception:
        recover(folder)
        raise
    flush_one(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def removed_folder(folder: Path) -> None:
    """Remove a folder under another name: a folder that is half removed must not look complete."""
    folder = _followed(folder)
    removed = _aside(folder, "removed")
    folder.rename(removed)
    shutil.rmtree(removed)


def recover(folder: Path) -> None:
    """Undo a replacement of `folder` that a kill interrupted, or finish an interrupted removal."""
    folder = _followed(folder)
    put_back(folder)
    for what in ("unfinished", "replaced", "removed"):
        if _aside(folder, what).exists():
            shutil.rmtree(_aside(folder, what))


def put_back(folder: Path) -> None:
    """Rename `folder` back where a kill between the two renames of its replacement left it; for those who read it."""
    folder = _followed(folder)
    if folder.name and _aside(folder, "replaced").is_dir() and not folder.exists():
        _aside(folder, "replaced").rename(folder)


def left_behind(parent: Path, pattern: str) -> set[Path]:
    """The folders in `parent`, by a pattern of their names, for which a killed process left work for `recover`."""
    return {path.with_name(path.name[1:].rpartition(".")[0]) for path in parent.glob(f".{pattern}.*")}


def flush(folder: Path) -> None:
    """Force every file below `folder`, and the folders, to the disk: a rename must not overtake the content."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        flush_one(path)


def flush_one(path: Path) -> None:
    """Force one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _followed(folder: Path) -> Path:
    """Where a symbolic link leads, which may be nowhere yet; other folders as they are."""
    return folder.resolve() if folder.is_symlink() else folder


def _aside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
