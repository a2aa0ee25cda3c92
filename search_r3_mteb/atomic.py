"""Atomic writes: a file or folder is complete or absent, whenever the process is killed.

New content has a hidden name beside its place, reaches the disk, and takes the place by one rename. A folder cannot be
renamed over another: Linux exchanges the two in one step; elsewhere the old one is renamed aside first, and `recover`
or `put_back` puts it back after a kill between the two renames.

    .NAME.TAG~              a file while it is written
    .NAME.TAG.unfinished    a folder while it is written (after the exchange: the old one)
    .NAME.TAG.replaced      the old folder, where the two cannot be exchanged
    .NAME.TAG.removed       a folder while it is removed
    .NAME.TAG.lock          of the process that makes or removes the folder

The process holds a lock on the file, or on the folder's lock file. So whoever finds them knows whether it still lives:
what killed ones left is removed by the next write to the same place, by `recover`, and by `clean`.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from search_r3_mteb.disk import naming
from search_r3_mteb.locks import Marker, abandoned

_KINDS = ("unfinished", "replaced", "removed")
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<tag>[0-9a-f]{6})(?:~|\.(?:unfinished|replaced|removed|lock))", re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` when the block ends; after an error `path` is as it was."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{_literal(path.name)}.??????~"):
            _remove_file(left)
        with _claimed(lambda tag: path.with_name(f".{path.name}.{tag}~")) as claim:
            with os.fdopen(claim.descriptor, "wb", closefd=False) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            claim.path.replace(path)


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
        np.save(_Plain(stream), array, allow_pickle=False)


class _Plain:
    """A stream that NumPy does not take for a file.

    To a file it writes through C, and of an array whose end finds no room it loses that end without an error.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.write = stream.write


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends; after an error `folder` is as it was.

    Where `folder` is a symbolic link, the folder that it leads to is replaced, and the link stays. What is written may
    be read by whoever may read the folder. Raises ValueError for a folder that cannot be exchanged as a whole.
    """
    folder = _followed(folder)
    _check_exchange(folder)
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        with _claimed(lambda tag: _aside(folder, tag, "lock")) as claim:
            unfinished, replaced, _ = _asides(claim)
            unfinished.mkdir()
            try:
                yield unfinished
                _open_to_readers(unfinished)
                flush(unfinished)
                _take_place(unfinished, folder, replaced)
            finally:
                if replaced.is_dir() and not folder.exists():
                    replaced.rename(folder)
                _remove(unfinished, replaced)


def _check_exchange(folder: Path) -> None:
    """Raise for the folder in which this process works, for a mount point, and for one in a folder that is closed."""
    if not folder.is_dir():
        return
    with suppress(OSError):  # a working directory that is gone is not in it
        if Path.cwd().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder}: this command runs in that folder, which is replaced as a whole, so that the shell would be "
                "left in one that is gone. Start it from another place, or name another folder."
            )
    if folder.is_mount():
        raise ValueError(
            f"{folder} is a mount point, which cannot be replaced as a whole. Name a folder in it, such as "
            f"{folder / 'model'}."
        )
    if not os.access(folder.parent, os.W_OK):  # the new folder is written beside the old one
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.parent))


def _open_to_readers(folder: Path) -> None:
    """Give files the permissions that the folder has: safetensors writes them for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(mode)


@contextmanager
def temporary_folder(place: Path, mode: int = 0o777) -> Iterator[Path]:
    """An empty folder for the block, with a hidden name beside `place`; what killed processes left of such is removed.

    The block may rename it.
    """
    recover(place)
    with naming(place), _claimed(lambda tag: _aside(place, tag, "lock")) as claim:
        unfinished = _asides(claim)[0]
        unfinished.mkdir(mode)
        try:
            yield unfinished
        finally:
            _remove(unfinished)


def removed_folder(folder: Path) -> None:
    """Remove a folder under another name: a folder that is half removed must not look complete."""
    folder = _followed(folder)
    with naming(folder), _claimed(lambda tag: _aside(folder, tag, "lock")) as claim:
        removed = _asides(claim)[2]
        folder.rename(removed)
        shutil.rmtree(removed)


def recover(folder: Path) -> None:
    """Undo a replacement of `folder` that a kill interrupted, or finish an interrupted removal."""
    folder = _followed(folder)
    put_back(folder)
    for tag in _tags(folder):
        with abandoned(_aside(folder, tag, "lock")) as dead:
            if dead:
                _remove(*(_aside(folder, tag, kind) for kind in _KINDS))
                _aside(folder, tag, "lock").unlink(missing_ok=True)


def put_back(folder: Path) -> None:
    """Rename `folder` back where a kill between the two renames of its replacement left it; for those who read it."""
    folder = _followed(folder)
    if not folder.name or folder.exists():
        return
    for replaced in folder.parent.glob(f".{_literal(folder.name)}.??????.replaced"):
        with abandoned(replaced.with_suffix(".lock"), wait=True):  # a living process is about to rename the new one
            if replaced.is_dir() and not folder.exists():
                replaced.rename(folder)


def left_behind(parent: Path, pattern: str) -> set[Path]:
    """The folders in `parent`, by a pattern of their names, for which there is work for `recover`, or in progress."""
    found = (_LEFT.fullmatch(path.name) for path in parent.glob(".*") if not path.name.endswith("~"))
    return {parent / each["name"] for each in found if each and fnmatch(each["name"], pattern)}


def clean(*folders: Path) -> None:
    """Remove what killed processes left half-written in these folders, and put back what they were replacing."""
    for folder in folders:
        for path in folder.glob(".*~"):
            if _LEFT.fullmatch(path.name):
                _remove_file(path)
        for path in left_behind(folder, "*"):
            recover(path)


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


def _take_place(unfinished: Path, folder: Path, replaced: Path) -> None:
    """Rename `unfinished` to `folder`; an earlier folder is then under one of the two other names."""
    if not (folder.exists() and _exchanged(unfinished, folder)):
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    flush_one(folder.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot, and nothing was done."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28, musl 1.2.6
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def _claimed(place: Callable[[str], Path]) -> Iterator[Marker]:
    """A claim of this process on a name that nobody has, by a function of a random tag."""
    while True:
        try:
            claim = Marker(place(uuid.uuid4().hex[:6]))
            break
        except FileExistsError:
            continue
    try:
        yield claim
    finally:
        claim.release()


def _remove_file(path: Path) -> None:
    with abandoned(path) as dead:
        if dead:
            path.unlink(missing_ok=True)


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _tags(folder: Path) -> set[str]:
    """The tags of what has been put beside a folder."""
    if not folder.name:
        return set()
    found = (_LEFT.fullmatch(path.name) for path in folder.parent.glob(f".{_literal(folder.name)}.??????.*"))
    return {each["tag"] for each in found if each and each["name"] == folder.name}


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def _asides(claim: Marker) -> tuple[Path, Path, Path]:
    unfinished, replaced, removed = (claim.path.with_suffix(f".{kind}") for kind in _KINDS)
    return unfinished, replaced, removed


def _aside(folder: Path, tag: str, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{tag}.{kind}")


def _followed(folder: Path) -> Path:
    """Where a symbolic link leads, which may be nowhere yet; other folders as they are."""
    return folder.resolve() if folder.is_symlink() else folder
