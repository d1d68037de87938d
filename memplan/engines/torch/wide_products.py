"""Products of 16-bit matrices on a processor that has no instructions for them: in fp32, tile by tile.

There torch's own take eight times as long as fp32 (512 rows × 576 × 1,536: 109 ms against 13, one Zen 3
thread), where a tile that is widened in the cache costs next to nothing. Sums are in fp32 either way.
"""

from __future__ import annotations

import torch
from torch import nn

_TILE_BYTES = 2 << 20
"""Of a widened tile: one that stays in the processor's cache is four times as fast as a whole head."""
_LEAST_ROWS = 2
"""For one row, reading the weights takes longest, and torch reads 16 bits (0.19 ms against 0.23)."""

_LARGE_TILES, _TILED_ROWS = 8, 64
"""A weight of so many tiles is multiplied tile by tile in fp32 too, by up to so many rows: MKL packs a
matrix before it multiplies, and a packed tile stays in the cache (a head of 49,152 × 576, 8 rows: 22 ms
against 29; 32 rows: 37 against 52; one Zen 3 thread)."""

_X86 = ("DEFAULT", "AVX2", "AVX512")


def is_slow_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this processor multiplies matrices of ``dtype`` faster when they are widened to fp32."""
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in _X86:
        return False
    if dtype == torch.bfloat16:
        # AVX-512 without bf16 is fast enough: oneDNN widens in registers itself.
        return not torch.cpu._is_avx512_supported()
    return dtype == torch.float16 and not torch.cpu._is_amx_fp16_supported()


def tiled_product(
    rows: torch.Tensor, weight: torch.Tensor, *, compute: torch.dtype
) -> torch.Tensor:
    """``rows`` [n, inputs] times ``weight`` [outputs, inputs] of any number type → [n, outputs] in the
    ``compute`` dtype; never more than a tile of the weight in it."""
    outputs, inputs = weight.shape
    wide = rows.to(compute)
    out = wide.new_empty(rows.shape[0], outputs)
    step = max(1, _TILE_BYTES // (inputs * wide.element_size()))
    for first in range(0, outputs, step):
        tile = weight[first : first + step].to(compute)
        torch.mm(wide, tile.t(), out=out[:, first : first + step])
    return out


class WideLinear(nn.Linear):
    """A linear layer of 16-bit weights that is computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] < _LEAST_ROWS:
            return super().forward(x)
        out = tiled_product(rows, self.weight, compute=torch.float32)
        if self.bias is not None:
            out += self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], out.shape[-1])


class TiledLinear(nn.Linear):
    """A large linear layer of fp32 weights, such as a head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if not _LEAST_ROWS <= rows.shape[0] <= _TILED_ROWS:
            return super().forward(x)
        out = tiled_product(rows, self.weight, compute=torch.float32)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


def tile_products(model: nn.Module) -> None:
    """Makes large linear layers of fp32 weights compute tile by tile, where MKL multiplies."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.dtype != torch.float32:
            continue
        if module.weight.nbytes > _LARGE_TILES * _TILE_BYTES:
            module.__class__ = TiledLinear


def widen_products(model: nn.Module) -> int:
    """Makes every plain linear layer compute in fp32 where that is faster; returns how many."""
    count = 0
    for module in model.modules():
        if type(module) is nn.Linear and is_slow_in(module.weight.dtype, module.weight.device):
            module.__class__ = WideLinear
            count += 1
    return count
