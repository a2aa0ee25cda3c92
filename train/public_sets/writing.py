"""The unfinished folder of one set, which a killed command leaves and the next one goes on with.

Files grow in a hidden folder beside the set's place. Every so many records the file reaches the disk, and then the
progress file names its length, its counts and the state of the stream and of the conversion: whatever is behind that
length is cut off by the next command. Only a complete folder gets the set's name.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import clean, flush, flush_one, write_json
from search_r3_mteb.json_files import read_object
from train.public_sets.convert import Conversion
from train.public_sets.source import Repository


class Workplace:
    """The unfinished folder of the set at `folder`; `identity` is all that decides its content."""

    def __init__(self, folder: Path, identity: dict[str, Any], every: int) -> None:
        self.folder = folder.with_name(f".{folder.name}.preparing")
        self._final, self._every = folder, every
        self._progress = _progress_file(folder)
        self._said: dict[str, Any] = {"identity": identity, "files": {}}

    @contextmanager
    def locked(self) -> Iterator["Workplace"]:
        """In the block no other process works here. Raises BlockingIOError where one does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"Another process prepares {str(self._final)!r} at this moment. Wait for it, or give --output."
                ) from error
            self._read()
            yield self
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        """What an earlier command reached, if it wrote the same files."""
        said = (
            read_object(self._progress, "Remove that folder: the set is prepared from its beginning.")
            if self._progress.exists()
            else {}
        )
        same = said.get("identity") == self._said["identity"]
        if same:
            self._said = said
        for path in self.folder.iterdir():  # the files of another revision, or what a kill left of an atomic write
            if not same or path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not same:
            forget_progress(self._final)

    def write(
        self,
        name: str,
        repository: Repository,
        parts: tuple[str, str],
        conversion: Conversion,
        limit: int | None,
        tell: Callable[[str], None],
    ) -> dict[str, int]:
        """Write the file `name` from the records of a (configuration, split), at most `limit`; its counts."""
        if name in self._said["files"]:
            conversion.counts = Counter(self._said["files"][name])
            return dict(conversion.counts)
        stream, done = repository.stream(*parts), self._said.get(name)
        read = 0
        path = self.folder / name
        with path.open("r+b" if path.exists() else "w+b") as file:
            if done is not None:
                stream.load_state_dict(done["stream"])
                conversion.state, conversion.counts, read = done["open"], Counter(done["counts"]), done["read"]
                tell(f"{name}: goes on after {read} records")
            file.truncate(0 if done is None else done["bytes"])
            file.seek(0, os.SEEK_END)
            records = repository.records(stream, parts[0])
            for record in islice(records, None if limit is None else limit - read):
                read += 1
                file.writelines(_line(one) for one in conversion.feed(record, read))
                if read % self._every == 0:
                    file.flush()
                    os.fsync(file.fileno())
                    self._said[name] = {
                        "bytes": file.tell(),
                        "read": read,
                        "counts": conversion.counts,
                        "open": conversion.state,
                        "stream": stream.state_dict(),
                    }
                    write_json(self._progress, self._said)
                    tell(f"{name}: {read} records")
            file.writelines(_line(one) for one in conversion.finish())
            file.flush()
            os.fsync(file.fileno())
        counts = {what: count for what, count in sorted(conversion.counts.items()) if count}
        self._said["files"][name] = counts
        self._said.pop(name, None)
        write_json(self._progress, self._said)
        return counts

    def finish(self) -> None:
        """Give the complete folder the set's name."""
        flush(self.folder)
        self.folder.rename(self._final)
        flush_one(self._final.parent)
        forget_progress(self._final)


def forget_progress(folder: Path) -> None:
    """Remove what is written beside the set's folder while it is made."""
    _progress_file(folder).unlink(missing_ok=True)
    clean(folder.parent)


def begun_revision(folder: Path) -> str | None:
    """The hub's commit that an interrupted command took, so that a newer one does not make it start again."""
    path = _progress_file(folder)
    said = (
        read_object(path, "Remove that folder: the set is prepared from its beginning.")
        if path.exists()
        else {"identity": {"revision": "files:"}}
    )
    revision: str = said["identity"]["revision"]
    return None if revision.startswith("files:") else revision


def _progress_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.progress.json")


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
