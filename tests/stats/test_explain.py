"""Why a class peaked: which segment, whose bytes, and suggestions that are arithmetic on them."""

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

from memplan.records import Recording, Segment
from memplan.stats.explain import explain
from memplan.stats.explanation import Explanation, Suggestion
from memplan.stats.summary import Attribution
from memplan.units import MIB


def run_of(
    segments: list[Segment], settings: dict[str, Any] | None = None, **changes: Any
) -> Recording:
    """Requests a, b, c (short) and z (long), admitted in this order; every one completed."""
    asked = [request(name, arrival_s=float(at)) for at, name in enumerate("abc")]
    asked.append(request("z", arrival_s=3.0, class_name="long", input_tokens=400))
    made: dict[str, Any] = {
        "header": header(deployment={"settings": settings or {}}),
        "requests": tuple(asked),
        "outcomes": {one.request_id: completed(one) for one in asked},
        "segments": tuple(segments),
    }
    return recording(**{**made, **changes})


def step(peak_mib: float, *names: str, at_s: float = 0.0, **changes: Any) -> Segment:
    """A step that peaked so much over idle, of which 1 MiB stayed; 10 tokens of each request."""
    made: dict[str, Any] = {
        "start_s": at_s,
        "end_s": at_s + 0.1,
        "peak": {"host.hwm": IDLE_BYTES + round(peak_mib * MIB)},
        "in_flight": tuple(flight(name) for name in names),
        "prefill_tokens": 10 * len(names),
    }
    return segment(**{**made, **changes})


def only(found: Recording, budget: dict[str, float] | None = None) -> Explanation:
    explained = explain(found, budget or {})
    assert [one.class_name for one in explained.classes] == ["short"]
    return explained.classes[0]


def suggested(one: Explanation) -> dict[str, Suggestion]:
    return {suggestion.code: suggestion for suggestion in one.suggestions}


def sum_of(parts: Attribution) -> int:
    return (
        parts.weights_bytes
        + parts.kv_bytes
        + parts.activations_bytes
        + parts.runtime_bytes
        + parts.allocator_slack_bytes
        + parts.page_cache_bytes
        + parts.unexplained_bytes
    )


# --- which segment -----------------------------------------------------------------------------


def test_each_class_has_its_own_worst_segment_and_its_parts_add_up() -> None:
    found = explain(run_of([step(3, "a"), step(9, "z", at_s=1.0), step(5, "a", "z", at_s=2.0)]), {})
    short, long = found.classes
    assert (short.class_name, short.start_s, short.end_s) == ("short", 2.0, 2.1)
    assert (long.class_name, long.start_s) == ("long", 1.0)
    assert short.attribution.total_bytes == IDLE_BYTES + 5 * MIB == sum_of(short.attribution)
    assert long.attribution.total_bytes == IDLE_BYTES + 9 * MIB == sum_of(long.attribution)
    assert found.place == "cpu"
    assert found.never_in_flight == ()


def test_of_equal_peaks_the_earliest_is_explained() -> None:
    assert only(run_of([step(5, "a", at_s=1.0), step(5, "b", at_s=2.0)])).start_s == 1.0


def test_a_class_that_was_never_in_flight_is_absent_and_said() -> None:
    found = explain(run_of([step(5, "a"), step(9)]), {})
    assert [one.class_name for one in found.classes] == ["short"]
    assert found.never_in_flight == ("long",)


def test_setting_up_explains_no_class_and_neither_does_an_engine_that_was_never_ready() -> None:
    segments = [step(9, "a", kind="warmup"), step(8, "a", engine_start=1), step(2, "a", at_s=1.0)]
    assert only(run_of(segments)).start_s == 1.0


def test_rungs_of_a_ladder_are_no_class_and_solo_requests_are() -> None:
    asked = (request("a"), request("rung", class_name="ladder"))
    found = run_of([step(5, "rung"), step(3, "a", at_s=1.0)], requests=asked)
    assert only(found).start_s == 1.0


