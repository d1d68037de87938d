"""The KV pool on the host: nothing is resident until written, and what is freed goes back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from memplan.engines.torch.kv_format import PlainKv  # noqa: E402
from memplan.engines.torch.pool import KvPool, _runs  # noqa: E402
from memplan.pages import PAGE_BYTES, PageMap  # noqa: E402

LAYERS, BLOCK_TOKENS, HEADS, DIM = 3, 16, 2, 32
BLOCK_BYTES = LAYERS * 2 * BLOCK_TOKENS * HEADS * DIM * 4
STRIDE_BYTES = -(-BLOCK_BYTES // PAGE_BYTES) * PAGE_BYTES


def pool(blocks: int = 8, head_dim: int = DIM) -> KvPool:
    return KvPool(
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        layer_count=LAYERS,
        kv_heads=HEADS,
        kv_format=PlainKv(head_dim, torch.float32),
        device=torch.device("cpu"),
    )


def resident_of(pool: KvPool, blocks: int = 8) -> int:
    start = pool.layers[0][0].data_ptr()
    return PageMap().resident_bytes(start, start + blocks * STRIDE_BYTES)


def write(pool: KvPool, block: int, value: float) -> None:
    for keys, values in pool.layers:
        keys[block] = value
        values[block] = -value


def test_a_new_pool_is_not_resident() -> None:
    assert resident_of(pool()) == 0
    assert not pool().is_reserved


def test_a_written_block_is_resident_and_no_other() -> None:
    one = pool()
    write(one, 3, 1.0)
    assert resident_of(one) == STRIDE_BYTES
    write(one, 3, 2.0)
    assert resident_of(one) == STRIDE_BYTES


def test_a_released_block_gives_its_pages_back_and_leaves_the_others() -> None:
    one = pool()
    for block in range(8):
        write(one, block, block + 1.0)
    one.release((6, 1, 2))
    assert resident_of(one) == 5 * STRIDE_BYTES
    for block in (0, 3, 4, 5, 7):
        for keys, values in one.layers:
            assert (keys[block] == block + 1.0).all()
            assert (values[block] == -block - 1.0).all()
    assert all((keys[2] == 0).all() for keys, _ in one.layers)


def test_layers_keys_and_values_of_a_block_never_overlap() -> None:
    one = pool()
    views = [view for pair in one.layers for view in pair]
    for number, view in enumerate(views):
        view[:] = number
    assert all((view == number).all() for number, view in enumerate(views))
    assert all(view.shape == (8, BLOCK_TOKENS, HEADS, DIM) for view in views)


def test_blocks_begin_on_page_borders_whatever_their_size() -> None:
    one = pool(head_dim=33)
    keys = one.layers[0][0]
    assert all(keys[block].data_ptr() % PAGE_BYTES == 0 for block in range(8))


def test_releasing_nothing_is_no_fault() -> None:
    one = pool()
    write(one, 0, 1.0)
    one.release(())
    assert resident_of(one) == STRIDE_BYTES


@given(st.sets(st.integers(0, 40)))
def test_runs_of_blocks_cover_exactly_the_blocks(numbers: set[int]) -> None:
    runs = _runs(sorted(numbers))
    assert [n for first, count in runs for n in range(first, first + count)] == sorted(numbers)
    assert all(a[0] + a[1] < b[0] for a, b in pairwise(runs))
