"""The paged KV pool: one allocation, block-major, so that a freed block's pages can be given back.

On the host the pool is an anonymous mapping that grows resident block by block as tokens are
written and shrinks as requests end; on CUDA it is one tensor, resident from the start.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

from memplan.pages import PAGE_BYTES


class KvPool:
    """KV of all layers for ``blocks`` blocks. ``layers[i]`` is (keys, values), each of shape
    ``[blocks, block_tokens, kv_heads, head_dim]``, strided views of one allocation."""

    def __init__(
        self,
        *,
        blocks: int,
        block_tokens: int,
        layer_count: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layer_count, 2, block_tokens, kv_heads, head_dim)
        block_elements = layer_count * 2 * block_tokens * kv_heads * head_dim
        self._mapping: mmap.mmap | None = None
        if device.type == "cpu":
            # Blocks start on page borders; the gap is never touched, so never resident.
            block_bytes = block_elements * dtype.itemsize
            self._stride_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
            self._mapping = mmap.mmap(
                -1, blocks * self._stride_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            with contextlib.suppress(OSError):  # a kernel without huge pages
                # A huge page would make 2 MiB resident for one token, and keep it until all of the
                # blocks in it are free.
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
            flat = torch.frombuffer(self._mapping, dtype=dtype)
            stride = self._stride_bytes // dtype.itemsize
            storage = flat.view(blocks, stride)[:, :block_elements].view(blocks, *shape)
        else:
            storage = torch.empty((blocks, *shape), dtype=dtype, device=device)
        self.layers = [(storage[:, i, 0], storage[:, i, 1]) for i in range(layer_count)]

    @property
    def is_reserved(self) -> bool:
        return self._mapping is None

    @property
    def address_range(self) -> tuple[int, int] | None:
        """Where the pool lies in host memory; None for one on a device."""
        if self._mapping is None:
            return None
        start = self.layers[0][0].untyped_storage().data_ptr()
        return start, start + len(self._mapping)

    def release(self, blocks: tuple[int, ...]) -> None:
        """Gives the pages of these blocks back to the kernel (host only; a device pool keeps them)."""
        if self._mapping is not None:
            for first, count in _runs(sorted(blocks)):
                start = first * self._stride_bytes
                self._mapping.madvise(mmap.MADV_DONTNEED, start, count * self._stride_bytes)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count), so that one call frees many blocks."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
