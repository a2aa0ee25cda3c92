"""A `search-r3 serve` in a process of its own, for the scripts of this folder."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import NamedTuple


class Running(NamedTuple):
    """Where a server answers, and its process."""

    url: str
    process: int


@contextmanager
def serving(
    options: Sequence[str], program: Sequence[str] = (sys.executable, "-m", "search_r3_mteb")
) -> Iterator[Running]:
    """Start `PROGRAM serve OPTIONS` on a free port, and stop it when the block ends; RuntimeError if it does not start.

    Its log goes into a file: a pipe that nobody reads would stop the server when it is full.
    """
    with TemporaryFile("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            [*program, "serve", "--port", "0", *options], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            first = server.stdout.readline() if server.stdout else ""
            if " at http" not in first:
                server.wait(60)
                log.seek(0)
                raise RuntimeError(f"The server did not start: {first}{log.read()}")
            yield Running(first.split(" at ")[1].split()[0], server.pid)
        finally:
            server.terminate()
            server.communicate(timeout=60)
