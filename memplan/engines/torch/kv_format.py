"""How keys and values are stored: as they are, or in fewer bits with what turns them back.

Every head's vector of one token is one row, in the quantized formats of bytes: its numbers first and
its scales behind them. So a block of any format is one piece of memory, and moving it needs to know
nothing of what is in it.
"""

from __future__ import annotations

from typing import Protocol

import torch

GROUP = 32
"""Numbers of an int4 vector that share a scale and a minimum."""


class KvFormat(Protocol):
    """Turns vectors ``[…, head_dim]`` of the compute dtype into rows ``[…, width]`` and back."""

    name: str
    storage: torch.dtype
    width: int
    """Elements of ``storage`` in a row."""
    is_lossy: bool

    def encode(self, vectors: torch.Tensor) -> torch.Tensor: ...

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...


class PlainKv:
    """A float type."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.name = str(dtype).removeprefix("torch.")
        self.storage = dtype
        self.width = head_dim
        self.is_lossy = False

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.to(self.storage)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return rows.to(dtype)


class Int8Kv:
    """Symmetric, with one fp16 scale a vector: head_dim + 2 bytes."""

    name = "int8"
    storage = torch.uint8
    is_lossy = True

    def __init__(self, head_dim: int) -> None:
        self._dim = head_dim
        self.width = head_dim + 2

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors.float()
        scale = _fp16(vectors.abs().amax(dim=-1, keepdim=True) / 127)
        numbers = (vectors / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
        return torch.cat([numbers.view(torch.uint8), scale.view(torch.uint8)], dim=-1)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        scale = rows[..., self._dim :].contiguous().view(torch.float16).to(dtype)
        return rows[..., : self._dim].view(torch.int8).to(dtype).mul_(scale)


class Int4Kv:
    """Groups of 32 with an fp16 scale and minimum each, two numbers a byte: head_dim · 5/8 bytes."""

    name = "int4"
    storage = torch.uint8
    is_lossy = True

    def __init__(self, head_dim: int) -> None:
        if head_dim % GROUP:
            raise ValueError(
                f"kv: int4 stores keys and values in groups of {GROUP}, and this model's heads have "
                f"{head_dim} numbers; use kv: int8"
            )
        self._groups = head_dim // GROUP
        self._half = head_dim // 2
        self.width = self._half + self._groups * 4

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        grouped = vectors.float().unflatten(-1, (self._groups, GROUP))
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
        scale, low = scales.unflatten(-1, (self._groups, 2)).split(1, dim=-1)
        return numbers.unflatten(-1, (self._groups, GROUP)).mul_(scale).add_(low).flatten(-2)


def kv_format(setting: str, head_dim: int, dtypes: dict[str, torch.dtype]) -> KvFormat:
    """Raises ValueError where the model's heads do not fit the format."""
    match setting:
        case "int8":
            return Int8Kv(head_dim)
        case "int4":
            return Int4Kv(head_dim)
        case _:
            return PlainKv(head_dim, dtypes[setting])


def _fp16(scale: torch.Tensor) -> torch.Tensor:
    """In fp16, and never 0: a vector of zeros is divided by it."""
    return scale.to(torch.float16).clamp_(min=torch.finfo(torch.float16).tiny)
