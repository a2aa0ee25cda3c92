"""A matrix in host memory, often a memory map, that a device reads and writes block by block.

The host's copy is the only one that counts. As many of its first rows as fit in `resident_bytes` are kept on the device
as well, and are read there; the others travel at each use. On CUDA they pass through two pinned buffers, so that the
processor fills one while the other is copied and computed on, and results come back the same way.

    for first, block in rows.blocks():              # every row once, in order
        rows.write(first, changed(block))           # into both copies
    rows.finish()                                   # what is still under way has reached the host
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from search_r3_mteb.search.arrays import RowNumbers
from search_r3_mteb.search.products import as_array, as_tensor

BLOCK_BYTES = 64 << 20
_COPIERS = 4


class DeviceRows:
    """The rows of `host` (n, dim) on `device`, in blocks of at most `block_bytes`, at least one row each."""

    def __init__(
        self,
        host: Shaped[np.ndarray, "rows dim"],
        device: Any,
        *,
        block_bytes: int = BLOCK_BYTES,
        resident_bytes: int = 0,
    ) -> None:
        self.host, self.device = host, torch.device(device)
        n, dim = host.shape
        bytes_per_row = dim * host.itemsize
        self.block_rows = min(n, max(1, block_bytes // bytes_per_row))
        fits = min(n, resident_bytes // bytes_per_row)
        self.resident_rows = fits if fits == n else fits // self.block_rows * self.block_rows
        self.type = as_tensor(host[:0].copy()).dtype
        self._resident = torch.empty((self.resident_rows, dim), dtype=self.type, device=self.device)
        self._loaded = False
        self._up, self._down = (_Staging(self.block_rows, host, self.device) for _ in range(2))
        self._pending: list[tuple[_Buffer, int, int]] = []

    def __len__(self) -> int:
        return len(self.host)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the rows that are kept on the device."""
        return self.resident_rows * self.host.shape[1] * self.host.itemsize

    def blocks(self, *, merged: bool = False) -> Iterator[tuple[int, Tensor]]:
        """`(first row, block)` over the matrix, in the type that it is stored in. Blocks are read, not written.

        `merged`: all rows that the device keeps come as one block, once it has them.
        """
        begin = self.resident_rows if merged and self._loaded else 0
        if begin:
            yield 0, self._resident
        for first in range(begin, len(self), self.block_rows):
            stop = min(first + self.block_rows, len(self))
            if stop > self.resident_rows:
                yield first, self._uploaded(first, stop)
                continue
            if not self._loaded:
                self._resident[first:stop] = self._uploaded(first, stop)
            self._loaded |= stop == self.resident_rows
            yield first, self._resident[first:stop]

    def write(self, first: int, block: Tensor) -> None:
        """Replace the rows from `first` on, here and on the host; the host has them after `finish`."""
        stop = first + len(block)
        if self._loaded and first < self.resident_rows:
            kept = min(stop, self.resident_rows) - first
            self._resident[first : first + kept] = block[:kept]
        if len(self._pending) == 2:
            self._to_host()
        buffer = self._down.next()
        buffer.receive(block)
        self._pending.append((buffer, first, stop))

    def finish(self) -> None:
        """Wait until everything written has reached the host."""
        while self._pending:
            self._to_host()

    def changed(self, rows: RowNumbers | None = None) -> None:
        """The host's `rows` have changed, or all of them: what the device keeps is read again."""
        if rows is None:
            self._loaded = False
        elif self._loaded:
            own = rows[rows < self.resident_rows]
            self._resident[torch.from_numpy(own).to(self.device)] = as_tensor(self.host[own]).to(self.device)

    def take(self, rows: RowNumbers) -> Tensor:
        """Some rows, in the order asked for."""
        if self._loaded and (len(rows) == 0 or int(rows.max()) < self.resident_rows):
            return self._resident[torch.from_numpy(np.asarray(rows, np.int64)).to(self.device)]
        return as_tensor(np.array(self.host[rows])).to(self.device)

    def _uploaded(self, first: int, stop: int) -> Tensor:
        return self._up.next().send(self.host[first:stop])

    def _to_host(self) -> None:
        buffer, first, stop = self._pending.pop(0)
        buffer.store(self.host[first:stop])


class _Staging:
    """Two buffers in turns."""

    def __init__(self, rows: int, host: Shaped[np.ndarray, "rows dim"], device: torch.device) -> None:
        self._make = lambda: _Buffer(rows, host, device)
        self._buffers: list[_Buffer] = []
        self._turn = 0

    def next(self) -> "_Buffer":
        """The buffer that was used before the last; made at the first use."""
        if len(self._buffers) < 2:
            self._buffers.append(self._make())
        self._turn = (self._turn + 1) % 2 if len(self._buffers) == 2 else 0
        return self._buffers[self._turn]


class _Buffer:
    """Host memory for one block, pinned on CUDA, and the moment when the device has finished with it."""

    def __init__(self, rows: int, host: Shaped[np.ndarray, "rows dim"], device: torch.device) -> None:
        self._cuda, self._device = device.type == "cuda", device
        kind = as_tensor(host[:0].copy()).dtype
        self._memory = torch.empty((rows, host.shape[1]), dtype=kind, pin_memory=self._cuda)
        self._done: Any = torch.cuda.Event() if self._cuda else None

    def send(self, block: Shaped[np.ndarray, "rows dim"]) -> Tensor:
        """The block as a tensor of the device."""
        self._wait()  # until the last block that was sent from here has left
        memory = self._memory[: len(block)]
        _copy(as_array(memory), block)
        sent = memory.to(self._device, non_blocking=True) if self._cuda else memory.clone()
        self._record()
        return sent

    def receive(self, block: Tensor) -> None:
        """Begin to copy a block of the device into this buffer."""
        self._memory[: len(block)].copy_(block, non_blocking=True)
        self._record()

    def store(self, target: Shaped[np.ndarray, "rows dim"]) -> None:
        """Copy what was received into the host's matrix."""
        self._wait()
        _copy(target, as_array(self._memory[: len(target)]))

    def _record(self) -> None:
        if self._cuda:
            self._done.record(torch.cuda.current_stream(self._device))

    def _wait(self) -> None:
        if self._cuda:
            self._done.synchronize()


_copiers: list[ThreadPoolExecutor] = []


def _copy(target: Shaped[np.ndarray, "rows dim"], source: Shaped[np.ndarray, "rows dim"]) -> None:
    """Copy rows with a few threads: one does not fill the memory's bandwidth."""
    if source.nbytes < 4 << 20:
        np.copyto(target, source)
        return
    if not _copiers:
        _copiers.append(ThreadPoolExecutor(_COPIERS, thread_name_prefix="device-rows"))
    bounds = np.linspace(0, len(source), _COPIERS + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    for done in [_copiers[0].submit(np.copyto, target[part], source[part]) for part in parts]:
        done.result()
