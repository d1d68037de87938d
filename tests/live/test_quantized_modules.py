"""Each quantized module against its own weights, put back to floats and multiplied plainly."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [
    pytest.mark.live,
    # torch and torchao warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]


def linear(outputs: int, inputs: int, dtype: Any) -> Any:
    import torch

    torch.manual_seed(3)
    module = torch.nn.Linear(inputs, outputs, bias=True, dtype=dtype)
    return module.requires_grad_(False)


def quantized(module: Any, form: str) -> Any:
    from memplan.engines.torch.quantized_modules import quantized_module, quantized_parts

    parts = quantized_parts(module.weight, form, "cpu")
    return quantized_module(module, form, parts, getattr(module, "bias", None))


def floats_of(module: Any) -> Any:
    """The weights that an int8 module stands for."""
    return module.qdata.float() * module.scale.float().unsqueeze(-1)


def relative(found: Any, wanted: Any) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("outputs", [48, 5000])
def test_int8_multiplies_by_its_own_weights(dtype: str, rows: int, outputs: int) -> None:
    """On both sides of the row count at which another kernel serves, in one tile and in several."""
    import torch

    plain = linear(outputs, 288, getattr(torch, dtype))
    module = quantized(plain, "int8")
    x = torch.randn(2, rows, 288).to(plain.weight.dtype)[:1]
    wanted = x.float() @ floats_of(module).t() + plain.bias.float()
    found = module(x)
    assert found.dtype == x.dtype
    assert found.shape == (1, rows, outputs)
    assert relative(found, wanted) < (1e-5 if dtype == "float32" else 0.006)
    # Half a step of 127 at most, for weights that are spread evenly: 1 / (127 √12 · 0.577).
    assert relative(floats_of(module), plain.weight.float()) < 0.006


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 33])
def test_int8_dynamic_rounds_its_inputs_too(dtype: str, rows: int) -> None:
    import torch

    plain = linear(96, 288, getattr(torch, dtype))
    module = quantized(plain, "int8_dynamic")
    x = torch.randn(rows, 288).to(plain.weight.dtype)
    step = x.abs().amax(dim=1, keepdim=True).float() / 127
    rounded = (x.float() / step).round() * step
    wanted = rounded @ floats_of(module).t() + plain.bias.float()
    assert relative(module(x), wanted) < (1e-5 if dtype == "float32" else 0.006)
    none = module(torch.zeros(1, 288, dtype=plain.weight.dtype))
    assert torch.equal(none[0], plain.bias)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_int4_is_off_by_no_more_than_its_steps(rows: int) -> None:
    import torch

    plain = linear(64, 288, torch.bfloat16)
    module = quantized(plain, "int4")
    ones = torch.eye(288, dtype=torch.bfloat16)
    weights = (module(ones) - plain.bias).t().float()
    # 15 steps over the range of a group, and bf16 sums with the bias.
    groups = plain.weight.float().view(64, 9, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    off = (weights.view(64, 9, 32) - groups).abs().amax(-1)
    assert bool((off <= 0.6 * step + 0.001).all())
    x = torch.randn(rows, 288, dtype=torch.bfloat16)
    assert relative(module(x) - plain.bias, x.float() @ weights.t()) < 0.02
    assert module.qdata.nbytes == 64 * 288 // 2


def test_a_shape_that_cannot_be_int4_is_refused() -> None:
    import torch

    with pytest.raises(
        ValueError, match=r"64 × 40 cannot be int4, expected outputs in steps of 16"
    ):
        quantized(linear(64, 40, torch.bfloat16), "int4")


@pytest.mark.parametrize("factor", [None, 8.0])
def test_an_int8_embedding_gathers_rows(factor: float | None) -> None:
    import torch

    torch.manual_seed(5)
    plain = torch.nn.Embedding(50, 24, dtype=torch.float32).requires_grad_(False)
    if factor is not None:
        plain.scalar_embed_scale = factor
    module = quantized(plain, "int8")
    ids = torch.tensor([[3, 49, 3]])
    wanted = floats_of(module)[ids] * (factor or 1.0)
    assert torch.equal(module(ids), wanted)
    assert relative(module(ids), plain(ids) * (factor or 1.0)) < 0.02
