"""Where KV blocks go that are not needed now: a file on disk, or from CUDA to host memory."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Any, Protocol

import torch

from memplan.pages import PAGE_BYTES
from memplan.units import bytes_text


class KvTier(Protocol):
    """``put`` and ``get`` move one block (a flat tensor) to and from a numbered slot."""

    kind: str

    def put(self, slot: int, block: torch.Tensor) -> None:
        """Raises OSError when the disk takes no more."""
        ...

    def get(self, slot: int, block: torch.Tensor) -> None: ...


class DiskTier:
    """One file, without a name as soon as it is open, so that no crash leaves it behind.

    Read and written around the page cache where the file system can (O_DIRECT): what is offloaded to
    save memory would otherwise be charged to the engine again, as cache. O_DIRECT wants memory on page
    borders, where the blocks of a pool on the host lie; others pass through one page-aligned buffer.
    Raises RuntimeError where the disk has no room for all slots.
    """

    def __init__(self, path: Path, *, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = -(-slot_bytes // PAGE_BYTES) * PAGE_BYTES
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags | os.O_DIRECT, 0o600)
            self._is_direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no direct access
                raise
            self._file = os.open(path, flags, 0o600)
            self._is_direct = False
        path.unlink()
        state = os.fstatvfs(self._file)
        free_bytes = state.f_bavail * state.f_frsize
        if slots * self._slot_bytes > free_bytes:
            os.close(self._file)
            raise RuntimeError(
                f"settings.offload_limit: {bytes_text(slots * self._slot_bytes)} are to be written to "
                f"the disk of the run folder, which has {bytes_text(free_bytes)} free; lower it"
            )
        os.ftruncate(self._file, slots * self._slot_bytes)
        self._buffer: mmap.mmap | None = None
        self.kind = "disk, direct" if self._is_direct else "disk, through the page cache"

    def put(self, slot: int, block: torch.Tensor) -> None:
        data = _bytes_of(block)
        if not self._is_aligned(block):
            whole = self._whole()
            whole[: len(data)] = data
            data = memoryview(whole)
        done = os.pwrite(self._file, data, slot * self._slot_bytes)
        if done != len(data):
            raise OSError(errno.ENOSPC, "settings.offload: the disk took only a part of a KV block")
        if not self._is_direct:
            os.fdatasync(self._file)  # only clean pages can be dropped
            self._drop_cache(slot)

    def get(self, slot: int, block: torch.Tensor) -> None:
        is_aligned = self._is_aligned(block)
        data = _bytes_of(block) if is_aligned else memoryview(self._whole())
        done = os.preadv(self._file, [data], slot * self._slot_bytes)
        if done != len(data):
            raise OSError(
                errno.EIO, "settings.offload: the disk gave back only a part of a KV block"
            )
        if not is_aligned:
            flat = block.view(torch.uint8)
            flat.copy_(torch.frombuffer(data, dtype=torch.uint8)[: flat.numel()])
        if not self._is_direct:
            self._drop_cache(slot)

    def _is_aligned(self, block: torch.Tensor) -> bool:
        size_bytes = block.numel() * block.itemsize
        is_on_borders = block.data_ptr() % PAGE_BYTES == 0 and size_bytes == self._slot_bytes
        return block.device.type == "cpu" and is_on_borders

    def _whole(self) -> mmap.mmap:
        """Of a slot's size, on page borders."""
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, self._slot_bytes)
        return self._buffer

    def _drop_cache(self, slot: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(
                self._file, slot * self._slot_bytes, self._slot_bytes, os.POSIX_FADV_DONTNEED
            )


class HostTier:
    """Pinned host memory, for a pool on CUDA. Not run on a GPU yet."""

    kind = "host memory"

    def __init__(self, *, slots: int, slot_bytes: int) -> None:
        self._memory = torch.empty((slots, slot_bytes), dtype=torch.uint8, pin_memory=True)

    def put(self, slot: int, block: torch.Tensor) -> None:
        self._memory[slot].copy_(block.view(torch.uint8))

    def get(self, slot: int, block: torch.Tensor) -> None:
        block.view(torch.uint8).copy_(self._memory[slot])


def _bytes_of(block: torch.Tensor) -> memoryview:
    """On the host the block's own bytes, to be written into; of a block on a device a copy."""
    flat: Any = block.cpu().view(torch.uint8).numpy()
    return memoryview(flat)