def test_slack_is_the_heaps_last_account_before_the_segment_closed() -> None:
    segments = [
        segment("idle", end_s=0.1, gauges={"host.rss": IDLE_BYTES, "host.heap_free": 3 * MIB}),
        step(9, "a", at_s=1.0),
        step(
            2, "b", at_s=2.0, gauges={"host.rss": IDLE_BYTES + 2 * MIB, "host.heap_free": 7 * MIB}
        ),
    ]
    parts = only(run_of(segments)).attribution
    assert (parts.allocator_slack_bytes, sum_of(parts)) == (3 * MIB, parts.total_bytes)


# --- who held it -------------------------------------------------------------------------------


def test_holders_are_sorted_by_what_they_owned_and_equals_by_name() -> None:
    flights = (
        flight("c", kv_used_bytes=10, tokens=0),
        flight("b", kv_used_bytes=10, tokens=0),
        flight("z", kv_used_bytes=5, tokens=30),
        flight("a", kv_used_bytes=5 * MIB, tokens=10),
    )
    one = explain(run_of([step(5, in_flight=flights, prefill_tokens=40)]), {}).classes[0]
    assert [held.request_id for held in one.held] == ["a", "z", "b", "c"]
    assert one.transient_bytes == 4 * MIB
    first, second = one.held[:2]
    assert (first.owned_bytes, first.transient_bytes) == (5 * MIB + MIB, MIB)
    assert (second.class_name, second.input_tokens, second.output_tokens) == ("long", 400, 2)
    assert second.owned_bytes == 5 + 3 * MIB
    assert second.kv_reserved_bytes == 16_000
    assert sum(held.transient_bytes for held in one.held) == one.transient_bytes


# --- on a device -------------------------------------------------------------------------------

GPU = engine(
    device="cuda:0",
    kv_kind="reserved",
    kv_pool_tokens=1000,
    loaded={"cuda.0.allocated": 500 * MIB},
    idle={"host.rss": IDLE_BYTES, "cuda.0.device_used": 900 * MIB, "cuda.0.reserved": 600 * MIB},
)


def gpu_step(peak_mib: int, reserved_mib: int, at_s: float, **changes: Any) -> Segment:
    return step(
        0,
        "a",
        at_s=at_s,
        peak={
            "host.hwm": IDLE_BYTES,
            "cuda.0.allocated": peak_mib * MIB,
            "cuda.0.reserved": reserved_mib * MIB,
        },
        gauges={"host.rss": IDLE_BYTES, "cuda.0.allocated": 500 * MIB},
        **changes,
    )


def test_a_gpu_run_is_explained_by_device_bytes() -> None:
    segments = [gpu_step(510, 600, 0.0), gpu_step(650, 700, 1.0), step(999, "a", at_s=2.0)]
    found = run_of(segments, engines=(GPU,))
    one = only(found)
    assert explain(found, {}).place == "gpu"
    assert (one.start_s, one.transient_bytes) == (1.0, 150 * MIB)
    assert one.attribution.place == "gpu"
    assert one.attribution.total_bytes == 1000 * MIB == sum_of(one.attribution)
    assert one.held[0].owned_bytes == 16_000 + 150 * MIB


def test_a_pool_larger_than_was_ever_reserved_can_shrink_to_that() -> None:
    most = gpu_step(510, 600, 0.0, in_flight=(flight("a"), flight("b", kv_reserved_bytes=48_000)))
    found = run_of([most, gpu_step(650, 700, 1.0)], {"max_kv_tokens": 1000}, engines=(GPU,))
    made = suggested(only(found))
    assert made["max_kv_tokens"].change == "max_kv_tokens: 64 (now 1000)"
    assert made["max_kv_tokens"].saves_bytes == (1000 - 64) * KV_BYTES_PER_TOKEN
    assert "(1,000 − 64) × 1000 B" in made["max_kv_tokens"].effect
    assert "max_requests" not in made, "fewer requests leave a reserved pool as it is"
    assert "allocator_slack" not in made, "malloc's variables do nothing on a device"


def test_a_pool_is_never_shrunk_below_the_context_that_was_set() -> None:
    segments = [gpu_step(650, 700, 1.0)]
    whole = run_of(segments, {"context_tokens": 1000}, engines=(GPU,))
    assert "max_kv_tokens" not in suggested(only(whole))
    part = run_of(segments, {"context_tokens": 900}, engines=(GPU,))
    assert suggested(only(part))["max_kv_tokens"].saves_bytes == 100 * KV_BYTES_PER_TOKEN


