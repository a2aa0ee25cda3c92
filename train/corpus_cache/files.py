"""The corpus cache on disk: `.npy` memory maps, a log of changes, and a manifest that is written last.

    manifest.json            which files belong to the state, and its scalars; replaced atomically, always last
    <generation>-NAME.npy    one memory map each
    <generation>-changes.log one checksummed record per refresh since the manifest was written

A change is committed by appending it to the log; only then is it written into the memory maps. Records hold values, not
operations, so applying them again is harmless. After a kill the maps hold none, some or all of the logged rows; the
whole log is applied again, which gives the state after the last complete record. An incomplete record is the refresh
that was interrupted, and is dropped. Files that no manifest names are never read as a state, and are removed when the
folder is next opened for writing.

What is read is compared with what was written. The manifest has a checksum of itself, and of each array the header, the
length and a checksum (`train/disk/row_sums.py`), a record its own and those of the arrays after it: a damaged,
shortened or exchanged file is refused by name. An array without a checksum is one that the reader computes from others.

`durable=True` also waits for the disk (fsync), which a power cut needs and a killed process does not.
"""

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from search_r3_mteb.atomic import write_array, write_json
from search_r3_mteb.json_files import read_object
from train.disk.maps import FULL, Array, copy_file, described_array, new_map, no_room, open_map
from train.disk.row_sums import whole_sum

FORMAT = 3
MANIFEST = "manifest.json"
_MAGIC = b"R3CACHE2"
_HEADER = struct.Struct("<8sQ16sI")  # magic, length of the payload, its blake2b-128, crc32 of these three
_REMEDY = "Load an older checkpoint's cache, or build it again."

ChangeRecord = dict[str, Array]


@dataclass
class CacheFolder:
    """An open cache folder. `arrays` are its memory maps, `scalars` the manifest's further values.

    A process that may not write (`writable=False`) sees in its maps the changes of the same machine's writer. `sums`
    are the checksums that the maps have by all that was committed; who changes a map changes its sum, or drops it.
    """

    path: Path
    arrays: dict[str, Array]
    scalars: dict[str, Any]
    files: dict[str, str]
    generation: int
    writable: bool = True
    durable: bool = False
    small: tuple[str, ...] = ()
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    _log: BinaryIO | None = field(default=None, repr=False)

    def append(self, record: Mapping[str, Array]) -> None:
        """Commit one change, which a killed process does not lose. The caller applies it to the maps next.

        Raises OSError, with nothing committed, where the disk is full.
        """
        log = self.path / self.files["changes"]
        if self._log is None:
            self._log = log.open("ab", buffering=0)
        frame, length = memoryview(_frame(record)), self.log_bytes
        try:
            done = 0
            while done < len(frame):
                done += self._log.write(frame[done:])
            if self.durable:
                os.fsync(self._log.fileno())
        except OSError as error:
            os.ftruncate(self._log.fileno(), length)  # half of a record would hide those after it
            if error.errno in FULL:
                raise no_room(log, length + len(frame), error) from error
            error.filename = error.filename or str(log)
            raise

    @property
    def log_bytes(self) -> int:
        """Bytes of the changes since the manifest was written."""
        return (self.path / self.files["changes"]).stat().st_size

    @property
    def maps(self) -> dict[str, Array]:
        """The arrays that are memory maps."""
        return {name: array for name, array in self.arrays.items() if name not in self.small}

    def checkpoint(
        self,
        scalars: Mapping[str, Any],
        small: Mapping[str, Array],
        *,
        flush: bool = True,
        unsummed: Collection[str] = (),
    ) -> None:
        """Make the present maps the state that the manifest describes, and start an empty log.

        `small` are arrays that are rewritten each time (the drift maps) and lie in memory after `open_folder`. Without
        `flush` the maps' pages may still wait for the disk: a killed process does not lose them, a power cut may.
        `unsummed` maps need no checksum: the reader computes them from others.
        """
        for array in self.maps.values():
            if flush and isinstance(array, np.memmap):
                array.flush()
        if self._log is not None:
            self._log.close()
            self._log = None
        for name in self.maps:
            if name not in unsummed:
                self.sums.setdefault(name, whole_sum(self.arrays[name]))
        files, described = dict(self.files), {}
        for name, array in self.maps.items():
            described[name] = _described(self.path / files[name], array, self.sums.get(name))
        self.generation += 1
        for name, value in small.items():
            array, files[name] = np.ascontiguousarray(value), f"{self.generation}-{name}.npy"
            write_array(self.path / files[name], array)
            described[name] = _described(self.path / files[name], array, whole_sum(array))
        files["changes"] = f"{self.generation}-changes.log"
        (self.path / files["changes"]).write_bytes(b"")
        self.files, self.scalars, self.small, self.described = files, dict(scalars), tuple(small), described
        _write_manifest(self.path, self, files, self.generation)
        _remove_unnamed(self.path, files)

    def copy_to(self, target: Path) -> None:
        """Write the state of the manifest into another folder, completely or not at all. Call `checkpoint` first."""
        target.mkdir(parents=True, exist_ok=True)
        generation = _next_generation(target)
        files = {name: f"{generation}-{own.partition('-')[2]}" for name, own in self.files.items()}
        try:
            for name, own in self.files.items():
                copy_file(self.path / own, target / files[name])
        except OSError:
            for name in files.values():
                (target / name).unlink(missing_ok=True)
            raise
        _write_manifest(target, self, files, generation)
        _remove_unnamed(target, files)

    def damaged(self, name: str, reason: str) -> ValueError:
        """The error for the file of an array."""
        return _damaged(self.path / self.files[name], reason)


