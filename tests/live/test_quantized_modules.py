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


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("inputs", [288, 296])
def test_int8_weights_multiply_wherever_they_lie_in_memory(rows: int, inputs: int) -> None:
    """A file's tensors may begin at any 8 bytes, where aten's kernel kills the process."""
    import torch

    plain = linear(64, inputs, torch.bfloat16)
    module = quantized(plain, "int8")
    room = torch.empty(module.qdata.numel() + 64, dtype=torch.int8)
    begin = (8 - room.data_ptr()) % 16
    moved = room[begin : begin + module.qdata.numel()].view_as(module.qdata)
    assert moved.data_ptr() % 16 == 8
    module.qdata = torch.nn.Parameter(moved.copy_(module.qdata), requires_grad=False)
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    wanted = x.float() @ floats_of(module).t() + plain.bias.float()
    assert relative(module(x), wanted) < 0.006


@pytest.mark.parametrize("name", ["a", "a-longer-name", "x" * 17])
def test_a_file_of_weights_is_moved_to_a_cache_line(tmp_path: Any, name: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from memplan.engines.torch.quantized_folder import DATA_ALIGNMENT, align_data

    path = tmp_path / "weights.safetensors"
    tensors = {name: torch.arange(7, dtype=torch.int8), f"{name}.b": torch.rand(3, 5)}
    save_file(tensors, path)
    align_data(path)
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header_bytes) % DATA_ALIGNMENT == 0
    found = load_file(path)
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in tensors.items()
    }
    before = path.read_bytes()
    align_data(path)
    assert path.read_bytes() == before
