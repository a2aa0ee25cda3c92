"""Locks between processes that die with their process: nothing has to be cleaned up after a kill."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


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
