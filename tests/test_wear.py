"""When an engine is to be replaced: after so many requests, or grown by so much beyond its KV."""

from __future__ import annotations

from typing import Any

from builders import IDLE_BYTES, engine, segment

from memplan.records import Segment
from memplan.units import MIB
from memplan.wear import Wear


def closed(grown_bytes: int, *, kv_bytes: int = 0, **changed: Any) -> Segment:
    gauges = {"host.rss": IDLE_BYTES + grown_bytes + kv_bytes, "engine.kv_blocks": kv_bytes}
    return segment(**{"gauges": gauges, **changed})


def worn_by(*segments: Segment, grown_bytes: int | None = 10 * MIB, **facts: Any) -> str | None:
    """After one request and these segments."""
    wear = Wear(requests=None, grown_bytes=grown_bytes)
    wear.engine_started(engine(**facts))
    wear.request_ended()
    for one in segments:
        wear.segment_closed(one)
    return wear.reached


def test_requests_are_counted_for_each_engine() -> None:
    wear = Wear(requests=2, grown_bytes=None)
    reached = []
    for _ in range(2):
        wear.engine_started(engine())
        for _ in range(2):
            reached.append(wear.reached)
            wear.request_ended()
        reached.append(wear.reached)
    assert reached == [None, None, "requests"] * 2


def test_growth_is_what_is_neither_idle_nor_kv() -> None:
    assert worn_by(closed(10 * MIB)) == "bytes"
    assert worn_by(closed(10 * MIB - 1)) is None
    assert worn_by(closed(9 * MIB, kv_bytes=50 * MIB)) is None
    kept = {"host.rss": IDLE_BYTES + 30 * MIB, "engine.kv_kept": 25 * MIB}
    assert worn_by(closed(0, gauges=kept)) is None


def test_kv_of_a_gpu_is_no_part_of_the_host() -> None:
    grown = closed(2 * MIB, kv_bytes=9 * MIB)
    assert worn_by(grown) is None
    assert worn_by(grown, device="cuda:0") == "bytes"


def test_an_engine_that_has_grown_stays_so_and_its_successor_is_new() -> None:
    wear = Wear(requests=None, grown_bytes=10 * MIB)
    wear.engine_started(engine())
    wear.segment_closed(closed(20 * MIB))
    assert wear.reached is None, "it has served nobody yet"
    wear.request_ended()
    wear.segment_closed(closed(0))
    assert wear.reached == "bytes"
    wear.engine_started(engine())
    wear.request_ended()
    assert wear.reached is None


def test_loading_and_unread_segments_are_no_growth() -> None:
    assert worn_by(closed(20 * MIB, kind="load")) is None
    assert worn_by(closed(0, gauges={})) is None
    assert worn_by(closed(20 * MIB), grown_bytes=None) is None