# --- what would lower it -----------------------------------------------------------------------


def test_fewer_requests_would_have_left_out_the_last_ones_admitted() -> None:
    flights = tuple(
        flight(name, kv_used_bytes=kv * MIB, tokens=0)
        for name, kv in (("z", 8), ("c", 4), ("b", 2), ("a", 1))
    )
    found = run_of([step(20, in_flight=flights, decode_tokens=4)], {"max_requests": 16})
    made = suggested(explain(found, {}).classes[0])["max_requests"]
    assert made.change == "max_requests: 2 (now 16)"
    assert made.saves_bytes == 12 * MIB
    assert made.effect == (
        "of 4 in flight the last 2 admitted would have waited, and with them their KV: "
        "4.00 MiB + 8.00 MiB = 12.0 MiB"
    )
    assert made.is_measured


def test_where_the_last_ones_had_no_kv_yet_more_have_to_wait_until_one_had() -> None:
    flights = tuple(
        flight(name, kv_used_bytes=kv * MIB)
        for name, kv in (("a", 8), ("b", 4), ("c", 0), ("z", 0))
    )
    made = suggested(explain(run_of([step(20, in_flight=flights)]), {}).classes[0])
    assert made["max_requests"].change == "max_requests: 1"
    assert made["max_requests"].effect.endswith("their KV: 4.00 MiB")


@pytest.mark.parametrize("kv_used", [(5, 0), (0, 0)])
def test_the_first_request_is_never_left_out(kv_used: tuple[int, int]) -> None:
    flights = tuple(flight(name, kv_used_bytes=kv) for name, kv in zip("ab", kv_used, strict=True))
    assert "max_requests" not in suggested(only(run_of([step(20, in_flight=flights)])))


def test_a_request_cut_off_in_flight_was_admitted_last() -> None:
    flights = (flight("a", kv_used_bytes=7 * MIB), flight("b", kv_used_bytes=MIB))
    found = run_of([step(20, in_flight=flights)])
    outcomes = {
        **found.outcomes,
        "a": completed(found.requests[0], outcome="unfinished", admitted_s=None),
    }
    cut_off = run_of([step(20, in_flight=flights)], outcomes=outcomes)
    assert suggested(only(cut_off))["max_requests"].saves_bytes == 7 * MIB


def test_many_addends_are_given_as_their_sum() -> None:
    names = "abcdefghij"
    asked = tuple(request(name) for name in names)
    flights = tuple(flight(name, kv_used_bytes=MIB) for name in names)
    found = run_of(
        [step(20, in_flight=flights)],
        requests=asked,
        outcomes={one.request_id: completed(one) for one in asked},
    )
    assert suggested(only(found))["max_requests"].effect.endswith("their KV: 5.00 MiB in all")


def test_half_the_batchs_tokens_are_about_half_the_activations() -> None:
    found = run_of([step(9, "a", "b")], {"max_requests": 4, "max_batch_tokens": 512})
    made = suggested(only(found))["max_batch_tokens"]
    assert made.change == "max_batch_tokens: 10 (now 512)"
    assert made.saves_bytes == 4 * MIB
    assert "about 8.00 MiB × (1 − 10 / 20) = 4.00 MiB" in made.effect
    assert made.effect.endswith("not measured; profile a variant with it to know")
    assert not made.is_measured


def test_a_batch_keeps_a_token_for_each_request() -> None:
    least = {"max_requests": 15}
    made = suggested(only(run_of([step(9, "a", "b")], least)))["max_batch_tokens"]
    assert made.change == "max_batch_tokens: 15"
    assert made.saves_bytes == 2 * MIB
    assert "max_batch_tokens" not in suggested(only(run_of([step(9, "a")], least)))


def test_decodes_alone_are_not_bounded_by_the_batchs_tokens() -> None:
    decodes = step(9, "a", "b", prefill_tokens=0, decode_tokens=20)
    assert "max_batch_tokens" not in suggested(only(run_of([decodes])))


TORCH = engine(engine="torch")


