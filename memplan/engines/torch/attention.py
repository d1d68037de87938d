"""Attention over the paged KV pool, in the place where transformers calls its attention function.

One step packs the tokens of several requests into one row of shape [1, T]. Prompt chunks attend
request by request; decodes attend in groups of similar context, padded to the longest of a group.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from memplan.engines.sequence import Row
from memplan.engines.torch.pool import KvPool

NAME = "memplan_paged"
_GROUP_BLOCKS = 8
"""Reading so many blocks in vain costs less than attending in one more group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Prompt tokens [begin, end) of the packed row, whose request has ``before`` tokens already."""

    begin: int
    end: int
    before: int
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _DecodeGroup:
    """Decodes of similar context: packed indices [B], block table [B, blocks], contexts [B]."""

    number: int
    indices: torch.Tensor | None
    """None: all of the packed row, in its order."""
    blocks: torch.Tensor
    contexts: torch.Tensor


class PagedAttention:
    """Registered with transformers under ``NAME``; ``prepare`` sets the step that is about to run."""

    def __init__(self, pool: KvPool, *, block_tokens: int, device: torch.device) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._device = device

    def prepare(self, rows: Rows[Row]) -> None:
        """Where this step's tokens are written, and what each of them may look at."""
        blocks: list[int] = []
        offsets: list[int] = []
        self._chunks: list[_Chunk] = []
        decodes: list[tuple[int, Row]] = []
        for row in rows:
            begin = len(blocks)
            for position in range(row.start, row.start + row.count):
                blocks.append(row.sequence.blocks[position // self._block_tokens])
                offsets.append(position % self._block_tokens)
            if row.is_decode:
                decodes.append((begin, row))
            else:
                self._chunks.append(
                    _Chunk(
                        begin=begin,
                        end=len(blocks),
                        before=row.start,
                        blocks=self._tensor(self._blocks_until(row)),
                    )
                )
        self._write_blocks = self._tensor(blocks)
        self._write_offsets = self._tensor(offsets)
        self._groups = self._group(decodes, is_all=not self._chunks)
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query [1, heads, T, dim], key and value [1, kv_heads, T, dim] → ([1, T, heads, dim], None)."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self._pool.write(
            layer,
            (self._write_blocks, self._write_offsets),
            keys=key[0].transpose(0, 1),
            values=value[0].transpose(0, 1),
        )
        if len(self._groups) == 1 and self._groups[0].indices is None:
            return self._decode(self._groups[0], layer, query, scaling, sliding_window)[None], None
        out = torch.empty_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
        for index, chunk in enumerate(self._chunks):
            span = slice(chunk.begin, chunk.end)
            own = (query[:, :, span], key[:, :, span], value[:, :, span])
            answered = self._prompt(index, chunk, layer, own, scaling, sliding_window)
            out[span] = answered[0].transpose(0, 1)
        for group in self._groups:
            out[group.indices] = self._decode(group, layer, query, scaling, sliding_window)
        return out[None], None

    def _prompt(
        self,
        index: int,
        chunk: _Chunk,
        layer: int,
        own: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """``own``: the chunk's query, key and value. What is read of the pool is free on return, before
        the next chunk's is."""
        query, key, value = own
        if chunk.before == 0 and sliding_window is None and self._pool.format.is_exact(key.dtype):
            # Nothing before it: the chunk's own keys are all it needs, and no copy is made. Of a pool
            # that rounds every key is read back, or how a prompt is cut would change answers.
            return scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        total = chunk.before + chunk.end - chunk.begin
        keys, values = self._pool.read(layer, chunk.blocks[None], query.dtype)
        return scaled_dot_product_attention(
            query, keys[:, :, :total], values[:, :, :total],
            attn_mask=self._causal(index, chunk, sliding_window),
            scale=scaling, enable_gqa=True,
        )  # fmt: skip

    def _decode(
        self,
        group: _DecodeGroup,
        layer: int,
        query: torch.Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """[B, heads, dim]. The query heads that share a KV head stand in as query positions, so no key
        is repeated."""
        keys, values = self._pool.read(layer, group.blocks, query.dtype)
        count, kv_heads, _, head_dim = keys.shape
        asked = query[0].transpose(0, 1)
        if group.indices is not None:
            asked = asked[group.indices]
        answered = scaled_dot_product_attention(
            asked.reshape(count, kv_heads, -1, head_dim), keys, values,
            attn_mask=self._visible(group, sliding_window, query.dtype), scale=scaling,
        )  # fmt: skip
        return answered.reshape(count, -1, head_dim)

    def _causal(self, index: int, chunk: _Chunk, sliding_window: int | None) -> torch.Tensor:
        """One mask a chunk and window, made once for all layers."""
        key = (index, sliding_window)
        if key not in self._masks:
            count = chunk.end - chunk.begin
            row = torch.arange(chunk.before, chunk.before + count, device=self._device)[:, None]
            column = torch.arange(chunk.before + count, device=self._device)[None]
            mask = column <= row
            if sliding_window is not None:
                mask &= column > row - sliding_window
            self._masks[key] = mask
        return self._masks[key]

    def _visible(
        self, group: _DecodeGroup, sliding_window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """[B, 1, 1, blocks * block_tokens], made once for all layers, as what is added to scores: of
        truth values torch would make that in every layer."""
        key = (-1 - group.number, sliding_window)
        if key not in self._masks:
            width = group.blocks.shape[1] * self._block_tokens
            position = torch.arange(width, device=self._device)
            visible = position[None] < group.contexts[:, None]
            if sliding_window is not None:
                visible &= position[None] >= group.contexts[:, None] - sliding_window
            added = torch.zeros(visible.shape, dtype=dtype, device=self._device)
            self._masks[key] = added.masked_fill_(~visible, float("-inf"))[:, None, None, :]
        return self._masks[key]

    def _group(self, decodes: list[tuple[int, Row]], *, is_all: bool) -> list[_DecodeGroup]:
        """Groups whose block counts share a power of two, so that padding stays below a factor of two,
        and who is shorter where that wastes little. ``is_all``: the packed row holds nothing else."""
        found: list[list[tuple[int, Row]]] = []
        width = wasted = 0
        for index, row in sorted(decodes, key=lambda one: -len(one[1].sequence.blocks)):
            count = len(row.sequence.blocks)
            if count.bit_length() != width.bit_length():
                wasted += width - count
                if not found or wasted > _GROUP_BLOCKS:
                    found.append([])
                    width, wasted = count, 0
            found[-1].append((index, row))
        groups = []
        for number, members in enumerate(found):
            members.sort(key=lambda one: one[0])
            width = max(len(row.sequence.blocks) for _, row in members)
            tables = [
                row.sequence.blocks + [0] * (width - len(row.sequence.blocks)) for _, row in members
            ]
            groups.append(
                _DecodeGroup(
                    number=number,
                    indices=None
                    if is_all and len(found) == 1
                    else self._tensor([index for index, _ in members]),
                    blocks=torch.tensor(tables, device=self._device),
                    contexts=self._tensor([row.start + 1 for _, row in members]),
                )
            )
        return groups

    def _blocks_until(self, row: Row) -> list[int]:
        return row.sequence.blocks[: -(-(row.start + row.count) // self._block_tokens)]

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)
