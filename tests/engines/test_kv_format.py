"""How keys and values are stored: so many bytes by the formula, and so large an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from memplan.engines.sequence import Move  # noqa: E402
from memplan.engines.torch.kv_format import GROUP, KvFormat, kv_format  # noqa: E402
from memplan.engines.torch.pool import KvPool  # noqa: E402
from memplan.pages import PAGE_BYTES  # noqa: E402

LAYERS, HEADS, DIM, BLOCK_TOKENS = 3, 2, 64, 16
ROW_BYTES = {
    "fp32": 4 * DIM,
    "bf16": 2 * DIM,
    "fp16": 2 * DIM,
    "int8": DIM + DIM // 32 * 4,
    "int4": DIM // 2 + DIM // 32 * 4,
}
"""Of one head's key or value: int8 and int4 have two fp16 numbers for each 32."""
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def vectors(seed: int, *, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(7, HEADS, DIM, generator=draw) * scale + shift


def pool(name: str, blocks: int = 4) -> KvPool:
    return KvPool(
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        layer_count=LAYERS,
        kv_heads=HEADS,
        kv_format=kv_format(name, DIM),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("name", "row_bytes"), ROW_BYTES.items())
def test_a_token_takes_the_bytes_of_the_formula(name: str, row_bytes: int) -> None:
    one = kv_format(name, DIM)
    rows = one.encode(vectors(1))
    assert rows.dtype == one.storage
    assert rows.shape == (7, HEADS, one.width)
    assert rows[0, 0].numel() * rows.itemsize == row_bytes
    token_bytes = 2 * LAYERS * HEADS * row_bytes
    keys, values = pool(name).layers[0]
    in_pool = LAYERS * (keys[0, 0].numel() + values[0, 0].numel()) * keys.itemsize
    assert in_pool == token_bytes
    block_bytes = BLOCK_TOKENS * token_bytes
    assert pool(name).stride_bytes == -(-block_bytes // PAGE_BYTES) * PAGE_BYTES


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_type_gives_back_what_it_can_hold(name: str) -> None:
    one, dtype = kv_format(name, DIM), FLOATS[name]
    given = vectors(2).to(dtype)
    assert torch.equal(one.decode(one.encode(given), dtype), given)
    assert one.is_exact(dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "exact"),
    [
        ("fp32", torch.bfloat16, True),
        ("fp32", torch.float16, True),
        ("bf16", torch.float32, False),
        ("bf16", torch.float16, False),
        ("fp16", torch.bfloat16, False),
        ("int8", torch.bfloat16, False),
        ("int4", torch.float32, False),
    ],
)
def test_it_knows_what_it_rounds(name: str, dtype: torch.dtype, exact: bool) -> None:
    one, given = kv_format(name, DIM), vectors(3)
    given[0, 0, 0] = 1e-12  # below what fp16 can hold
    given = given.to(dtype)
    assert one.is_exact(dtype) is exact
    assert torch.equal(one.decode(one.encode(given), dtype), given) is exact


def error_of(one: KvFormat, given: torch.Tensor) -> torch.Tensor:
    return (one.decode(one.encode(given), torch.float32) - given).abs()


seeds = st.integers(0, 2**31)
scales = st.sampled_from((1e-3, 0.1, 1.0, 30.0, 1000.0))


@settings(deadline=None)
@given(seeds, scales, st.sampled_from((0.0, -5.0, 100.0)))
def test_int8_is_wrong_by_half_a_step_of_its_group(seed: int, scale: float, shift: float) -> None:
    given = vectors(seed, scale=scale, shift=shift)
    groups = given.view(*given.shape[:-1], -1, GROUP)
    reach = (groups.amax(dim=-1, keepdim=True) - groups.amin(dim=-1, keepdim=True)) / 2
    largest = groups.abs().amax(dim=-1, keepdim=True)
    # Half a step, and what rounding the scale and the midpoint to fp16 (2^-11) moves the largest number.
    step = (reach / 127).clamp(min=torch.finfo(torch.float16).tiny)
    wrong = error_of(kv_format("int8", DIM), given).view_as(groups)
    assert (wrong <= step / 2 + largest * 2**-10).all()


def test_int8_takes_heads_that_are_not_of_whole_groups() -> None:
    one = kv_format("int8", 80)
    given = torch.randn(3, HEADS, 80, generator=torch.Generator().manual_seed(4))
    assert one.width == 80 + 4
    assert error_of(one, given).max() < given.abs().max() / 127


@settings(deadline=None)
@given(seeds, scales, st.sampled_from((0.0, -5.0, 100.0)))
def test_int4_is_wrong_by_half_a_step_of_its_group(seed: int, scale: float, shift: float) -> None:
    given = vectors(seed, scale=scale, shift=shift)
    groups = given.view(*given.shape[:-1], -1, GROUP)
    reach = groups.amax(dim=-1, keepdim=True) - groups.amin(dim=-1, keepdim=True)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    step = (reach / 15).clamp(min=torch.finfo(torch.float16).tiny)
    wrong = error_of(kv_format("int4", DIM), given).view_as(groups)
    assert (wrong <= step / 2 + largest * 2**-9).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_zeros_stay_zeros_and_a_constant_stays_near(name: str) -> None:
    one = kv_format(name, DIM)
    assert not error_of(one, torch.zeros(1, HEADS, DIM)).any()
    assert (error_of(one, torch.full((1, HEADS, DIM), -3.0)) < 0.02).all()


def test_int4_needs_heads_of_whole_groups_and_says_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match=r"this model's heads have 80 numbers; use kv: int8"):
        kv_format("int4", 80)


@pytest.mark.parametrize("name", ROW_BYTES)
def test_what_is_written_to_the_pool_is_read_from_there(name: str) -> None:
    """Given as attention gives it: heads first, and so not contiguous."""
    one = pool(name)
    tokens = BLOCK_TOKENS + 3
    draw = torch.Generator().manual_seed(5)
    keys, values = (
        torch.randn(HEADS, tokens, DIM, generator=draw).transpose(0, 1) for _ in range(2)
    )
    blocks = torch.tensor([2] * BLOCK_TOKENS + [0] * 3)
    offsets = torch.tensor([*range(BLOCK_TOKENS), 0, 1, 2])
    one.write(1, (blocks, offsets), keys=keys, values=values)
    read_keys, read_values = one.read(1, torch.tensor([[2, 0]]), torch.float32)
    assert read_keys.shape == (1, HEADS, 2 * BLOCK_TOKENS, DIM)
    for read, written in ((read_keys, keys), (read_values, values)):
        expected = one.format.decode(one.format.encode(written), torch.float32)
        assert torch.equal(read[0, :, :tokens].transpose(0, 1), expected)


@pytest.mark.parametrize("name", ROW_BYTES)
def test_a_copied_block_is_the_same_bit_for_bit_and_no_other_changes(name: str) -> None:
    one = pool(name)
    every = torch.arange(4).repeat_interleave(BLOCK_TOKENS)
    offsets = torch.arange(BLOCK_TOKENS).repeat(4)
    draw = torch.Generator().manual_seed(6)
    for layer in range(LAYERS):
        keys, values = (torch.randn(4 * BLOCK_TOKENS, HEADS, DIM, generator=draw) for _ in range(2))
        one.write(layer, (every, offsets), keys=keys, values=values)
    before = [part.clone() for pair in one.layers for part in pair]
    one.move((Move("copy", 1, 3),), None)
    for part, was in zip((part for pair in one.layers for part in pair), before, strict=True):
        assert torch.equal(part[3], was[1])
        assert torch.equal(part[:3], was[:3])
