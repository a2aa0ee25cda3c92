"""The corpus cache on disk: `.npy` memory maps, a log of changes, and a manifest that is written last.

    manifest.json            which files belong to the state, and its scalars; replaced atomically, always last
    <generation>-NAME.npy    one memory map each
    <generation>-changes.log one checksummed record per refresh since the manifest was written

A change is committed by appending it to the log; only then is it written into the memory maps. Records hold values, not
operations, so applying them again is harmless. After a kill the maps hold none, some or all of the logged rows; the
whole log is applied again, which gives the state after the last complete record. An incomplete record is the refresh
that was interrupted, and is dropped. Files that no manifest names are never read as a state, and are removed when the
folder is next opened for writing.

`durable=True` also waits for the disk (fsync), which a power cut needs and a killed process does not.
"""

import hashlib
import io
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from search_r3_mteb.atomic import flush_one, write_array, write_json
from search_r3_mteb.json_files import read_object

FORMAT = 2
MANIFEST = "manifest.json"
_MAGIC = b"R3CACHE1"
_HEADER = struct.Struct("<8sQ16s")  # magic, length of the payload, its blake2b-128

Array = Shaped[np.ndarray, "..."]
ChangeRecord = dict[str, Array]


@dataclass
class CacheFolder:
    """An open cache folder. `arrays` are its memory maps, `scalars` the manifest's further values.

    A process that may not write (`writable=False`) sees in its maps the changes of the same machine's writer.
    """

    path: Path
    arrays: dict[str, Array]
    scalars: dict[str, Any]
    files: dict[str, str]
    generation: int
    writable: bool = True
    durable: bool = False
    small: tuple[str, ...] = ()
    _log: BinaryIO | None = field(default=None, repr=False)

    def append(self, record: Mapping[str, Array]) -> None:
        """Commit one change, which a killed process does not lose. The caller applies it to the maps next."""
        if self._log is None:
            self._log = (self.path / self.files["changes"]).open("ab")
        self._log.write(_frame(record))
        self._log.flush()
        if self.durable:
            os.fsync(self._log.fileno())

    @property
    def log_bytes(self) -> int:
        """Bytes of the changes since the manifest was written."""
        return self._log.tell() if self._log is not None else (self.path / self.files["changes"]).stat().st_size

    def checkpoint(self, scalars: Mapping[str, Any], small: Mapping[str, Array], *, flush: bool = True) -> None:
        """Make the present maps the state that the manifest describes, and start an empty log.

        `small` are arrays that are rewritten each time (the drift maps) and lie in memory after `open_folder`. Without
        `flush` the maps' pages may still wait for the disk: a killed process does not lose them, a power cut may.
        """
        for array in self.arrays.values():
            if flush and isinstance(array, np.memmap):
                array.flush()
        if self._log is not None:
            self._log.close()
            self._log = None
        files = dict(self.files)
        self.generation += 1
        for name, array in small.items():
            files[name] = f"{self.generation}-{name}.npy"
            write_array(self.path / files[name], array)
        files["changes"] = f"{self.generation}-changes.log"
        (self.path / files["changes"]).write_bytes(b"")
        self.files, self.scalars, self.small = files, dict(scalars), tuple(small)
        _write_manifest(self.path, self, files, self.generation)
        _remove_unnamed(self.path, files)

    def copy_to(self, target: Path) -> None:
        """Write the state of the manifest into another folder, completely or not at all. Call `checkpoint` first."""
        target.mkdir(parents=True, exist_ok=True)
        generation = _next_generation(target)
        files = {name: f"{generation}-{own.partition('-')[2]}" for name, own in self.files.items()}
        for name, own in self.files.items():
            shutil.copyfile(self.path / own, target / files[name])
            flush_one(target / files[name])
        _write_manifest(target, self, files, generation)
        _remove_unnamed(target, files)


def create_arrays(
    path: Path, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], *, durable: bool = False
) -> CacheFolder:
    """New memory maps of zeros beside the folder's other files; they become its state with `checkpoint`."""
    path.mkdir(parents=True, exist_ok=True)
    generation = _next_generation(path)
    files = {name: f"{generation}-{name}.npy" for name in shapes}
    arrays: dict[str, Array] = {}
    for name, (shape, dtype) in shapes.items():
        arrays[name] = np.lib.format.open_memmap(path / files[name], mode="w+", dtype=dtype, shape=shape)
    return CacheFolder(path, arrays, {}, files, generation, durable=durable)


def open_folder(path: Path, *, writable: bool = True) -> tuple[CacheFolder, list[ChangeRecord]]:
    """The folder's maps as they are, and the log's complete records, which the caller must apply in order.

    Raises FileNotFoundError without a finished cache, ValueError for a damaged manifest or log and another format.
    """
    manifest = read_manifest(path)
    files: dict[str, str] = manifest["files"]
    missing = [name for name in files.values() if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"The cache in {path} names {missing[0]}, which is not there: it was copied incompletely. Build it again."
        )
    arrays: dict[str, Array] = {}
    for name, file in files.items():
        if name != "changes":
            mapped = _mapped(path / file, writable and name not in manifest["small"])
            arrays[name] = np.array(mapped) if name in manifest["small"] else mapped
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
    return manifest


def _write_manifest(path: Path, folder: CacheFolder, files: Mapping[str, str], generation: int) -> None:
    manifest = {"format": FORMAT, "generation": generation, "files": files, "small": folder.small}
    write_json(path / MANIFEST, {**manifest, "scalars": folder.scalars})


def _frame(record: Mapping[str, Array]) -> bytes:
    """Header and payload; the payload is an `.npz` without pickles."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **record)
    payload = stream.getvalue()
    return _HEADER.pack(_MAGIC, len(payload), hashlib.blake2b(payload, digest_size=16).digest()) + payload


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
            magic, length, digest = _HEADER.unpack(header)
            end = good + _HEADER.size + length
            if magic == _MAGIC and end > size:
                return records, good  # cut off while it was written: the refresh that was interrupted
            payload = stream.read(length) if magic == _MAGIC else b""
            if magic != _MAGIC or hashlib.blake2b(payload, digest_size=16).digest() != digest:
                raise ValueError(
                    f"{log} is damaged at byte {good}: record {len(records)} does not match its checksum, and it was "
                    "not cut off by a crash. Load an older checkpoint's cache, or build it again."
                )
            with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
                records.append({name: arrays[name] for name in arrays.files})
            good = end


def _mapped(file: Path, writable: bool) -> Array:
    """The array of a file. Not by np.load, which takes what begins with PK for an archive."""
    try:
        array: Array = np.lib.format.open_memmap(file, mode="r+" if writable else "r")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{file} is damaged ({error}). Load an older checkpoint's cache, or build it again."
        ) from error
    return array


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
