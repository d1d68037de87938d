"""Does resident memory follow KV when it is given back? Against releases of known size."""

from dataclasses import replace
from typing import Any

import pytest
from builders import IDLE_BYTES, completed, engine, flight, recording, request, segment

from memplan.records import EngineFacts, Recording, Segment
from memplan.stats.kv_slope import kv_slope_of
from memplan.stats.summary import KvSlope
from memplan.units import MIB

BLOCK_BYTES = 16 * 1000


def released(
    ratio: float, *, times: int = 12, spoiled: int = 0, has_gauge: bool = True, **facts: Any
) -> Recording:
    """A step in which KV and heap grow, then a release of all of it, again and again.

    Each release gives back ``ratio`` times its KV, the first ``spoiled`` of them 50 MiB more.
    """
    requests = tuple(request(f"r{n}") for n in range(times))
    segments: list[Segment] = []
    for n, one in enumerate(requests):
        kv_bytes = (n + 1) * BLOCK_BYTES
        full = IDLE_BYTES + n * MIB + kv_bytes
        after = full - round(ratio * kv_bytes) - (50 * MIB if n < spoiled else 0)
        held = (flight(one.request_id, kv_used_bytes=kv_bytes),)
        gauges = {"host.rss": after, **({"engine.kv_blocks": 0} if has_gauge else {})}
        segments += [
            segment(
                start_s=float(n),
                end_s=n + 0.5,
                gauges={"host.rss": full, "engine.kv_blocks": kv_bytes},
                in_flight=held,
            ),
            segment("release", start_s=n + 0.5, end_s=n + 0.6, gauges=gauges, in_flight=held),
        ]
    return recording(
        engines=(engine(**facts),),
        requests=requests,
        outcomes={r.request_id: completed(r, end_s=n + 0.5) for n, r in enumerate(requests)},
        segments=tuple(segments),
    )


def slope_of(run: Recording) -> KvSlope | None:
    engines: dict[int, EngineFacts] = {one.engine_start: one for one in run.engines}
    return kv_slope_of(run, run.segments, engines)


@pytest.mark.parametrize("has_gauge", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
def test_the_slope_is_what_falls_with_each_byte_given_back(ratio: float, has_gauge: bool) -> None:
    found = slope_of(released(ratio, has_gauge=has_gauge))
    assert found is not None
    assert found.slope == pytest.approx(ratio, abs=1e-3)
    assert (found.low, found.high) == (pytest.approx(ratio, abs=1e-3),) * 2
    assert found.n == 12


def test_a_heap_that_was_given_back_beside_it_now_and_then_does_not_matter() -> None:
    found = slope_of(released(1.0, spoiled=2))
    assert found is not None and found.slope == 1.0


@pytest.mark.parametrize("kept_ratio", [0.0, 0.5, 0.75])
def test_blocks_that_are_kept_are_not_given_back(kept_ratio: float) -> None:
    def kept(one: Segment) -> Segment:
        if one.kind != "release":
            return replace(one, gauges={**one.gauges, "engine.kv_kept": 0})
        held = next(f.kv_used_bytes for f in one.in_flight)
        kept_bytes = round(kept_ratio * held)
        resident = one.gauges["host.rss"] + kept_bytes
        return replace(
            one, gauges={**one.gauges, "host.rss": resident, "engine.kv_kept": kept_bytes}
        )

    run = released(1.0)
    found = slope_of(replace(run, segments=tuple(kept(one) for one in run.segments)))
    assert found is not None and found.slope == pytest.approx(1.0, abs=1e-3)


def test_blocks_of_who_made_way_are_given_back_with_those_of_who_ended() -> None:
    def made_way(one: Segment) -> Segment:
        if one.kind == "release":
            return replace(one, gauges={**one.gauges, "host.rss": one.gauges["host.rss"] - MIB})
        return replace(one, gauges={**one.gauges, "engine.kv_leaving": MIB})

    run = released(1.0)
    found = slope_of(replace(run, segments=tuple(made_way(one) for one in run.segments)))
    assert found is not None and found.slope == pytest.approx(1.0, abs=1e-3)


def test_a_release_before_the_next_step_takes_blocks_too_and_says_nothing() -> None:
    def before_a_step(one: Segment) -> Segment:
        flights = tuple(replace(f, tokens=0) for f in one.in_flight)
        return replace(one, in_flight=flights) if one.kind == "release" else one

    run = released(1.0)
    assert slope_of(replace(run, segments=tuple(before_a_step(s) for s in run.segments))) is None


@pytest.mark.parametrize(("times", "is_said"), [(9, False), (10, True)])
def test_fewer_than_ten_releases_say_nothing(times: int, is_said: bool) -> None:
    assert (slope_of(released(1.0, times=times)) is not None) == is_said


@pytest.mark.parametrize(
    "facts",
    [{"kv_kind": "reserved"}, {"device": "cuda:0"}, {"settings": {"trim": "after_release"}}],
)
def test_where_resident_memory_need_not_follow_kv_nothing_is_said(facts: dict[str, Any]) -> None:
    assert slope_of(released(1.0, **facts)) is None


def test_an_older_recording_leaves_requests_that_go_on_their_blocks() -> None:
    run = released(1.0, has_gauge=False)
    # Its outcome is later than its release: it still held its KV, so nothing was given back.
    going_on = replace(run.outcomes["r11"], end_s=99.0)
    found = slope_of(replace(run, outcomes={**run.outcomes, "r11": going_on}))
    assert found is not None and found.n == 11


def test_two_engine_starts_are_not_subtracted_from_each_other() -> None:
    run = released(1.0, times=10)
    second = tuple(
        replace(one, engine_start=1) if one.kind == "release" else one for one in run.segments
    )
    assert (
        slope_of(replace(run, engines=(engine(), engine(engine_start=1)), segments=second)) is None
    )
