"""Blocks that are shared, kept or on their way back: whose the KV of a peak is."""

from typing import Any

import pytest
from builders import IDLE_BYTES, engine, flight, segment

from memplan.records import Segment
from memplan.stats.attribution import gpu_attribution
from memplan.stats.host_parts import composed_at, host_attribution, host_parts_of
from memplan.stats.kv_pool import kv_parts_of, pool_bytes
from memplan.units import MIB

SHARING = {
    "engine.kv_blocks": 10 * MIB,
    "engine.kv_shared": 4 * MIB,
    "engine.kv_kept": 5 * MIB,
    "engine.kv_offloaded": 9 * MIB,
}


def step(gauges: dict[str, int], *, over_mib: int, **changes: Any) -> Segment:
    """All that is over idle stayed resident at the end."""
    resident = IDLE_BYTES + over_mib * MIB
    return segment(peak={"host.hwm": resident}, gauges={"host.rss": resident, **gauges}, **changes)


def test_kept_blocks_have_pages_and_blocks_in_the_offload_tier_have_none() -> None:
    assert pool_bytes(SHARING) == 15 * MIB
    assert pool_bytes({**SHARING, "engine.kv_leaving": MIB}) == 16 * MIB
    assert pool_bytes({}) == 0


def test_the_kv_of_a_peak_is_told_apart_by_whose_it_is() -> None:
    made = host_attribution([step(SHARING, over_mib=15)], engine(), composed={})
    assert made is not None
    assert made.kv_bytes == 15 * MIB
    assert made.kv_parts == {
        "of one request": 6 * MIB,
        "of several requests": 4 * MIB,
        "kept, of no request": 5 * MIB,
    }
    assert made.unexplained_bytes == 0


def test_an_engine_that_shares_nothing_has_no_finer_parts() -> None:
    made = host_attribution([step({"engine.kv_blocks": MIB}, over_mib=1)], engine(), composed={})
    assert made is not None and made.kv_bytes == MIB
    assert made.kv_parts == {}


def test_the_parts_never_exceed_the_pages_that_were_counted() -> None:
    parts = kv_parts_of(7 * MIB, SHARING)
    assert sum(parts.values()) == 7 * MIB
    assert parts == {"of several requests": 4 * MIB, "kept, of no request": 3 * MIB}


def test_pages_counted_before_blocks_were_kept_and_given_back_are_corrected_by_them() -> None:
    # 3 MiB of pages for blocks of 4: the last ones are not written. Then 5 MiB are kept, 1 leaves.
    counted = step({"engine.kv_blocks": 4 * MIB, "host.heap_free": 0}, over_mib=3)
    counted = segment(
        end_s=0.1,
        peak=counted.peak,
        gauges={**counted.gauges, "engine.kv_resident": 3 * MIB, "engine.kv_kept": 0},
    )
    later = step(
        {"engine.kv_blocks": 2 * MIB, "engine.kv_kept": 5 * MIB, "engine.kv_leaving": MIB},
        over_mib=7,
        end_s=0.2,
    )
    parts = host_parts_of(later, engine(), composed=composed_at([counted, later], later))
    assert parts.kv_bytes == 3 * MIB + (2 + 5 + 1 - 4) * MIB
    assert parts.kv_parts == {
        "of one request": MIB,
        "kept, of no request": 5 * MIB,
        "on its way back": MIB,
    }


def test_a_pool_on_a_device_has_an_unused_part() -> None:
    on_gpu = engine(
        device="cuda:0",
        kv_kind="reserved",
        kv_pool_tokens=20,
        kv_bytes_per_token=MIB,
        loaded={"cuda.0.allocated": 25 * MIB},
    )
    peak = {"cuda.0.reserved": 30 * MIB, "cuda.0.allocated": 30 * MIB, "host.hwm": IDLE_BYTES}
    made = gpu_attribution([segment(peak=peak, gauges={"host.rss": IDLE_BYTES, **SHARING})], on_gpu)
    assert made is not None
    assert made.kv_parts == {
        "of one request": 6 * MIB,
        "of several requests": 4 * MIB,
        "kept, of no request": 5 * MIB,
        "unused": 5 * MIB,
    }


@pytest.mark.parametrize("kind", ["idle", "step"])
def test_kept_blocks_are_of_the_process_and_of_no_request(kind: Any) -> None:
    held = step(SHARING, over_mib=15, kind=kind, in_flight=(flight(kv_used_bytes=10 * MIB),))
    made = host_attribution([held], engine(), composed={})
    assert made is not None
    of_requests = sum(one.kv_used_bytes for one in held.in_flight)
    assert made.kv_bytes - of_requests == made.kv_parts["kept, of no request"]
