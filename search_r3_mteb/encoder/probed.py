"""Which checkpoints have passed the probe, remembered between processes.

A checkpoint is known by its files (path, size, times, inode) and by everything that could change the probe's result:
this package's encoder, the libraries, type and device. That takes a millisecond; a digest of the weights would take
seconds for large ones. An entry is an empty file in `$SEARCH_R3_CACHE`, else in `~/.cache/search-r3-mteb`; delete the
folder to probe again. Where it cannot be written, each process probes for itself.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

_passed: set[str] = set()


def state_of(folders: Iterable[Path], dtype: str, device: str) -> str:
    """Hex digest of the files in these folders (not below), the encoder's code, the libraries, type and device."""
    files = []
    for folder in sorted({folder.resolve() for folder in (*folders, Path(__file__).parent)}):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                now = path.stat()  # of the file itself where the hub's cache has a link
                files.append([str(path), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])
    return hashlib.sha256(json.dumps([files, libraries(), dtype, device]).encode()).hexdigest()


@cache
def libraries() -> list[str]:
    """Versions of the libraries that a loaded checkpoint runs on."""
    return [version(name) for name in ("peft", "tokenizers", "torch", "transformers")]


def has_passed(state: str) -> bool:
    """Whether a checkpoint in this state has passed the probe."""
    return state in _passed or (_folder() / state).exists()


def remember(state: str) -> None:
    """Note that a checkpoint in this state has passed."""
    _passed.add(state)
    with suppress(OSError):  # a home that cannot be written
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / state).touch()


def forget() -> None:
    """Forget what this process knows; entries on disk stay."""
    _passed.clear()


def cache_folder() -> Path:
    """The user's cache of this package: `$SEARCH_R3_CACHE`, else `~/.cache/search-r3-mteb`."""
    chosen = os.environ.get("SEARCH_R3_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "search-r3-mteb"


def _folder() -> Path:
    return cache_folder() / "probed"