def create_arrays(
    path: Path, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], *, durable: bool = False
) -> CacheFolder:
    """New memory maps of zeros beside the folder's other files; they become its state with `checkpoint`.

    Raises OSError, with none of them left, where the disk has no room for all of them.
    """
    path.mkdir(parents=True, exist_ok=True)
    generation = _next_generation(path)
    files = {name: f"{generation}-{name}.npy" for name in shapes}
    arrays: dict[str, Array] = {}
    try:
        for name, (shape, dtype) in shapes.items():
            arrays[name] = new_map(path / files[name], shape, dtype)
    except OSError:
        for name in files.values():
            (path / name).unlink(missing_ok=True)
        raise
    return CacheFolder(path, arrays, {}, files, generation, durable=durable)


def open_folder(path: Path, *, writable: bool = True) -> tuple[CacheFolder, list[ChangeRecord]]:
    """The folder's maps as they are, and the log's complete records, which the caller must apply in order.

    The caller compares the maps with `sums` then, those of the last record. Raises FileNotFoundError without a finished
    cache, ValueError for a damaged manifest, log, header or length, and for another format.
    """
    manifest = read_manifest(path)
    files: dict[str, str] = manifest["files"]
    missing = [name for name in files.values() if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"The cache in {path} names {missing[0]}, which is not there: it was copied incompletely. Build it again."
        )
    arrays: dict[str, Array] = {}
    sums: dict[str, int] = {}
    for name, described in manifest["arrays"].items():
        small = name in manifest["small"]
        try:
            mapped = open_map(path / files[name], described, writable=writable and not small)
        except (ValueError, OSError) as error:
            raise _damaged(path / files[name], str(error)) from error
        arrays[name] = np.array(mapped) if small else mapped
        if small and whole_sum(arrays[name]) != int(described["sum"], 16):
            raise _damaged(path / files[name], "it does not match its checksum")
        if not small and described["sum"] is not None:
            sums[name] = int(described["sum"], 16)
    log = path / files["changes"]
    records, good = _read_log(log)
    if writable:
        if good < log.stat().st_size:
            os.truncate(log, good)
        _remove_unnamed(path, files)
    folder = CacheFolder(
        path=path,
        arrays=arrays,
        scalars=manifest["scalars"],
        files=files,
        generation=int(manifest["generation"]),
        writable=writable,
        small=tuple(manifest["small"]),
        described=manifest["arrays"],
        sums=sums,
    )
    return folder, records


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest. Raises FileNotFoundError where it is missing, ValueError for damage and another format."""
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} holds no finished corpus cache ({MANIFEST} is missing): it was never built, or its build was "
            "killed. Build it with CorpusCache.build."
        )
    manifest = read_object(file, "It was damaged after it was written: build it again.")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {manifest.get('format')!r}, this version reads {FORMAT}. Build the cache again."
        )
    if manifest.pop("checksum", None) != _checksum(manifest):
        raise _damaged(file, "it does not match its checksum")
    return manifest


def _write_manifest(path: Path, folder: CacheFolder, files: Mapping[str, str], generation: int) -> None:
    manifest = {
        "format": FORMAT,
        "generation": generation,
        "files": dict(files),
        "small": list(folder.small),
        "arrays": folder.described,
        "scalars": folder.scalars,
    }
    write_json(path / MANIFEST, manifest | {"checksum": _checksum(manifest)})


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _described(file: Path, array: Array, known: int | None) -> dict[str, Any]:
    return described_array(file, array) | {"sum": None if known is None else f"{known:016x}"}


def _damaged(file: Path, reason: str) -> ValueError:
    return ValueError(f"{file} is damaged: {reason}. {_REMEDY}")


def _frame(record: Mapping[str, Array]) -> bytes:
    """Header and payload; the payload is an `.npz` without pickles."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **record)
    payload = stream.getvalue()
    return _head(len(payload), hashlib.blake2b(payload, digest_size=16).digest()) + payload


def _head(length: int, digest: bytes) -> bytes:
    """The header, whose own checksum tells a damaged length from a record that a kill has cut off."""
    head = _HEADER.pack(_MAGIC, length, digest, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head))


def _read_log(log: Path) -> tuple[list[ChangeRecord], int]:
    """The complete records, and the number of bytes they take."""
    records: list[ChangeRecord] = []
    good = 0
    size = log.stat().st_size
    with log.open("rb") as stream:
        while True:
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return records, good
            _, length, digest, _ = _HEADER.unpack(header)
            intact, end = header == _head(length, digest), good + _HEADER.size + length
            if intact and end > size:
                return records, good  # cut off while it was written: the refresh that was interrupted
            payload = stream.read(length) if intact else b""
            if not intact or hashlib.blake2b(payload, digest_size=16).digest() != digest:
                raise ValueError(
                    f"{log} is damaged at byte {good}: record {len(records)} does not match its checksum, and it was "
                    f"not cut off by a crash. {_REMEDY}"
                )
            with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
                records.append({name: arrays[name] for name in arrays.files})
            good = end


def _ours(path: Path) -> Iterator[Path]:
    for file in path.iterdir():
        number, _, rest = file.name.partition("-")
        if number.isdigit() and rest.endswith((".npy", ".log")):
            yield file


def _next_generation(path: Path) -> int:
    return 1 + max((int(file.name.partition("-")[0]) for file in _ours(path)), default=0)


def _remove_unnamed(path: Path, files: Mapping[str, str]) -> None:
    """Delete files of earlier generations and of a killed process."""
    for file in _ours(path):
        if file.name not in files.values():
            file.unlink()
