"""Errors of a disk: what could not be written, how much room there is, and what to do, in one message.

A full disk shows itself in many ways: as an OSError that names no file (a write), as one that names a hidden file
beside the place that was meant, or as an exception of a library in Rust (safetensors, tokenizers), which only quotes
the system's number. `naming` makes them one OSError with the path; `explained` says it to people.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "there is not enough space",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EFBIG: "the file became larger than this file system, or `ulimit -f`, allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.EIO: "the disk reported an error",
}
_PLACES = {
    errno.ENAMETOOLONG: "its name is longer than this file system allows",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EEXIST: "something with that name already exists",
    errno.EISDIR: "it is a folder, and a file is needed",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_RUST = re.compile(r"\(os error (\d+)\)")


class NoRoomError(OSError):
    """A file of `needed` bytes that did not fit on its disk; `remedy` says what to do, but for freeing space.

    `room` is what was free when it failed: once others of its files are removed, more is free than the file needs.
    """

    needed = 0
    remedy = "name a place on another file system"

    def __init__(self, number: int | None, reason: str | None, filename: str) -> None:
        super().__init__(number, reason, filename)
        self.room = _room(Path(filename))

    def __str__(self) -> str:
        return explained(self) or super().__str__()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """In the block an error of the disk names `path`, also where what was written has a hidden name beside it.

    A place of the system's own (/proc), which says of what it will not hold that it is not there, denies permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and _not_made(error.filename, path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from error
        if error.errno in _ADVICE or error.errno in _PLACES:
            _name(error, path)
        raise
    except Exception as error:
        number = _number_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def explained(error: BaseException) -> str | None:
    """The message of an error of the disk: path, reason, bytes free, what to do. None for any other error.

    Also of a path that cannot be used at all: too long a name, a file in the place of a folder, and the reverse.
    """
    number = error.errno if isinstance(error, OSError) else _number_of(error)
    given = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    if number in _PLACES and isinstance(given, str | bytes | os.PathLike):
        return f"{Path(os.fsdecode(given))} cannot be used: {_PLACES[number]}. Name another place."
    if number not in _ADVICE:
        return None
    if isinstance(given, int) or not given:  # unknown: where most files are written
        places = {"the working directory": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
        room = "; ".join(f"{place} of {what}: {_room(place)}" for what, place in places.items())
        subject = "A file could not be written or read"
    else:
        place = Path(os.fsdecode(given))
        room = f"{error.needed:,} bytes needed, {error.room}" if isinstance(error, NoRoomError) else _room(place)
        subject = f"{place} could not be {'written' if number in FULL else 'written or read'}"
    if number in FULL:
        advice = f"Free some space, or {error.remedy if isinstance(error, NoRoomError) else NoRoomError.remedy}"
    else:
        advice = "Name a place that this user may use, or change its permissions"
    return (
        f"{subject}: {_ADVICE[number]} ({room}). {advice}, and start the same command again. Nothing that was complete "
        "before has been changed, and what is half-written is not used."
    )


def _not_made(given: object, path: Path) -> bool:
    """Whether what could not be made is a folder above `path`, or a hidden name beside it, in one that is there."""
    if not isinstance(given, str | os.PathLike):
        return False
    place = Path(given)
    ours = place in path.parents or (place.parent == path.parent and place.name.startswith(f".{path.name}."))
    return ours and place.parent.is_dir()


def _name(error: OSError, path: Path) -> None:
    for name in ("filename2", "filename"):
        given = getattr(error, name)
        if isinstance(given, str | os.PathLike) and Path(given).is_relative_to(path.parent):
            first, *rest = Path(given).relative_to(path.parent).parts or ("",)
            if first.startswith(f".{path.name}."):
                setattr(error, name, str(path.joinpath(*rest)))
    if error.filename is None:
        error.filename = str(path)


def _number_of(error: BaseException) -> int | None:
    """The system's number of an error of the disk in the text of an exception of Rust."""
    found = _OF_RUST.search(str(error))
    number = int(found.group(1)) if found else None
    return number if number in _ADVICE else None


def _room(place: Path) -> str:
    """What is free for this user where `place` is, or would be."""
    there = place.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not hasattr(os, "statvfs"):
        return "room unknown"
    found = os.statvfs(there)
    if found.f_files and not found.f_favail:
        return "no inode free: too many files"
    return f"{found.f_bavail * found.f_frsize:,} bytes free"
