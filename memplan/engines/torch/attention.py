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

    indices: torch.Tensor
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
        self._groups = self._group(decodes)
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
        keys, values = self._pool.layers[int(module.layer_idx)]  # type: ignore[arg-type]
        where = (self._write_blocks, self._write_offsets)
        keys[where] = key[0].transpose(0, 1).to(keys.dtype)
        values[where] = value[0].transpose(0, 1).to(values.dtype)
        out = torch.empty_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
        for index, chunk in enumerate(self._chunks):
            span = slice(chunk.begin, chunk.end)
            if chunk.before == 0 and sliding_window is None:
                # Nothing before it: the chunk's own keys are all it needs, and no copy is made.
                out[span] = scaled_dot_product_attention(
                    query[:, :, span], key[:, :, span], value[:, :, span],
                    is_causal=True, scale=scaling, enable_gqa=True,
                )[0].transpose(0, 1)  # fmt: skip
                continue
            total = chunk.before + chunk.end - chunk.begin
            seen_keys = self._gather(keys, chunk.blocks[None], query.dtype)[:, :, :total]
            seen_values = self._gather(values, chunk.blocks[None], query.dtype)[:, :, :total]
            out[span] = scaled_dot_product_attention(
                query[:, :, span], seen_keys, seen_values,
                attn_mask=self._causal(index, chunk, sliding_window),
                scale=scaling, enable_gqa=True,
            )[0].transpose(0, 1)  # fmt: skip
        for group in self._groups:
            self._decode(group, query, keys, values, out, scaling, sliding_window)
        return out[None], None

    def _decode(
        self,
        group: _DecodeGroup,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> None:
        """The query heads that share a KV head stand in as query positions, so no key is repeated."""
        kv_heads, head_dim = keys.shape[2], keys.shape[3]
        asked = query[0].transpose(0, 1)[group.indices]
        asked = asked.reshape(len(group.indices), kv_heads, -1, head_dim)
        position = torch.arange(group.blocks.shape[1] * self._block_tokens, device=self._device)
        visible = position[None] < group.contexts[:, None]
        if sliding_window is not None:
            visible &= position[None] >= group.contexts[:, None] - sliding_window
        answered = scaled_dot_product_attention(
            asked,
            self._gather(keys, group.blocks, query.dtype),
            self._gather(values, group.blocks, query.dtype),
            attn_mask=visible[:, None, None, :],
            scale=scaling,
        )
        out[group.indices] = answered.reshape(len(group.indices), -1, head_dim)

    def _gather(self, pool: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[B, blocks] → [B, kv_heads, blocks * block_tokens, dim]."""
        return pool[blocks].flatten(1, 2).transpose(1, 2).to(dtype)

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

    def _group(self, decodes: list[tuple[int, Row]]) -> list[_DecodeGroup]:
        """Groups whose block counts share a power of two: padding stays below a factor of two."""
        by_size: dict[int, list[tuple[int, Row]]] = {}
        for index, row in decodes:
            by_size.setdefault(len(row.sequence.blocks).bit_length(), []).append((index, row))
        groups = []
        for members in by_size.values():
            width = max(len(row.sequence.blocks) for _, row in members)
            tables = [
                row.sequence.blocks + [0] * (width - len(row.sequence.blocks)) for _, row in members
            ]
            groups.append(
                _DecodeGroup(
                    indices=self._tensor([index for index, _ in members]),
                    blocks=torch.tensor(tables, device=self._device),
                    contexts=self._tensor([row.start + 1 for _, row in members]),
                )
            )
        return groups

    def _blocks_until(self, row: Row) -> list[int]:
        return row.sequence.blocks[: -(-(row.start + row.count) // self._block_tokens)]

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)
