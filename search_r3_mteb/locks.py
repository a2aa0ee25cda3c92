"""Locks between processes that die with their process: nothing has to be cleaned up after a kill.

`locked` waits, for changes of shared files. `occupy` refuses, for a folder that only one process may work in. A
`Marker` stands for what a process is making, so that others see whether the process still lives (`abandoned`).
"""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE = ".lock"
_log = logging.getLogger(__name__)
_occupied: dict[tuple[int, Path], int] = {}  # by process: a forked child has the table, and not the locks


class OccupiedError(BlockingIOError):
    """A folder in which another process works."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """In the block no other process, and no other thread, is in such a block of `folder`; waits until that is so.

    For files that are read, changed and written: two writers would each write what they had read, and one's change
    would be lost. The lock is the operating system's, on the empty file FOLDER/.lock, which stays. Not reentrant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait(descriptor)
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def occupy(folder: Path, what: str) -> None:
    """Keep other processes that do `what` out of `folder` until this one ends, or `leave`s it.

    This process may occupy it again. Raises OccupiedError, which names the other process, its host and the folder. The
    lock is the process's own (POSIX record locks): children that it forks neither hold nor lose it. Where the file
    system has no locks, a warning says that nothing keeps others out.
    """
    path = folder.resolve() / f".{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while (os.getpid(), path) not in _occupied:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_of_process(descriptor)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                said = os.read(descriptor, 4096)
                os.close(descriptor)
                raise OccupiedError(
                    f"{folder}: another {what} works in this folder, {_owner(said)}. Two of them would destroy each "
                    "other's files. Wait for it, stop it, or name another folder."
                ) from error
            _log.warning("%s: there are no locks here (%s). Start no second %s in this folder.", folder, error, what)
        if not _same(descriptor, path):  # its process has just left, and removed it
            os.close(descriptor)
            continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        _occupied[os.getpid(), path] = descriptor


def leave(folder: Path, what: str) -> None:
    """Let other processes work in a folder that this one has occupied."""
    path = folder.resolve() / f".{what}.lock"
    descriptor = _occupied.pop((os.getpid(), path), None)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


class Marker:
    """A new file, locked by this process until it ends or `release`s it, which also removes the file if it is there."""

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError for a file that is there, OSError where it cannot be made."""
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            lost = not _try_lock(self.descriptor) or not _same(self.descriptor, path)
        except BaseException:
            self.release()
            raise
        if lost:  # another process took it for abandoned, between the two system calls
            os.close(self.descriptor)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def release(self) -> None:
        """Remove the file, and give the lock back."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self.descriptor)


@contextmanager
def abandoned(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the process that claimed `path` is dead; then nobody else finds it so during the block.

    A claim that is not there is a dead one's. With `wait` the claim of a living process is waited for. Where that
    cannot be found out (another user's file, a file system without locks), the process is taken for a living one.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        yield _got(descriptor, wait)
    finally:
        os.close(descriptor)


def _got(descriptor: int, wait: bool) -> bool:
    """Whether the claim's lock is ours now. Where a file system has no locks, whoever waits for one is let through."""
    try:
        if wait:
            _wait(descriptor)
            return True
        return _try_lock(descriptor, unknown=False)
    except OSError:
        return wait


def _try_lock(descriptor: int, *, unknown: bool = True) -> bool:
    """Whether the lock was got at once; `unknown` where this file system has no locks."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return unknown
    return True


def _lock_of_process(descriptor: int) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]


def _wait(descriptor: int) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    import msvcrt
    import time

    while True:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            time.sleep(0.05)
        else:
            return


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(said: bytes) -> str:
    try:
        owner: Any = json.loads(said)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, TypeError, KeyError):
        return "which has not said its number yet"
