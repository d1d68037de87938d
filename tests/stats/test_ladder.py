"""What a profile's rungs say: peak over idle of the engine start that ran the wave."""

from dataclasses import replace
from typing import Any

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
from memplan.stats.ladder import rungs_of, solo_costs_of, variant_facts_of
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


def decoding(names: list[str], times_s: list[float], **changes: Any) -> list[Segment]:
    found, at_s = [], 0.0
    for time_s in times_s:
        found.append(
            segment(
                start_s=at_s,
                end_s=at_s + time_s,
                in_flight=tuple(flight(name, tokens=1) for name in names),
                decode_tokens=len(names),
                **changes,
            )
        )
        at_s += time_s
    return found


def test_a_decode_step_is_timed_where_all_decode_and_nothing_else_runs() -> None:
    names = ["x/1", "x/2"]
    steps = [
        *decoding(names, [0.5], prefill_tokens=9),
        *decoding(names[:1], [0.7]),
        *decoding(names, [0.03, 0.01, 0.02]),
        segment("release", in_flight=(flight("x/1"), flight("x/2")), decode_tokens=2),
    ]
    (rung,) = rungs_of(profile([request(n, wave="batch-2") for n in names], steps))
    assert rung.decode_step is not None
    assert (rung.decode_step.n, rung.decode_step.median_s) == (3, pytest.approx(0.02))
    assert (rung.decode_step.low_s, rung.decode_step.high_s) == (
        pytest.approx(0.01), pytest.approx(0.03),
    )  # fmt: skip
    assert (rung.completed, rung.output_tokens_per_s) == (2, pytest.approx(4 / 0.2))


def test_many_steps_bound_their_median_and_not_their_extremes() -> None:
    steps = decoding(["a"], [0.01 * (1 + n) for n in range(20)])
    (rung,) = rungs_of(profile([request("a", wave="batch-1")], steps))
    assert rung.decode_step is not None
    # Ranks 6 and 15 of 20 (any table of the sign test).
    assert rung.decode_step.low_s == pytest.approx(0.06)
    assert rung.decode_step.high_s == pytest.approx(0.15)


def test_a_rung_that_lost_a_request_has_no_throughput() -> None:
    names = ["x/1", "x/2"]
    run = profile([request(n, wave="batch-2") for n in names], decoding(names, [0.1]))
    rejected = replace(run.outcomes["x/2"], outcome="rejected")
    (rung,) = rungs_of(replace(run, outcomes={**run.outcomes, "x/2": rejected}))
    assert (rung.completed, rung.output_tokens_per_s) == (1, None)


def test_solo_times_are_those_of_the_fresh_processes_that_completed() -> None:
    requests = [request(f"s{n}", wave=f"solo:chat:{n}", class_name="chat") for n in range(3)]
    run = profile(requests, [peaked(f"s{n}", 1) for n in range(3)])
    late = replace(run.outcomes["s1"], first_token_s=0.4, end_s=0.9)
    failed = replace(run.outcomes["s2"], outcome="failed")
    (cost,) = solo_costs_of(replace(run, outcomes={**run.outcomes, "s1": late, "s2": failed}))
    assert cost.ttft is not None and cost.tpot is not None
    assert (cost.ttft.n, cost.ttft.low_s, cost.ttft.high_s) == (2, pytest.approx(0.1), 0.4)
    assert cost.ttft.median_s == pytest.approx(0.25)
    assert cost.tpot.median_s == pytest.approx((0.1 + 0.5) / 2)


def test_idle_memory_of_all_engine_starts_says_how_far_processes_differ() -> None:
    idles = [engine(engine_start=n, idle={"host.rss": IDLE_BYTES + n * MIB}) for n in range(3)]
    run = profile([request("a", wave="batch-1")], [peaked("a", 1)], tuple(idles))
    applied = {"settings": {"weights": "int8"}, "stack_step": 2}
    facts = variant_facts_of(replace(run, header=header(kind="profile", deployment=applied)))
    assert facts is not None
    assert (facts.idle_n, facts.idle_bytes) == (3, IDLE_BYTES + MIB)
    assert (facts.idle_low_bytes, facts.idle_high_bytes) == (IDLE_BYTES, IDLE_BYTES + 2 * MIB)
    assert (facts.settings, facts.stack_step) == ({"weights": "int8"}, 2)
    assert facts.kv_bytes_per_token == KV_BYTES_PER_TOKEN
    assert variant_facts_of(replace(run, header=header(kind="replay"))) is None
    bare = variant_facts_of(replace(run, engines=(), header=header(kind="profile")))
    assert bare is not None
    assert (bare.idle_bytes, bare.weights_bytes, bare.settings, bare.stack_step) == (
        None, None, {}, None,
    )  # fmt: skip


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
