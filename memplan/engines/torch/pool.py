"""The paged KV pool: one allocation, block-major, so that a freed block's pages can be given back.

On the host the pool is an anonymous mapping that grows resident block by block as tokens are
written and shrinks as requests end; on CUDA it is one tensor, resident from the start.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

from memplan.engines.sequence import Move
from memplan.engines.torch.gather_buffers import GatherBuffers
from memplan.engines.torch.kv_format import KvFormat
from memplan.engines.torch.tier import KvTier
from memplan.pages import PAGE_BYTES


class KvPool:
    """KV of all layers for ``blocks`` blocks. ``layers[i]`` is (keys, values), each of shape
    ``[blocks, block_tokens, kv_heads, width]``, strided views of one allocation."""

    def __init__(
        self,
        *,
        blocks: int,
        block_tokens: int,
        layer_count: int,
        kv_heads: int,
        kv_format: KvFormat,
        device: torch.device,
        buffers: GatherBuffers | None = None,
    ) -> None:
        self.format = kv_format
        self._buffers = buffers
        shape = (layer_count, 2, block_tokens, kv_heads, kv_format.width)
        dtype = kv_format.storage
        block_elements = layer_count * 2 * block_tokens * kv_heads * kv_format.width
        block_bytes = block_elements * dtype.itemsize
        self._mapping: mmap.mmap | None = None
        if device.type == "cpu":
            # Blocks start on page borders; the gap is never touched, so never resident.
            self.stride_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
            self._mapping = mmap.mmap(
                -1, blocks * self.stride_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            with contextlib.suppress(OSError):  # a kernel without huge pages
                # A huge page would make 2 MiB resident for one token, and keep it until all of the
                # blocks in it are free.
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
            whole = torch.frombuffer(self._mapping, dtype=dtype)
            stride = self.stride_bytes // dtype.itemsize
            self._blocks = whole.view(blocks, stride)
            storage = self._blocks[:, :block_elements].view(blocks, *shape)
        else:
            self.stride_bytes = block_bytes
            storage = torch.zeros((blocks, *shape), dtype=dtype, device=device)
            self._blocks = storage.view(blocks, block_elements)
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

    def write(
        self, layer: int, where: tuple[torch.Tensor, torch.Tensor], *, keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:  # fmt: skip
        """Keys and values ``[T, kv_heads, head_dim]`` to these (blocks ``[T]``, offsets ``[T]``)."""
        stored_keys, stored_values = self.layers[layer]
        stored_keys[where] = self.format.encode(keys)
        stored_values[where] = self.format.encode(values)

    def read(
        self, layer: int, blocks: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks ``[B, n]`` → keys and values, each ``[B, kv_heads, n · block_tokens, head_dim]``; good
        until the next call, which may write to the same memory."""
        keys, values = (
            self.format.decode(self._gathered(part, stored, blocks), dtype)
            .flatten(1, 2)
            .transpose(1, 2)
            for part, stored in enumerate(self.layers[layer])
        )
        return keys, values

    def _gathered(self, part: int, stored: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        if self._buffers is not None:
            return self._buffers.gather(part, stored, blocks)
        # Copies whole blocks, where indexing goes number by number.
        gathered = torch.index_select(stored, 0, blocks.flatten())
        return gathered.view(*blocks.shape, *stored.shape[1:])

    def move(self, moves: tuple[Move, ...], tier: KvTier | None) -> None:
        """Does these, in their order."""
        for move in moves:
            match move.kind:
                case "copy":
                    self._blocks[move.target].copy_(self._blocks[move.source])
                case "out":
                    assert tier is not None
                    tier.put(move.target, self._blocks[move.source])
                case "in":
                    assert tier is not None
                    tier.get(move.source, self._blocks[move.target])

    def release(self, blocks: tuple[int, ...]) -> None:
        """Gives the pages of these blocks back to the kernel (host only; a device pool keeps them)."""
        if self._mapping is not None:
            for first, count in _runs(sorted(blocks)):
                start = first * self.stride_bytes
                self._mapping.madvise(mmap.MADV_DONTNEED, start, count * self.stride_bytes)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count), so that one call frees many blocks."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
