"""What a profile's rungs say: peak over idle of the engine start that ran the wave."""

from dataclasses import replace

import pytest
from builders import (
    IDLE_BYTES,
    KV_BYTES_PER_TOKEN,
    completed,
    engine,
    flight,
    header,
    recording,
    request,
    segment,
)

from memplan.records import EngineFacts, Recording, Request, Segment
from memplan.stats.ladder import rungs_of, solo_costs_of
from memplan.units import MIB


def peaked(name: str, over_idle: int, start: int = 0) -> Segment:
    """A step with one request in flight, ``over_idle`` MiB over idle at its peak."""
    return segment(
        engine_start=start,
        peak={"host.hwm": IDLE_BYTES + over_idle * MIB},
        in_flight=(flight(name),),
    )


def profile(
    requests: list[Request],
    segments: list[Segment],
    engines: tuple[EngineFacts, ...] = (engine(),),
) -> Recording:
    return recording(
        header=header(kind="profile"),
        requests=tuple(requests),
        outcomes={r.request_id: completed(r) for r in requests},
        segments=tuple(segments),
        engines=engines,
    )


def test_a_rung_is_its_waves_largest_peak_over_the_engines_idle() -> None:
    wave = [request("x/1", wave="batch-2"), request("x/2", wave="batch-2", arrival_s=0.5)]
    other = request("y", wave="prompt-128", input_tokens=128)
    run = profile(
        [*wave, other],
        [peaked("x/1", 3), peaked("x/2", 7), peaked("y", 50), segment("idle", end_s=9.0)],
    )
    first, second = rungs_of(run)
    assert (first.wave, first.requests, first.tokens_per_request) == ("batch-2", 2, 12)
    assert (first.idle_bytes, first.peak_bytes) == (IDLE_BYTES, IDLE_BYTES + 7 * MIB)
    assert first.kv_bytes == 2 * 11 * KV_BYTES_PER_TOKEN  # the last token's KV is never written
    assert first.e2e_s == pytest.approx(0.2)
    assert (first.place, second.wave) == ("cpu", "prompt-128")
    assert second.peak_bytes == IDLE_BYTES + 50 * MIB


def test_waves_come_in_the_order_they_ran() -> None:
    names = ["prompt-256", "prompt-128", "batch-1"]
    run = profile([request(n, wave=n) for n in names], [peaked(n, 1) for n in names])
    assert [rung.wave for rung in rungs_of(run)] == names


def test_a_wave_that_no_segment_saw_is_no_rung() -> None:
    run = profile([request("a", wave="batch-1"), request("b", wave="batch-2")], [peaked("a", 1)])
    assert [rung.wave for rung in rungs_of(run)] == ["batch-1"]


def test_a_wave_of_an_engine_that_never_said_it_was_ready_is_no_rung() -> None:
    run = profile([request("a", wave="batch-1")], [peaked("a", 1, start=1)])
    assert rungs_of(run) == ()


def test_a_rung_whose_requests_did_not_end_has_no_latency() -> None:
    run = profile([request("a", wave="batch-1")], [peaked("a", 1)])
    cut = replace(run, outcomes={"a": replace(run.outcomes["a"], end_s=None)})
    assert rungs_of(cut)[0].e2e_s is None


def test_solo_waves_are_a_cost_of_their_class_and_no_rung() -> None:
    starts = range(3)
    requests = [
        request(f"s{n}", wave=f"solo:chat:{n}", class_name="chat", input_tokens=30) for n in starts
    ]
    idles = [engine(engine_start=n, idle={"host.rss": IDLE_BYTES + n * MIB}) for n in starts]
    run = profile(requests, [peaked(f"s{n}", 10 + 3 * n, start=n) for n in starts], tuple(idles))
    (cost,) = solo_costs_of(run)
    assert (cost.class_name, cost.input_tokens, cost.output_tokens, cost.n) == ("chat", 30, 2, 3)
    # Over the idle of its own process: 10, 13 - 1 and 16 - 2 MiB.
    assert (cost.min_bytes, cost.median_bytes, cost.max_bytes) == (10 * MIB, 12 * MIB, 14 * MIB)
    assert cost.kv_bytes == 31 * KV_BYTES_PER_TOKEN
    assert cost.place == "cpu"
    assert rungs_of(run) == ()


def test_each_class_has_one_solo_cost() -> None:
    names = ["chat", "code", "chat"]
    requests = [
        request(f"s{n}", wave=f"solo:{name}:{n}", class_name=name) for n, name in enumerate(names)
    ]
    run = profile(requests, [peaked(f"s{n}", n + 1) for n in range(3)])
    costs = {cost.class_name: (cost.n, cost.median_bytes) for cost in solo_costs_of(run)}
    assert costs == {"chat": (2, 2 * MIB), "code": (1, 2 * MIB)}


def test_on_a_device_a_rung_is_the_devices_memory() -> None:
    facts = engine(
        device="cuda:0", idle={"cuda.0.device_used": 900 * MIB, "cuda.0.reserved": 600 * MIB}
    )
    closed = segment(peak={"cuda.0.reserved": 650 * MIB}, gauges={}, in_flight=(flight("a"),))
    (rung,) = rungs_of(profile([request("a", wave="batch-1")], [closed], (facts,)))
    assert (rung.place, rung.idle_bytes, rung.peak_bytes) == ("gpu", 900 * MIB, 950 * MIB)


def test_a_replay_has_neither_rungs_nor_solo_costs() -> None:
    run = profile([request("a", wave="solo:short:0")], [peaked("a", 1)])
    replayed = replace(run, header=header(kind="replay"))
    assert rungs_of(replayed) == ()
    assert solo_costs_of(replayed) == ()
