"""The offload tier on disk: what goes in comes out, no file stays, and no page cache is charged."""

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from memplan.engines.sequence import Move  # noqa: E402
from memplan.engines.torch.kv_format import PlainKv  # noqa: E402
from memplan.engines.torch.pool import KvPool  # noqa: E402
from memplan.engines.torch.tier import DiskTier  # noqa: E402
from memplan.pages import PAGE_BYTES  # noqa: E402


def pool(blocks: int = 4) -> KvPool:
    return KvPool(
        blocks=blocks,
        block_tokens=16,
        layer_count=2,
        kv_heads=2,
        kv_format=PlainKv(32, torch.float32),
        device=torch.device("cpu"),
    )


def tier(folder: Path, *, slots: int = 4, slot_bytes: int | None = None) -> DiskTier:
    return DiskTier(folder / "offload", slots=slots, slot_bytes=slot_bytes or pool().stride_bytes)


def fill(one: KvPool) -> None:
    for number, (keys, values) in enumerate(one.layers):
        for block in range(len(keys)):
            keys[block], values[block] = block + 10 * number, -block - 10 * number


def test_blocks_go_to_their_slots_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    one, there = pool(), tier(tmp_path)
    fill(one)
    before = [part.clone() for pair in one.layers for part in pair]
    one.move((Move("out", 0, 3), Move("out", 1, 0)), there)
    one.release((0, 1))
    assert not one.layers[0][0][0].any()
    one.move((Move("in", 3, 1), Move("in", 0, 0)), there)
    for part, was in zip((part for pair in one.layers for part in pair), before, strict=True):
        assert torch.equal(part[1], was[0])
        assert torch.equal(part[0], was[1])
        assert torch.equal(part[2:], was[2:])


def test_moves_are_done_in_their_order(tmp_path: Path) -> None:
    """A block that is emptied into the tier and filled from it in one go, through one slot each."""
    one, there = pool(), tier(tmp_path, slots=2)
    fill(one)
    first, second = one.layers[0][0][0].clone(), one.layers[0][0][1].clone()
    swap = (Move("out", 0, 0), Move("copy", 1, 0), Move("in", 0, 1), Move("out", 0, 0))
    one.move(swap, there)
    assert torch.equal(one.layers[0][0][0], second)
    assert torch.equal(one.layers[0][0][1], first)


@pytest.mark.parametrize("numbers", [1024, 1000, 3])
def test_what_lies_on_no_page_border_passes_through_a_buffer(tmp_path: Path, numbers: int) -> None:
    there = tier(tmp_path, slot_bytes=numbers * 4)
    whole = torch.arange(2 * numbers + 1, dtype=torch.float32)
    block, target = whole[1 : numbers + 1], torch.zeros(numbers)
    there.put(2, block)
    there.get(2, target)
    assert torch.equal(target, block)


def test_the_file_has_no_name_once_it_is_open_and_is_as_long_as_its_slots(tmp_path: Path) -> None:
    there = tier(tmp_path, slots=3)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(there._file).st_size == 3 * pool().stride_bytes
    assert there.kind in ("disk, direct", "disk, through the page cache")


def test_slots_begin_on_page_borders_whatever_a_blocks_size(tmp_path: Path) -> None:
    there = tier(tmp_path, slots=2, slot_bytes=PAGE_BYTES + 1)
    assert os.fstat(there._file).st_size == 4 * PAGE_BYTES


def test_more_than_the_disk_has_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"settings\.offload_limit: .* which has .* free; lower"):
        tier(tmp_path, slots=2**30, slot_bytes=2**20)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_off_is_told_and_no_block_is_left_half_read(tmp_path: Path) -> None:
    one, there = pool(), tier(tmp_path)
    os.ftruncate(there._file, PAGE_BYTES)
    with pytest.raises(OSError, match="gave back only a part of a KV block"):
        there.get(1, one._blocks[0])