def test_fp32_halves_to_bf16() -> None:
    made = suggested(
        only(run_of([step(9, "a")], {"weights": "fp32", "kv": "fp32"}, engines=(TORCH,)))
    )
    assert (made["weights"].change, made["weights"].saves_bytes) == (
        "weights: bf16 (now fp32)",
        30 * MIB,
    )
    assert (made["kv"].change, made["kv"].saves_bytes) == ("kv: bf16 (now fp32)", MIB / 2)


@pytest.mark.parametrize(
    ("mapped_bytes", "told"), [(0, "60.0 MiB;"), (MIB, "60.0 MiB, 1.00 MiB of them file pages")]
)
def test_what_int8_would_save_is_not_guessed(mapped_bytes: int, told: str) -> None:
    facts = engine(engine="torch", weights_mapped_bytes=mapped_bytes)
    one = only(run_of([step(9, "a")], {"weights": "bf16", "kv": "bf16"}, engines=(facts,)))
    made = suggested(one)
    assert made["weights"].saves_bytes is None
    assert told in made["weights"].effect
    assert "kv" not in made
    assert one.suggestions[-1].code == "weights", "what is unknown comes last"


@pytest.mark.parametrize(
    ("settings", "facts"),
    [({"weights": "int8", "kv": "bf16"}, TORCH), ({"weights": "fp32", "kv": "fp32"}, engine())],
    ids=["int8 already", "an engine that stores no tensors"],
)
def test_a_dtype_that_would_change_nothing_is_not_suggested(
    settings: dict[str, Any], facts: Any
) -> None:
    made = suggested(only(run_of([step(9, "a")], settings, engines=(facts,))))
    assert not {"weights", "kv"} & made.keys()


@pytest.mark.parametrize(
    ("stored", "saves"),
    [
        ("fp32", {"kv": 2 / 4, "kv_int8": 1 - 1.125 / 4, "kv_int4": 1 - 0.625 / 4}),
        ("bf16", {"kv_int8": 1 - 1.125 / 2, "kv_int4": 1 - 0.625 / 2}),
        ("int8", {"kv_int4": 1 - 0.625 / 1.125}),
        ("int4", {}),
    ],
)
def test_a_narrower_kv_saves_the_bits_of_its_values(stored: str, saves: dict[str, float]) -> None:
    made = suggested(only(run_of([step(9, "a")], {"kv": stored}, engines=(TORCH,))))
    found = {
        code: one for code, one in made.items() if code.startswith("kv") and code != "kv_reserve"
    }
    assert {code: one.saves_bytes for code, one in found.items()} == pytest.approx(
        {code: ratio * MIB for code, ratio in saves.items()}
    )
    assert not any(one.is_measured for one in found.values())


def test_int4_weights_have_a_bound_and_no_guess() -> None:
    made = suggested(only(run_of([step(9, "a")], {"weights": "int8"}, engines=(TORCH,))))
    assert made["weights_int4"].saves_bytes is None
    assert "at most 60.0 MiB × (1 − 5 / 8) = 22.5 MiB" in made["weights_int4"].effect
    fp32 = suggested(only(run_of([step(9, "a")], {"weights": "fp32"}, engines=(TORCH,))))
    assert "weights_int4" not in fp32, "int4 is computed in bf16"


def with_prefixes(*ids: tuple[int, ...], used_tokens: int = 40) -> Recording:
    """Requests a, b, … of 40 prompt tokens, blocks of 8; so many of the tokens have their KV."""
    asked = tuple(
        request(name, input_tokens=40, prefix_ids=one, prefix_block_tokens=8)
        for name, one in zip("abc", ids, strict=False)
    )
    flights = tuple(
        flight(one.request_id, kv_used_bytes=used_tokens * KV_BYTES_PER_TOKEN) for one in asked
    )
    return run_of(
        [step(9, in_flight=flights)],
        {"prefix_sharing": "off"},
        requests=asked,
        outcomes={one.request_id: completed(one) for one in asked},
    )


