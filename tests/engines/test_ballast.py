"""The ballast holds what its script says: measured from outside its own books, by the kernel's."""

import pytest

from memplan.engines.ballast import BallastRunner
from memplan.engines.sequence import Row, Sequence
from memplan.procfs import PAGE_BYTES, ProcessMemory
from memplan.units import MIB

BLOCK_BYTES = 2 * MIB
SETTINGS = {"block_tokens": 16}
SCRIPT = {
    "weights_bytes": 24 * MIB,
    "runtime_bytes": 8 * MIB,
    "kv_bytes_per_token": BLOCK_BYTES // 16,
    "prefill_tokens_per_s": 1e9,
    "decode_s_per_step": 1e-4,
    "activation_bytes_per_token": MIB,
    "vocab_tokens": 100,
    "context_tokens": 1000,
}
NEAR = MIB // 2


def resident_bytes() -> int:
    with ProcessMemory() as memory:
        return memory.read()["host.anon"]


def ballast() -> BallastRunner:
    runner = BallastRunner(SETTINGS, SCRIPT)
    runner.load()
    runner.open_pool(16)
    return runner


def prompt(tokens: int, blocks: list[int]) -> Sequence:
    return Sequence(request_id="a", prompt=[1] * tokens, output_tokens=4, blocks=blocks)


def test_runtime_and_weights_are_resident_once_loaded() -> None:
    before = resident_bytes()
    runner = BallastRunner(SETTINGS, SCRIPT)
    assert resident_bytes() - before == pytest.approx(8 * MIB, abs=NEAR)
    runner.load()
    assert resident_bytes() - before == pytest.approx(32 * MIB, abs=NEAR)
    assert runner.weights_resident()["engine.weights_resident"] == 24 * MIB


def test_the_pool_costs_nothing_until_a_token_is_written() -> None:
    runner = BallastRunner(SETTINGS, SCRIPT)
    before = resident_bytes()
    runner.open_pool(512)
    assert resident_bytes() - before == pytest.approx(0, abs=NEAR)


def test_the_blocks_that_tokens_fall_into_become_resident_and_go_back() -> None:
    runner = ballast()
    before = resident_bytes()
    sequence = prompt(40, [3, 7, 5])
    runner.run((Row(sequence=sequence, start=0, count=17),))
    assert resident_bytes() - before == pytest.approx(2 * BLOCK_BYTES, abs=NEAR)
    runner.run((Row(sequence=sequence, start=17, count=23),))
    assert resident_bytes() - before == pytest.approx(3 * BLOCK_BYTES, abs=NEAR)
    runner.release((7,))
    assert resident_bytes() - before == pytest.approx(2 * BLOCK_BYTES, abs=NEAR)
    runner.release((3, 5))
    assert resident_bytes() - before == pytest.approx(0, abs=NEAR)


def test_activations_are_a_peak_of_the_step_and_gone_after_it() -> None:
    runner = ballast()
    sequence = prompt(16, [0])
    runner.run((Row(sequence=sequence, start=0, count=1),))
    with ProcessMemory() as memory:
        memory.reset_peak()
        before = memory.read()
        runner.run((Row(sequence=sequence, start=1, count=15),))
        after = memory.read()
    assert after["host.rss"] - before["host.rss"] == pytest.approx(0, abs=NEAR)
    assert after["host.hwm"] - before["host.rss"] == pytest.approx(15 * MIB, abs=NEAR)


def test_a_token_is_given_to_each_row_that_wants_one() -> None:
    runner = ballast()
    chunk = Row(sequence=prompt(20, [0, 1]), start=0, count=16)
    whole = Row(sequence=prompt(16, [2]), start=0, count=16, wants_token=True)
    decode = Row(sequence=prompt(16, [3, 4]), start=16, count=1, is_decode=True, wants_token=True)
    assert runner.run((decode, whole, chunk)) == [1, 1]


def test_a_block_that_ends_inside_a_page_begins_the_next_one_on_a_page() -> None:
    runner = BallastRunner({"block_tokens": 1}, {**SCRIPT, "kv_bytes_per_token": PAGE_BYTES + 1})
    runner.open_pool(4)
    sequence = prompt(4, [0, 1, 2, 3])
    runner.run((Row(sequence=sequence, start=0, count=4),))
    runner.release((1,))
    pages = [runner._pool[page * PAGE_BYTES] for page in range(8)]
    assert pages == [1, 1, 0, 0, 1, 1, 1, 1]
