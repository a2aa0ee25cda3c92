"""Memory maps in `.npy` files that are what their maker says of them: reserved, of the right length, with its header.

A map of a file with holes is a promise of the file system: where the disk is full by the time that a page is first
written, the process dies of SIGBUS. `new_map` therefore reserves every byte, or fails with an error that names it.

`open_map` compares the file with the length and the header that the maker noted, so that no header of a damaged file is
ever parsed, and no shortened file is lengthened by zeros (which `np.memmap` does).
"""

import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from search_r3_mteb.disk import NoRoomError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}
_BLOCK = 4 << 20

Array = Shaped[np.ndarray, "..."]


def new_map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """A memory map of zeros in a new file, every byte of which the file system has given.

    Raises OSError that says how much is needed and free where the disk or a quota is full; the file is removed then. A
    file system that copies on write (Btrfs, ZFS) or compresses may still run full later: it cannot promise more.
    """
    head = _header(shape, dtype)
    size = len(head) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        with path.open("wb") as stream:
            stream.write(head)
            stream.flush()
            reserve(stream.fileno(), size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in FULL:
            raise no_room(path, size, error) from error
        raise
    return _map(path, head, shape, dtype, "r+")


def reserve(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long, none of them a hole; new ones are zeros. OSError where there is no room.

    By posix_fallocate; where the platform or the file system has none, the zeros are written.
    """
    length = os.fstat(descriptor).st_size
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, length, max(1, size - length))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    zeros = memoryview(bytes(_BLOCK))
    os.lseek(descriptor, length, os.SEEK_SET)
    while length < size:
        length += os.write(descriptor, zeros[: min(_BLOCK, size - length)])


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes, never by sharing them with the source: a map must not wait for room when it is written.

    Raises `no_room`, with the copy removed, where the disk is full.
    """
    try:
        with source.open("rb") as stream, target.open("wb") as copy:
            while block := stream.read(_BLOCK):
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in FULL:
            raise no_room(target, source.stat().st_size, error) from error
        raise


def no_room(path: Path, size: int, error: OSError) -> OSError:
    """The error for a file of `size` bytes that did not fit."""
    found = NoRoomError(error.errno, error.strerror, str(path))
    found.needed = size
    found.remedy = "name a folder on another disk (output.folder, corpus_cache.tokens_folder)"
    return found


def described_array(path: Path, array: Array) -> dict[str, Any]:
    """What `open_map` asks for, of a `.npy` file that holds this array: type, shape and header, as JSON."""
    with path.open("rb") as stream:
        head = stream.read(path.stat().st_size - array.nbytes)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "header": head.decode("latin-1")}


def open_map(path: Path, described: Mapping[str, Any], *, writable: bool) -> Array:
    """The array that `described_array` described, as a map.

    Raises ValueError for a file of another length or with another header, and for a type that is not of numbers.
    """
    dtype, shape, head = np.dtype(described["dtype"]), tuple(described["shape"]), described["header"].encode("latin-1")
    if dtype.kind not in "fiu":
        raise ValueError(f"it is said to hold values of type {dtype}, not numbers (Python objects are never read)")
    size, wanted = path.stat().st_size, len(head) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size != wanted:
        raise ValueError(f"it has {size:,} bytes instead of {wanted:,}")
    with path.open("rb") as stream:
        if stream.read(len(head)) != head:
            raise ValueError("its header has changed")
    return _map(path, head, shape, dtype, "r+" if writable else "r")


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    said = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue()


def _map(path: Path, head: bytes, shape: tuple[int, ...], dtype: np.dtype, mode: Any) -> Array:
    return np.memmap(path, dtype=dtype, mode=mode, offset=len(head), shape=shape)