def test_prompts_in_flight_that_begin_alike_would_share_whole_blocks() -> None:
    # b repeats 24 tokens of a, which are one whole block of 16; c repeats 40 of b: two.
    found = with_prefixes((1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 3, 5, 6))
    made = suggested(only(found))["prefix_sharing"]
    assert made.change == "prefix_sharing: running (now off)"
    assert made.saves_bytes == (16 + 32) * KV_BYTES_PER_TOKEN
    assert not made.is_measured
    assert "in the run 53% of all prompt tokens repeat a beginning" in made.effect  # 24 + 40 of 120


def test_tokens_without_kv_yet_and_prompts_that_differ_share_nothing() -> None:
    assert "prefix_sharing" not in suggested(only(with_prefixes((1, 2), (3, 2))))
    early = with_prefixes((1, 2, 3), (1, 2, 3), used_tokens=15)
    assert "prefix_sharing" not in suggested(only(early))


def test_kept_blocks_are_a_measured_saving() -> None:
    gauges = {"host.rss": IDLE_BYTES + MIB, "engine.kv_blocks": MIB, "engine.kv_kept": 5 * MIB}
    made = suggested(only(run_of([step(9, "a", gauges=gauges)], {"prefix_sharing": "kept"})))[
        "prefix_sharing"
    ]
    assert (made.saves_bytes, made.is_measured) == (5 * MIB, True)


def holders(**changes: Any) -> Recording:
    """a and b with 4 MiB of KV each, of a peak of 20 MiB over idle."""
    flights = tuple(flight(name, kv_used_bytes=4 * MIB) for name in "ab")
    gauges = {"host.rss": IDLE_BYTES + 9 * MIB, "engine.kv_blocks": 8 * MIB}
    settings = {"kv_reserve": "whole", "preempt": "recompute", "offload": "never"}
    made: dict[str, Any] = {"engines": (TORCH,), **changes}
    return run_of([step(20, in_flight=flights, gauges=gauges)], settings, **made)


def test_a_smaller_pool_makes_the_youngest_wait_on_disk() -> None:
    made = suggested(only(holders()))["kv_reserve"]
    # Half the KV is 4,194,304 bytes: 4,195 tokens, in whole blocks 4,208.
    assert made.change == "max_kv_tokens: 4208, kv_reserve: prompt, preempt: swap, offload: disk"
    assert made.saves_bytes == 8 * MIB - 4208 * KV_BYTES_PER_TOKEN
    assert not made.is_measured


def test_an_engine_that_has_nothing_to_move_computes_again() -> None:
    made = suggested(only(holders(engines=(engine(engine="ballast"),))))["kv_reserve"]
    assert made.change == "max_kv_tokens: 4208, kv_reserve: prompt"


def test_a_pool_on_a_device_may_be_as_small_as_what_was_written() -> None:
    on_gpu = engine(
        engine="torch", device="cuda:0", kv_kind="reserved", loaded={"cuda.0.allocated": 61 * MIB}
    )
    gpu = {"cuda.0.reserved": 70 * MIB, "cuda.0.allocated": 66 * MIB}
    worst = segment(
        peak={"host.hwm": IDLE_BYTES, **gpu},
        gauges={"host.rss": IDLE_BYTES, **gpu},
        in_flight=(flight("a", kv_used_bytes=500_000, kv_reserved_bytes=900_000),),
        prefill_tokens=10,
    )
    found = run_of([worst], {"kv_reserve": "whole", "offload": "never"}, engines=(on_gpu,))
    made = suggested(only(found))["kv_reserve"]
    assert made.change.startswith("max_kv_tokens: 500, kv_reserve: prompt")
    assert "offload: host" in made.change
    assert made.saves_bytes == (4000 - 500) * KV_BYTES_PER_TOKEN


