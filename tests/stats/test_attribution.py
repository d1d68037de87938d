"""Whose bytes they are: parts add up to the whole, on the host and on a device."""

import math
from typing import Any

import pytest
from builders import IDLE_BYTES, engine, flight, segment
from hypothesis import given
from hypothesis import strategies as st

from memplan.records import EngineFacts, Segment
from memplan.stats.attribution import (
    gpu_attribution,
    gpu_resident_bytes,
    gpu_transient_bytes,
    host_transient_bytes,
    owned_bytes,
    peak_owned_bytes,
)
from memplan.stats.host_parts import composed_at, host_attribution
from memplan.stats.summary import Attribution
from memplan.units import MIB

sizes = st.integers(0, 2**40)
GPU_IDLE = {
    "host.rss": IDLE_BYTES,
    "cuda.0.device_used": 900 * MIB,
    "cuda.0.reserved": 600 * MIB,
}
GPU_ENGINE = engine(
    device="cuda:0",
    kv_kind="reserved",
    kv_pool_tokens=1000,
    kv_bytes_per_token=MIB // 10,
    loaded={"cuda.0.allocated": 500 * MIB},
    idle=GPU_IDLE,
)


def gpu_segment(peak: int, reserved: int, now: int, **changes: Any) -> Segment:
    """Torch's allocated peak, reserved peak and allocated at the close, in MiB."""
    return segment(
        peak={
            "host.hwm": IDLE_BYTES,
            "cuda.0.allocated": peak * MIB,
            "cuda.0.reserved": reserved * MIB,
        },
        gauges={"host.rss": IDLE_BYTES, "cuda.0.allocated": now * MIB},
        **changes,
    )


def parts_of(attribution: Attribution) -> int:
    return (
        attribution.weights_bytes
        + attribution.kv_bytes
        + attribution.activations_bytes
        + attribution.runtime_bytes
        + attribution.allocator_slack_bytes
        + attribution.page_cache_bytes
        + attribution.unexplained_bytes
    )


# --- the host's peak -------------------------------------------------------------------------

idles = st.fixed_dictionaries(
    {"host.rss": sizes},
    optional={
        name: sizes
        for name in (
            "host.file",
            "host.heap_free",
            "engine.weights_resident",
            "engine.weights_resident_mapped",
            "engine.weight_files_resident",
        )
    },
)
steps = st.builds(
    lambda kind, hwm, rss, rest: segment(
        kind=kind, peak={"host.hwm": hwm}, gauges={"host.rss": rss, **rest}
    ),
    st.sampled_from(["idle", "step", "release"]),
    sizes,
    sizes,
    st.fixed_dictionaries({}, optional={"host.file": sizes, "engine.kv_blocks": sizes}),
)


@given(st.lists(steps, min_size=1, max_size=5), idles, sizes)
def test_the_parts_of_the_hosts_peak_add_up_to_it(
    segments: list[Segment], idle: dict[str, int], heap_free: int
) -> None:
    made = host_attribution(segments, engine(idle=idle), composed={"host.heap_free": heap_free})
    assert made is not None
    assert made.total_bytes == max(s.peak["host.hwm"] for s in segments)
    assert parts_of(made) == made.total_bytes
    known = (made.weights_bytes, made.kv_bytes, made.activations_bytes, made.runtime_bytes)
    assert min(*known, made.allocator_slack_bytes, made.page_cache_bytes) >= 0


def test_each_part_of_the_hosts_peak_has_its_own_source() -> None:
    idle = {
        "host.rss": 100 * MIB,
        "host.file": 30 * MIB,
        "host.heap_free": 4 * MIB,
        "engine.weights_resident": 60 * MIB,
        "engine.weights_resident_mapped": 20 * MIB,
        "engine.weight_files_resident": 25 * MIB,
    }
    worst = segment(
        end_s=7.0,
        peak={"host.hwm": 150 * MIB},
        gauges={"host.rss": 130 * MIB, "host.file": 33 * MIB, "engine.kv_blocks": 9 * MIB},
    )
    made = host_attribution(
        [segment(), worst], engine(idle=idle), composed={"host.heap_free": 6 * MIB}
    )
    assert made is not None
    assert (made.place, made.at_s, made.total_bytes) == ("cpu", 7.0, 150 * MIB)
    assert made.weights_bytes == 60 * MIB
    assert made.kv_bytes == 9 * MIB
    assert made.activations_bytes == 20 * MIB  # peak over what stayed
    assert made.allocator_slack_bytes == 6 * MIB
    assert made.runtime_bytes == (100 - 60 - 5 - 4) * MIB
    assert made.page_cache_bytes == (5 + 3) * MIB  # stale file pages, and what came since
    assert made.unexplained_bytes == (150 - 60 - 9 - 20 - 6 - 31 - 8) * MIB


