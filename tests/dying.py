"""Death at a chosen file operation."""

import os
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

OPERATIONS = [(os, "fsync"), (os, "rmdir"), (os, "unlink"), (Path, "rename"), (Path, "replace"), (Path, "mkdir")]


class Killed(BaseException):
    """As kill -9: no handler may do anything about it."""


@contextmanager
def killed_before(moment):
    """In the block the file operation number `moment`, counted from 0, and all later ones do not happen.

    Gives a list that holds True afterwards if the process died.
    """
    left, died = [moment], []

    def counting(real):
        def wrapped(*arguments, **keywords):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **keywords)

        return wrapped

    patches = [patch.object(owner, name, counting(getattr(owner, name))) for owner, name in OPERATIONS]
    for one in patches:
        one.start()
    try:
        yield died
    except Killed:
        died.append(True)
    finally:
        for one in patches:
            one.stop()
