"""How keys and values are stored: as they are, or in fewer bits with what turns them back.

Every head's vector of one token is one row, in the quantized formats of bytes: its numbers first and
its scales behind them. So a block of any format is one piece of memory, and moving it needs to know
nothing of what is in it.
"""

from __future__ import annotations

from typing import Protocol

import torch

GROUP = 32
"""Numbers of a vector that share a scale, and a minimum (int4) or a midpoint (int8)."""


class KvFormat(Protocol):
    """Turns vectors ``[…, head_dim]`` of the compute dtype into rows ``[…, width]`` and back."""

    name: str
    storage: torch.dtype
    width: int
    """Elements of ``storage`` in a row."""

    def is_exact(self, dtype: torch.dtype) -> bool:
        """Whether vectors of this type come back as they were."""
        ...

    def encode(self, vectors: torch.Tensor) -> torch.Tensor: ...

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...


class PlainKv:
    """A float type."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.name = str(dtype).removeprefix("torch.")
        self.storage = dtype
        self.width = head_dim

    def is_exact(self, dtype: torch.dtype) -> bool:
        return torch.promote_types(dtype, self.storage) == self.storage

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.to(self.storage)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return rows.to(dtype)


class Int8Kv:
    """Groups of 32 with an fp16 scale and midpoint each: head_dim · 9/8 bytes.

    One scale a vector would be head_dim + 2, and keys have channels of ten times the others' size: it
    costs four times the KL (6.0e-4 against 1.4e-4, SmolLM2-135M in fp32), nearly all of it by keys.
    Heads that are not of whole groups are one group.
    """

    name = "int8"
    storage = torch.uint8

    def __init__(self, head_dim: int) -> None:
        self._dim = head_dim
        self._groups = max(1, head_dim // GROUP) if head_dim % GROUP == 0 else 1
        self.width = head_dim + self._groups * 4

    def is_exact(self, dtype: torch.dtype) -> bool:
        return False

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        grouped = _groups_of(vectors.float(), self._groups)
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        middle = ((low + high) / 2).to(torch.float16)
        reach = torch.maximum(high - middle.float(), middle.float() - low)
        scale = _fp16(reach / 127)
        numbers = ((grouped - middle.float()) / scale.float()).round_().clamp_(-127, 127)
        numbers = numbers.to(torch.int8).flatten(-2)
        scales = torch.cat([scale, middle], dim=-1).flatten(-2)
        return torch.cat([numbers.view(torch.uint8), scales.view(torch.uint8)], dim=-1)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        scales = rows[..., self._dim :].contiguous().view(torch.float16).to(dtype)
        scale, middle = _groups_of(scales, self._groups).chunk(2, dim=-1)
        numbers = rows[..., : self._dim].view(torch.int8).to(dtype)
        return _groups_of(numbers, self._groups).mul_(scale).add_(middle).flatten(-2)


class Int4Kv:
    """Groups of 32 with an fp16 scale and minimum each, two numbers a byte: head_dim · 5/8 bytes."""

    name = "int4"
    storage = torch.uint8

    def __init__(self, head_dim: int) -> None:
        if head_dim % GROUP:
            raise ValueError(
                f"kv: int4 stores keys and values in groups of {GROUP}, and this model's heads have "
                f"{head_dim} numbers; use kv: int8"
            )
        self._groups = head_dim // GROUP
        self._half = head_dim // 2
        self.width = self._half + self._groups * 4

    def is_exact(self, dtype: torch.dtype) -> bool:
        return False

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        grouped = _groups_of(vectors.float(), self._groups)
        low = grouped.amin(dim=-1, keepdim=True).to(torch.float16)
        scale = _fp16((grouped.amax(dim=-1, keepdim=True) - low.float()) / 15)
        numbers = ((grouped - low.float()) / scale.float()).round_().clamp_(0, 15)
        numbers = numbers.to(torch.uint8).flatten(-2)
        packed = numbers[..., : self._half] | (numbers[..., self._half :] << 4)
        scales = torch.cat([scale, low], dim=-1).flatten(-2)
        return torch.cat([packed, scales.view(torch.uint8)], dim=-1)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        packed = rows[..., : self._half]
        numbers = torch.cat([packed & 15, packed >> 4], dim=-1).to(dtype)
        scales = rows[..., self._half :].contiguous().view(torch.float16).to(dtype)
        scale, low = _groups_of(scales, self._groups).chunk(2, dim=-1)
        return _groups_of(numbers, self._groups).mul_(scale).add_(low).flatten(-2)


_FLOATS = {
    **dict.fromkeys(("fp32", "float32"), torch.float32),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16"), torch.float16),
}


def kv_format(setting: str, head_dim: int) -> KvFormat:
    """Raises ValueError where the model's heads do not fit the format."""
    match setting:
        case "int8":
            return Int8Kv(head_dim)
        case "int4":
            return Int4Kv(head_dim)
        case _:
            return PlainKv(head_dim, _FLOATS[setting])


def _groups_of(vectors: torch.Tensor, groups: int) -> torch.Tensor:
    """``[…, n]`` → ``[…, groups, n / groups]``."""
    return vectors.view(*vectors.shape[:-1], groups, -1)


def _fp16(scale: torch.Tensor) -> torch.Tensor:
    """In fp16, and never 0: a vector of zeros is divided by it."""
    return scale.to(torch.float16).clamp_(min=torch.finfo(torch.float16).tiny)