def test_a_budget_leaves_room_for_half_the_kv_or_the_longest_request() -> None:
    made = suggested(only(holders()))["memory_budget"]
    # 120 MiB, of which 8 are KV.
    assert (made.change, made.saves_bytes) == ("memory_budget: 116MiB", 4 * MIB)
    alone = suggested(only(run_of([step(20, "a")])))
    assert "memory_budget" not in alone
    long = request("z", class_name="long", input_tokens=8 * MIB // KV_BYTES_PER_TOKEN)
    asked = (request("a"), request("b"), long)
    outcomes = {one.request_id: completed(one) for one in asked}
    assert "memory_budget" not in suggested(only(holders(requests=asked, outcomes=outcomes)))


def slack_step(heap_free_mib: int) -> Segment:
    gauges = {"host.rss": IDLE_BYTES + 10 * MIB, "host.heap_free": heap_free_mib * MIB}
    return step(10, "a", gauges=gauges)


def test_slack_over_a_twentieth_of_the_peak_names_the_thresholds_that_are_not_set() -> None:
    one = {"env": {"MALLOC_TRIM_THRESHOLD_": "65536"}}
    made = suggested(only(run_of([slack_step(11)], one)))["allocator_slack"]
    assert made.change == "malloc_mmap_threshold: 128KiB"
    assert made.saves_bytes == 11 * MIB
    assert "11.0 MiB, 10.0 % of the peak" in made.effect
    both = suggested(only(run_of([slack_step(11)])))["allocator_slack"]
    assert both.change == "malloc_mmap_threshold: 128KiB, malloc_trim_threshold: 128KiB"
    key = {"malloc_mmap_threshold_bytes": 2**18}
    assert suggested(only(run_of([slack_step(11)], key)))["allocator_slack"].change == (
        "malloc_trim_threshold: 128KiB"
    )


def test_little_slack_or_thresholds_set_already_suggest_nothing() -> None:
    assert "allocator_slack" not in suggested(only(run_of([slack_step(5)])))
    env = {"MALLOC_TRIM_THRESHOLD_": "1", "MALLOC_MMAP_THRESHOLD_": "1"}
    assert "allocator_slack" not in suggested(only(run_of([slack_step(11)], {"env": env})))
    other = {"allocator": "jemalloc"}
    assert "allocator_slack" not in suggested(only(run_of([slack_step(11)], other)))


def test_a_runtime_larger_than_every_other_part_asks_for_fewer_replicas() -> None:
    facts = engine(idle={"host.rss": IDLE_BYTES, "engine.weights_resident": 20 * MIB})
    made = suggested(only(run_of([step(9, "a")], engines=(facts,))))["runtime"]
    assert made.saves_bytes == 0
    assert "80.0 MiB or 73.4 % of the peak" in made.effect
    assert "runtime" not in suggested(only(run_of([step(9, "a")])))


def test_a_budget_that_was_exceeded_comes_first_with_the_tokens_over_it() -> None:
    flights = (flight("a", kv_used_bytes=3 * MIB), flight("b", kv_used_bytes=MIB, tokens=0))
    found = run_of([step(1, in_flight=flights, prefill_tokens=10)])
    budget = 3 * MIB - 1500
    one = only(found, {"short": budget})
    made = one.suggestions[0]
    assert (made.code, made.saves_bytes) == ("over_budget", 1500)
    assert "a owned 3.00 MiB of a budget.cpu of 3.00 MiB: exceeded by 1.46 KiB" in made.effect
    assert "= 2 tokens × 1000 B of KV" in made.effect
    assert "over_budget" not in suggested(only(found, {"short": 3 * MIB}))


def test_what_exceeds_a_budget_by_more_than_its_kv_is_no_number_of_tokens() -> None:
    made = only(run_of([step(9, "a")]), {"short": MIB}).suggestions[0]
    assert made.saves_bytes == 10_000 + 8 * MIB - MIB
    assert "tokens" not in made.effect


def test_suggestions_are_sorted_by_what_they_save() -> None:
    flights = (flight("a", kv_used_bytes=MIB), flight("b", kv_used_bytes=2 * MIB))
    one = only(run_of([step(9, in_flight=flights, prefill_tokens=20)]))
    assert [(s.code, s.saves_bytes) for s in one.suggestions] == [
        ("max_batch_tokens", 4 * MIB),
        ("max_requests", 2 * MIB),
        # A pool of one MiB of tokens in whole blocks, of the 3 MiB that both hold.
        ("kv_reserve", 3 * MIB - 1056 * KV_BYTES_PER_TOKEN),
    ]


def test_a_recording_without_settings_is_still_explained() -> None:
    found = run_of([step(9, "a")], header=header(deployment={"settings": "none"}))
    assert suggested(only(found))["max_batch_tokens"].change == "max_batch_tokens: 5"