def test_a_layer_that_passes_through_is_weights_and_no_activations() -> None:
    worst = segment(
        peak={"host.hwm": 150 * MIB},
        gauges={"host.rss": 130 * MIB, "engine.weights_passing": 7 * MIB},
    )
    idle = {"host.rss": 100 * MIB, "engine.weights_resident": 60 * MIB}
    made = host_attribution([worst], engine(idle=idle), composed={})
    assert made is not None
    assert (made.weights_bytes, made.activations_bytes) == (67 * MIB, 13 * MIB)


def test_without_segments_nothing_is_attributed() -> None:
    assert host_attribution([], engine(), composed={"host.heap_free": 0}) is None
    assert gpu_attribution([], GPU_ENGINE) is None


# --- the device's peak -----------------------------------------------------------------------


@given(st.tuples(sizes, sizes), sizes, sizes, st.tuples(sizes, sizes))
def test_the_parts_of_the_devices_peak_add_up_to_it(
    peak: tuple[int, int], now: int, loaded: int, idle: tuple[int, int]
) -> None:
    allocated, reserved = sorted(peak)
    worst = segment(
        peak={"cuda.1.allocated": allocated, "cuda.1.reserved": reserved},
        gauges={"cuda.1.allocated": now},
    )
    used = {"cuda.1.device_used": idle[0], "cuda.1.reserved": idle[1]}
    facts = engine(device="cuda:1", loaded={"cuda.1.allocated": loaded}, idle=used)
    made = gpu_attribution([worst], facts)
    assert made is not None
    assert parts_of(made) == made.total_bytes == gpu_resident_bytes(worst, facts)


