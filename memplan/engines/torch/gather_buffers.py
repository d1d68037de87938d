"""Memory that every layer of every step gathers its blocks into, instead of memory of its own each time.

glibc takes pieces of megabytes from the kernel and gives them back, again and again, and each page is
then zeroed and mapped anew. Host only: torch's allocator for CUDA keeps what it had.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass

import torch

from memplan.pages import PAGE_BYTES


@dataclass(slots=True)
class _Buffer:
    memory: torch.Tensor
    """Twice what was asked for: pages that nothing was written to are not resident."""
    used_bytes: int = 0


class GatherBuffers:
    """One for keys and one for values; what was gathered is overwritten by the next gathering."""

    def __init__(self) -> None:
        self._buffers: dict[int, _Buffer] = {}
        self.resident_bytes = 0
        """Of the largest gathering so far, in whole pages."""

    def gather(self, part: int, stored: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """``stored[blocks]``; ``part`` says in which buffer."""
        shape = stored.shape[1:]
        size = blocks.numel() * shape.numel()
        out = self._memory(part, size, stored.dtype).view(-1, *shape)
        torch.index_select(stored, 0, blocks.flatten(), out=out)
        return out.view(*blocks.shape, *shape)

    def _memory(self, part: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
        size_bytes = elements * dtype.itemsize
        held = self._buffers.get(part)
        if held is None or held.memory.nbytes < size_bytes:
            self._buffers.pop(part, None)
            held = self._buffers[part] = _Buffer(_mapped(2 * size_bytes, dtype))
        if size_bytes > held.used_bytes:
            held.used_bytes = size_bytes
            used = (one.used_bytes for one in self._buffers.values())
            self.resident_bytes = sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in used)
        return held.memory[:elements]


def _mapped(size_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # which would make the rest resident too
    return torch.frombuffer(memory, dtype=dtype)
