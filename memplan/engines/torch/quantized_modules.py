"""Modules that compute with quantized weights: what they hold, and which kernel serves how many rows.

torchao chooses scales and rounds; the products are aten's. torchao's own tensors would convert a whole
int8 matrix to bf16 at every call: on CPU a head of 49,152 × 576 then takes 26 ms and 54 MiB for one
row, where aten's kernel takes 1.2 ms and nothing (one Zen 4 thread).
"""

from __future__ import annotations

import torch
from torch import nn

from memplan.engines.torch.wide_products import is_slow_in, tiled_product

INT4_GROUP = 32
"""Inputs that share a scale and a zero: the smallest that the kernels know, 5 bits a weight."""
_INT4_OUTPUTS = 16
"""The CPU kernel packs so many outputs together."""
_PACKED_ROWS = 16
"""aten's int8 kernel beats converting tiles up to here, in bf16 (0.17 ms against 0.20 for 1536 × 576,
5.4 against 1.9 at 512 rows); for fp32 and fp16 it has no vector code: 20 to 40 times slower."""
_PACKED_VALUES = 16
"""aten's int8 kernel loads so many numbers at once, from addresses that are a multiple of their size: at
any other the process dies (general protection fault, torch 2.13 on Zen 4)."""
_INT_MM_CUDA_ROWS = 32
"""cuBLAS wants more than 16."""


class Int8Linear(nn.Module):
    """Weights of 8 bits with a scale for each output; computes in the dtype of its input."""

    def __init__(self, qdata: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.qdata, self.scale = _held(qdata), _held(scale)
        self.bias = None if bias is None else _held(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = self._product(rows)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        is_few = rows.dtype == torch.bfloat16 and rows.shape[0] <= _PACKED_ROWS
        if is_few and rows.device.type == "cpu":
            rows = rows.contiguous()
            if _is_aligned(rows) and _is_aligned(self.qdata):
                return torch._weight_int8pack_mm(rows, self.qdata, self.scale)
        compute = torch.float32 if is_slow_in(rows.dtype, rows.device) else rows.dtype
        out = tiled_product(rows, self.qdata, compute=compute)
        return out.mul_(self.scale).to(rows.dtype)


class Int8DynamicLinear(Int8Linear):
    """The same weights; inputs become 8 bits too, with a scale for each row."""

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        scale = rows.abs().amax(dim=1, keepdim=True).float().div_(127).clamp_(min=1e-12)
        whole = (rows / scale).round_().to(torch.int8)
        count = whole.shape[0]
        if rows.device.type != "cpu" and count < _INT_MM_CUDA_ROWS:
            whole = nn.functional.pad(whole, (0, 0, 0, _INT_MM_CUDA_ROWS - count))
        sums = torch._int_mm(whole, self.qdata.t())[:count]
        return (sums * scale).mul_(self.scale).to(rows.dtype)


class Int4Linear(nn.Module):
    """Weights of 4 bits in groups of 32 inputs, each with a scale and a zero; bf16 only, as the kernels
    are. ``qdata`` is packed for one kind of processor."""

    def __init__(
        self, qdata: torch.Tensor, scale_and_zero: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.qdata, self.scale_and_zero = _held(qdata), _held(scale_and_zero)
        self.bias = None if bias is None else _held(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        product = (
            torch._weight_int4pack_mm_for_cpu
            if rows.device.type == "cpu"
            else torch._weight_int4pack_mm
        )
        out = product(rows, self.qdata, INT4_GROUP, self.scale_and_zero)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


class Int8Embedding(nn.Module):
    """Rows of 8 bits with a scale each, and what the model multiplies its embeddings by, if anything."""

    def __init__(self, qdata: torch.Tensor, scale: torch.Tensor, factor: float | None) -> None:
        super().__init__()
        self.qdata, self.scale = _held(qdata), _held(scale)
        self._factor = factor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.qdata[ids].to(self.scale.dtype).mul_(self.scale[ids].unsqueeze(-1))
        if self._factor is None:
            return rows
        # Rounded to the compute dtype, as Gemma does.
        return rows.mul_(torch.tensor(self._factor, dtype=rows.dtype).item())


def quantized_parts(weight: torch.Tensor, form: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors that a module of this form holds besides its bias, by their names in it.

    Raises ValueError where the weight's shape does not fit the form.
    """
    return _int4_parts(weight, device) if form == "int4" else _int8_parts(weight)


def quantized_module(
    module: nn.Module, form: str, parts: dict[str, torch.Tensor], bias: torch.Tensor | None
) -> nn.Module:
    """What takes the place of ``module``."""
    if isinstance(module, nn.Embedding):
        factor = getattr(module, "scalar_embed_scale", None)
        return Int8Embedding(parts["qdata"], parts["scale"], factor)
    if form == "int4":
        return Int4Linear(parts["qdata"], parts["scale_and_zero"], bias)
    kind = Int8DynamicLinear if form == "int8_dynamic" else Int8Linear
    return kind(parts["qdata"], parts["scale"], bias)


def _int8_parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    from torchao.quantization import quant_primitives

    whole_row = [1, weight.shape[1]]
    scale, zero = quant_primitives.choose_qparams_affine(
        weight, quant_primitives.MappingType.SYMMETRIC, whole_row, torch.int8,
        eps=torch.finfo(torch.float32).eps, scale_dtype=torch.float32,
        zero_point_dtype=torch.int8, keepdim=True,
    )  # fmt: skip
    # Rounded before it divides: the kernels multiply by it in the compute dtype.
    scale = scale.to(weight.dtype)
    qdata = quant_primitives.quantize_affine(
        weight, whole_row, scale.float(), zero, torch.int8, -128, 127
    )
    return {"qdata": qdata.contiguous(), "scale": scale.flatten()}


def _int4_parts(weight: torch.Tensor, device: str) -> dict[str, torch.Tensor]:
    from torchao.quantization import utils

    outputs, inputs = weight.shape
    if inputs % INT4_GROUP or outputs % _INT4_OUTPUTS:
        raise ValueError(
            f"a weight of {outputs:,} × {inputs:,} cannot be int4, expected outputs in steps of "
            f"{_INT4_OUTPUTS} and inputs in steps of {INT4_GROUP}"
        )
    scale, zero = utils.get_groupwise_affine_qparams(weight, 4, INT4_GROUP, torch.bfloat16)
    whole = utils.groupwise_affine_quantize_tensor_from_qparams(weight, scale, zero, 4, INT4_GROUP)
    packed = utils.pack_tinygemm_scales_and_zeros(scale, zero, torch.bfloat16)
    if device == "cpu":
        qdata = torch._convert_weight_to_int4pack_for_cpu(whole.to(torch.int32), 1)
    else:
        pairs = (whole[:, ::2] << 4 | whole[:, 1::2]).to(torch.uint8)
        tiles = next(k for k in (8, 4, 2) if inputs % (16 * k) == 0)
        qdata = torch._convert_weight_to_int4pack(pairs.to(device), tiles).cpu()
    return {"qdata": qdata, "scale_and_zero": packed.contiguous()}


def _is_aligned(matrix: torch.Tensor) -> bool:
    """Every row of it begins where aten's int8 kernel may load from."""
    step_bytes = _PACKED_VALUES * matrix.element_size()
    return matrix.data_ptr() % step_bytes == 0 and matrix.shape[1] % _PACKED_VALUES == 0


def _held(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter that was one already stays the same object: modules that share it share it on any
    device."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
