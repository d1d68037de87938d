"""Every figure of a scripted run, worked out by hand: 1000 prompt tokens/s, 20 ms a decode step."""

from itertools import pairwise

import pytest
from builders import KV_BYTES_PER_TOKEN, request, scripted
from hypothesis import given
from hypothesis import strategies as st

from memplan.clock import VirtualClock
from memplan.engines import Ended, EngineEvent, SegmentClosed
from memplan.engines.scripted import ScriptedEngine
from memplan.records import RequestRecord, Segment
from memplan.units import MIB

HELD = 15 * MIB
BLOCK_BYTES = 16 * KV_BYTES_PER_TOKEN


def opened(**settings: object) -> tuple[ScriptedEngine, VirtualClock]:
    clock = VirtualClock()
    engine = ScriptedEngine(scripted(**settings), clock=clock, epoch_s=0.0, number=0)  # type: ignore[arg-type]
    return engine, clock


def send(engine: ScriptedEngine, name: str, prompt: int, output: int) -> None:
    engine.submit(request(name, input_tokens=prompt, output_tokens=output), [1] * prompt)


def polled(engine: ScriptedEngine, count: int, timeout_s: float = 1.0) -> list[EngineEvent]:
    return [event for _ in range(count) for event in engine.poll(timeout_s)]


def segments(events: list[EngineEvent]) -> list[Segment]:
    return [event.segment for event in events if isinstance(event, SegmentClosed)]


def records(events: list[EngineEvent]) -> list[RequestRecord]:
    return [event.record for event in events if isinstance(event, Ended)]


def test_an_engine_that_is_ready_holds_its_runtime_and_its_weights() -> None:
    facts = opened()[0].start()
    assert facts.idle["host.rss"] == facts.loaded["host.rss"] == HELD
    assert facts.start["host.rss"] == 5 * MIB
    assert facts.weights_bytes == facts.idle["engine.weights_resident"] == 10 * MIB
    assert facts.kv_bytes_per_token == KV_BYTES_PER_TOKEN
    assert facts.kv_pool_tokens == 1600


def test_a_pool_has_whole_blocks_only() -> None:
    assert opened(max_kv_tokens=100)[0].start().kv_pool_tokens == 96


def test_the_context_is_the_smaller_of_the_models_and_the_asked_one() -> None:
    assert opened()[0].start().context_tokens == 1000
    assert opened(context_tokens=500)[0].start().context_tokens == 500
    assert opened(context_tokens=5000)[0].start().context_tokens == 1000


def test_with_nothing_to_do_polling_only_moves_the_clock() -> None:
    engine, clock = opened()
    assert engine.poll(0.25) == ()
    assert clock.now_s() == 0.25


def test_a_request_costs_its_blocks_and_the_activations_of_its_step() -> None:
    engine, _ = opened()
    send(engine, "a", 40, 2)
    events = polled(engine, 2)
    prefill, decode = segments(events)
    assert (prefill.prefill_tokens, prefill.decode_tokens) == (40, 0)
    assert (decode.prefill_tokens, decode.decode_tokens) == (0, 1)
    assert [prefill.start_s, prefill.end_s] == pytest.approx([0.0, 0.04])
    assert [decode.start_s, decode.end_s] == pytest.approx([0.04, 0.06])
    held = HELD + 3 * BLOCK_BYTES
    assert prefill.gauges["host.rss"] == held
    assert prefill.peak["host.hwm"] == held + 40 * 100
    assert decode.peak["host.hwm"] == held + 100
    (flight,) = decode.in_flight
    assert flight.kv_used_bytes == 41 * KV_BYTES_PER_TOKEN
    assert flight.kv_reserved_bytes == 3 * BLOCK_BYTES
    (record,) = records(events)
    assert (record.outcome, record.input_tokens_run, record.output_tokens_run) == (
        "completed",
        40,
        2,
    )
    times = [record.admitted_s, record.first_token_s, record.end_s]
    assert times == pytest.approx([0.0, 0.04, 0.06])


def test_a_step_that_outlasts_the_timeout_goes_on_in_the_next_poll() -> None:
    engine, clock = opened()
    send(engine, "a", 50, 1)
    assert engine.poll(0.03) == ()
    assert clock.now_s() == 0.03
    (closed, ended) = engine.poll(0.03)
    assert clock.now_s() == pytest.approx(0.05)
    assert isinstance(closed, SegmentClosed)
    assert isinstance(ended, Ended)


def test_memory_goes_back_when_a_request_ends() -> None:
    engine, _ = opened()
    send(engine, "a", 40, 1)
    engine.poll(1.0)
    engine.poll(1.0)
    (idle,) = segments(list(engine.stop()))
    assert idle.kind == "idle"
    assert idle.peak["host.hwm"] == HELD
    assert idle.in_flight == ()


def test_what_waits_for_a_slot_is_counted() -> None:
    engine, _ = opened(max_requests=1)
    for name in "abc":
        send(engine, name, 10, 1)
    steps = segments(polled(engine, 3))
    assert [s.waiting for s in steps] == [2, 1, 0]
    assert [len(s.in_flight) for s in steps] == [1, 1, 1]


@pytest.mark.parametrize(
    ("prompt", "reason"), [(1000, "exceeds_context"), (900, "exceeds_kv_pool")]
)
def test_a_request_that_can_never_run_ends_at_once(prompt: int, reason: str) -> None:
    engine, clock = opened(max_kv_tokens=800)
    send(engine, "a", prompt, 1)
    (record,) = records(list(engine.poll(1.0)))
    assert (record.outcome, record.reason, record.end_s) == ("rejected", reason, 0.0)
    assert clock.now_s() == 0.0


requests = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 20), st.floats(0, 0.5)), min_size=1, max_size=8
)


def ran(lengths: list[tuple[int, int, float]]) -> list[EngineEvent]:
    engine, _ = opened()
    events: list[EngineEvent] = []
    for number, (prompt, output, wait_s) in enumerate(lengths):
        send(engine, str(number), prompt, output)
        events += engine.poll(wait_s)
    while len(records(events)) < len(lengths):
        events += engine.poll(0.1)
    return [*events, *engine.stop()]


@given(requests)
def test_segments_leave_no_gap_and_no_overlap(lengths: list[tuple[int, int, float]]) -> None:
    closed = segments(ran(lengths))
    assert closed[0].start_s == 0.0
    assert all(a.end_s == b.start_s for a, b in pairwise(closed))
    assert all(s.start_s <= s.end_s for s in closed)


@given(requests)
def test_every_segment_is_its_formula(lengths: list[tuple[int, int, float]]) -> None:
    for closed in segments(ran(lengths)):
        blocks = sum(-(-f.kv_used_bytes // BLOCK_BYTES) for f in closed.in_flight)
        activations = 100 * (closed.prefill_tokens + closed.decode_tokens)
        assert closed.gauges["engine.kv_blocks"] == blocks * BLOCK_BYTES
        assert closed.gauges["host.rss"] == HELD + blocks * BLOCK_BYTES
        assert closed.peak["host.hwm"] == closed.gauges["host.rss"] + activations
        assert sum(f.tokens for f in closed.in_flight) == (
            closed.prefill_tokens + closed.decode_tokens
        )


@given(requests)
def test_the_same_script_gives_the_same_run(lengths: list[tuple[int, int, float]]) -> None:
    assert ran(lengths) == ran(lengths)