def test_each_part_of_the_devices_peak_has_its_own_source() -> None:
    made = gpu_attribution(
        [gpu_segment(510, 600, 500), gpu_segment(650, 700, 500, end_s=3.0)], GPU_ENGINE
    )
    assert made is not None
    pool = 1000 * (MIB // 10)
    assert (made.place, made.at_s) == ("gpu", 3.0)
    assert made.kv_bytes == pool
    assert made.weights_bytes == 500 * MIB - pool  # loaded with the pool in it
    assert made.activations_bytes == 150 * MIB
    assert made.allocator_slack_bytes == 50 * MIB
    assert made.runtime_bytes == 300 * MIB  # the device's use that torch does not know
    assert made.total_bytes == 1000 * MIB
    assert made.unexplained_bytes == 0


def test_an_engine_on_the_host_has_no_device_peak() -> None:
    assert gpu_attribution([gpu_segment(1, 1, 1)], engine()) is None
    assert gpu_attribution([segment()], GPU_ENGINE) is None


# --- what a request owned ----------------------------------------------------------------------


def test_a_steps_transient_is_its_peak_over_what_stayed() -> None:
    assert host_transient_bytes(segment()) == 2 * MIB
    assert gpu_transient_bytes(gpu_segment(650, 700, 500), "cuda.0") == 150 * MIB


@pytest.mark.parametrize(("live_mib", "transient_mib"), [(9, 5), (5, 2), (1, 2)])
def test_counted_tensors_raise_a_steps_transient_and_never_lower_it(
    live_mib: int, transient_mib: int
) -> None:
    counted = segment(
        peak={"host.hwm": IDLE_BYTES + 3 * MIB, "engine.tensors": live_mib * MIB},
        gauges={"host.rss": IDLE_BYTES + MIB, "engine.tensors": 4 * MIB},
    )
    assert host_transient_bytes(counted) == transient_mib * MIB


def test_heap_that_tensors_held_at_the_peak_is_no_slack() -> None:
    counted = segment(
        peak={"host.hwm": IDLE_BYTES + 3 * MIB, "engine.tensors": 9 * MIB},
        gauges={"host.rss": IDLE_BYTES + MIB, "engine.tensors": 4 * MIB},
    )
    made = host_attribution([counted], engine(), composed={"host.heap_free": 7 * MIB})
    assert made is not None
    # 2 of the 5 MiB went back to the kernel, so 3 of the 7 MiB free afterwards were in use.
    assert (made.activations_bytes, made.allocator_slack_bytes) == (5 * MIB, 4 * MIB)
    assert parts_of(made) == made.total_bytes


@pytest.mark.parametrize("kind", ["idle", "release", "load"])
def test_outside_a_step_memory_given_back_is_no_transient(kind: str) -> None:
    assert host_transient_bytes(segment(kind)) == 0  # type: ignore[arg-type]
    closed = gpu_segment(650, 700, 500, kind=kind)
    assert gpu_transient_bytes(closed, "cuda.0") == 0


def test_a_peak_that_the_kernel_reported_late_is_no_negative_transient() -> None:
    late = segment(peak={"host.hwm": IDLE_BYTES}, gauges={"host.rss": IDLE_BYTES + MIB})
    assert host_transient_bytes(late) == 0
    assert gpu_transient_bytes(gpu_segment(500, 700, 501), "cuda.0") == 0
    assert gpu_transient_bytes(segment(), "cuda.0") == 0


@given(st.lists(st.integers(0, 512), min_size=1, max_size=8), sizes)
def test_shares_of_a_segments_transient_add_up_to_it(tokens: list[int], transient: int) -> None:
    flights = [flight(str(i), tokens=count) for i, count in enumerate(tokens)]
    closed = segment(in_flight=tuple(flights), prefill_tokens=sum(tokens))
    shares = [
        owned_bytes(f, closed, transient_bytes=transient, holds_kv=False, is_reserved=False)
        for f in flights
    ]
    expected = transient if sum(tokens) else 0
    assert math.isclose(math.fsum(shares), expected, rel_tol=1e-9)
    assert all(share >= 0 for share in shares)


@pytest.mark.parametrize(
    ("holds_kv", "is_reserved", "kv"),
    [(True, False, 10_000), (True, True, 16_000), (False, True, 0)],
)
def test_a_request_owns_its_kv_where_the_engine_keeps_it(
    holds_kv: bool, is_reserved: bool, kv: int
) -> None:
    closed = segment(prefill_tokens=20, decode_tokens=20)
    owned = owned_bytes(
        flight(), closed, transient_bytes=8000, holds_kv=holds_kv, is_reserved=is_reserved
    )
    assert owned == kv + 8000 * 10 / 40


def owned(segments: list[Segment], facts: EngineFacts, place: str) -> dict[str, float]:
    return dict(peak_owned_bytes(segments, {facts.engine_start: facts}, place))


def test_a_request_owned_what_it_did_in_its_largest_segment() -> None:
    small = segment(in_flight=(flight("a"), flight("b", tokens=0)), prefill_tokens=10)
    large = segment(in_flight=(flight("a", kv_used_bytes=5 * MIB, tokens=1),), decode_tokens=4)
    assert owned([small, large, small], engine(), "cpu") == {
        "a": 5 * MIB + 2 * MIB / 4,
        "b": 10_000,
    }
    assert owned([small], engine(), "cpu")["a"] == 10_000 + 2 * MIB


def test_on_a_device_a_request_owns_kv_there_and_transients_in_both_places() -> None:
    closed = gpu_segment(650, 700, 500, in_flight=(flight(),), prefill_tokens=10)
    assert owned([closed], GPU_ENGINE, "gpu") == {"a": 16_000 + 150 * MIB}
    assert owned([closed], GPU_ENGINE, "cpu") == {"a": 0.0}


def test_a_segment_of_an_unknown_engine_is_passed_over() -> None:
    assert owned([segment(in_flight=(flight(),), engine_start=3)], engine(), "cpu") == {}


# --- the host's peak, told apart by pages ------------------------------------------------------

IDLE_BY_PAGES = {
    "host.rss": 300 * MIB,
    "host.anon": 140 * MIB,
    "host.file": 160 * MIB,
    "engine.kv_resident": 0,
    "host.heap_used": 90 * MIB,
    "host.heap_free": 5 * MIB,
    "host.interpreter": 30 * MIB,
    "host.library_data": 8 * MIB,
    "engine.weights_resident": 120 * MIB,
    "engine.weights_resident_mapped": 80 * MIB,
    "engine.weights_resident_heap": 40 * MIB,
    "engine.weight_files_resident": 81 * MIB,
}
COMPOSED = {
    "host.anon": 210 * MIB,
    "host.file": 162 * MIB,
    "engine.kv_resident": 60 * MIB,
    "engine.kv_blocks": 62 * MIB,
    "host.heap_used": 95 * MIB,
    "host.heap_free": 9 * MIB,
    "host.interpreter": 33 * MIB,
}


def by_pages(idle: dict[str, int] = IDLE_BY_PAGES, **peak: int) -> Attribution:
    """Of a step that ends at 372 MiB with the composition above; 6 MiB were given back within it."""
    worst = segment(
        end_s=7.0,
        peak={"host.hwm": 378 * MIB, **peak},
        gauges={"host.rss": 372 * MIB, **COMPOSED},
        tensors={"lm_head": 7 * MIB},
        peak_module="lm_head",
    )
    made = host_attribution([segment(), worst], engine(idle=idle), composed=worst.gauges)
    assert made is not None
    return made


def test_what_malloc_handed_out_and_nobody_wrote_to_is_no_runtime() -> None:
    worst = segment(
        end_s=7.0,
        peak={"host.hwm": 378 * MIB},
        gauges={"host.rss": 372 * MIB, **COMPOSED, "host.heap_untouched": 17 * MIB},
    )
    made = host_attribution([worst], engine(idle=IDLE_BY_PAGES), composed=worst.gauges)
    assert made is not None
    assert by_pages().runtime_bytes - made.runtime_bytes == 17 * MIB
    assert sum(made.runtime_parts.values()) == made.runtime_bytes
    assert made.unexplained_bytes - by_pages().unexplained_bytes == 17 * MIB


def test_code_that_was_compiled_meanwhile_is_runtime() -> None:
    worst = segment(
        end_s=7.0,
        peak={"host.hwm": 378 * MIB},
        gauges={"host.rss": 372 * MIB, **COMPOSED, "host.jit_code": 4 * MIB},
    )
    made = host_attribution([worst], engine(idle=IDLE_BY_PAGES), composed=worst.gauges)
    assert made is not None
    assert made.runtime_parts["JIT code"] == 4 * MIB
    assert by_pages().unexplained_bytes - made.unexplained_bytes == 4 * MIB


def test_counted_pages_leave_only_what_no_source_names() -> None:
    made = by_pages()
    assert made.weights_bytes == 120 * MIB
    assert made.kv_bytes == 60 * MIB
    assert made.activations_bytes == 6 * MIB
    assert made.allocator_slack_bytes == 9 * MIB
    assert made.page_cache_bytes == (1 + 2) * MIB
    assert made.runtime_parts == {
        "library files": (160 - 81) * MIB,
        "library data": 8 * MIB,
        "library heap": (95 - 40) * MIB,
        "interpreter": 33 * MIB,
    }
    assert made.runtime_bytes == sum(made.runtime_parts.values())
    # Anonymous at the end: 210 = 60 KV + 95 + 9 heap + 33 + 8, and 5 that nothing names.
    assert made.unexplained_bytes == 5 * MIB
    assert parts_of(made) == made.total_bytes
    assert (made.tensors, made.peak_module) == ({"lm_head": 7 * MIB}, "lm_head")


def test_tensors_that_lived_in_free_heap_are_activations_and_no_slack() -> None:
    made = by_pages(**{"engine.tensors": 10 * MIB})
    assert made.activations_bytes == 10 * MIB
    assert made.allocator_slack_bytes == 9 * MIB - (10 - 6) * MIB
    assert made.unexplained_bytes == 5 * MIB


def test_without_a_count_of_the_interpreter_idle_memory_is_runtime_not_told_apart() -> None:
    idle = {k: v for k, v in IDLE_BY_PAGES.items() if k != "host.interpreter"}
    made = by_pages(idle)
    assert made.runtime_parts["not told apart"] == (140 - 90 - 5 - 8) * MIB


def test_blocks_that_came_since_the_pages_were_counted_are_kv() -> None:
    counted = segment("step", end_s=1.0, gauges={"host.rss": 1, "host.heap_free": 0, **COMPOSED})
    later = segment(
        "step",
        end_s=2.0,
        peak={"host.hwm": 400 * MIB},
        gauges={"host.rss": 400 * MIB, "host.file": 162 * MIB, "engine.kv_blocks": 72 * MIB},
    )
    composed = composed_at([counted, later], later)
    made = host_attribution([later], engine(idle=IDLE_BY_PAGES), composed=composed)
    assert made is not None
    assert made.kv_bytes == (60 + 72 - 62) * MIB


def test_an_account_of_another_engine_start_or_of_later_is_not_used() -> None:
    asked = segment("step", end_s=2.0)
    other = segment("step", engine_start=1, end_s=1.0, gauges={"host.rss": 1, "host.heap_free": 1})
    later = segment("step", end_s=3.0, gauges={"host.rss": 1, "host.heap_free": 2})
    assert composed_at([other, asked, later], asked) == {}
