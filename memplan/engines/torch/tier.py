"""Where KV blocks go that are not needed now: a file on disk, or from CUDA to host memory."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

import torch


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
    save memory would otherwise be charged to the engine again, as cache. A block of a pool on the host
    lies on page borders, as O_DIRECT wants it.
    """

    def __init__(self, path: Path, *, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags | os.O_DIRECT, 0o600)
            self._is_direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no direct access
                raise
            self._file = os.open(path, flags, 0o600)
            self._is_direct = False
        os.unlink(path)
        os.ftruncate(self._file, slots * slot_bytes)
        self.kind = "disk, direct" if self._is_direct else "disk, through the page cache"

    def put(self, slot: int, block: torch.Tensor) -> None:
        data = _bytes_of(block)
        done = os.pwrite(self._file, data, slot * self._slot_bytes)
        if done != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not self._is_direct:
            os.fdatasync(self._file)  # only clean pages can be dropped
            self._drop_cache(slot)

    def get(self, slot: int, block: torch.Tensor) -> None:
        if block.device.type == "cpu":
            os.preadv(self._file, [_bytes_of(block)], slot * self._slot_bytes)
        else:
            data = bytearray(os.pread(self._file, self._slot_bytes, slot * self._slot_bytes))
            block.copy_(torch.frombuffer(data, dtype=torch.uint8).view(block.dtype))
        if not self._is_direct:
            self._drop_cache(slot)

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
    return memoryview(block.cpu().view(torch.uint8).numpy())
