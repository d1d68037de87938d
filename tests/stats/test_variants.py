"""What is set against what: the same work, the spread of fresh processes, and a stack as measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from variant_runs import batch, profile, solo, timed

from memplan.stats.summary import RunSummary
from memplan.stats.variants import stack_of, variant_figures
from memplan.units import MIB


def test_only_profiles_are_variants() -> None:
    assert variant_figures([replace(profile(), kind="replay")]) == ()


def test_what_a_variant_changes_is_against_the_base_wherever_it_stands() -> None:
    int8, base = variant_figures([profile("int8", weights="int8"), profile()])
    assert int8.changes == {"weights": "int8"}
    assert (base.changes, base.has_own_numbers) == ({}, False)
    assert int8.has_own_numbers
    (lone,) = variant_figures([profile("jemalloc", allocator="jemalloc")])
    assert lone.changes == {}, "without a base the first is what the others are held against"


def test_the_peak_is_as_sure_as_the_idle_memory_of_fresh_processes() -> None:
    wide, narrow = variant_figures([profile(idle_reach_mib=7), profile("a", idle_reach_mib=0)])
    assert wide.peak is not None and narrow.peak is not None
    assert (wide.peak.low, wide.peak.high) == (493 * MIB, 507 * MIB)
    assert narrow.peak.high - narrow.peak.value == MIB // 2, "the drift of the kernel's mark"
    assert wide.idle is not None
    assert (wide.idle.n, wide.idle.low, wide.idle.high) == (7, 400 * MIB, 407 * MIB)


def test_times_are_those_of_the_largest_batch_that_all_ran_who_carry_as_much_as_the_base() -> None:
    few = profile("few", requests=2, max_requests=2)
    many = replace(profile("many"), rungs=(*profile().rungs, batch(8)))
    base, small, large = variant_figures([profile(), few, many])
    assert [one.decode_requests for one in (base, small, large)] == [4, None, 4]
    assert small.decode is None and small.batch is None
    assert (small.requests_at_once, large.requests_at_once) == (2, 8)
    assert not small.carries(base)
    assert large.carries(base)


def test_a_batch_that_did_not_complete_is_not_carried() -> None:
    broken = replace(profile("broken"), rungs=(batch(1), batch(2, completed=1, e2e_s=1.0)))
    base, other = variant_figures([profile(), broken])
    assert (base.requests_at_once, other.requests_at_once) == (4, 1)
    assert other.batch is None


def test_a_decode_step_is_no_surer_than_fresh_processes_are_alike() -> None:
    run = replace(profile(), solo=(solo(tpot=timed(0.03, spread=0.2)),))
    (one,) = variant_figures([run])
    assert one.decode is not None and one.batch is not None
    assert one.decode.value == 0.03
    assert one.decode.high == pytest.approx(0.036)
    assert (one.batch.low, one.batch.n) == (pytest.approx(1.6), 1)


def test_prompts_are_compared_at_the_longest_that_all_ran() -> None:
    short_only = replace(profile("short"), solo=(solo("short", 300, ttft=timed(0.3)),))
    base, other = variant_figures([profile(), short_only])
    assert (base.prompt_tokens, other.prompt_tokens) == (300, 300)
    assert base.prompt is not None and base.prompt.value == pytest.approx(0.2)


def test_a_variant_of_the_same_numbers_has_their_quality() -> None:
    scored = profile(quality={})
    base, jemalloc, int8 = variant_figures(
        [scored, profile("jemalloc", allocator="jemalloc"), profile("int8", weights="int8")]
    )
    assert base.quality == jemalloc.quality is not None
    assert (base.is_quality_own, jemalloc.is_quality_own) == (True, False)
    assert int8.quality is None


def test_an_older_recording_is_known_to_be_the_same_as_nothing_else() -> None:
    old = replace(profile("old"), variant_facts=None)
    base, other = variant_figures([profile(quality={}), old])
    assert other.quality is None
    assert other.idle is None
    assert other.numbers != base.numbers


def stack(peaks_mib: list[float]) -> list[RunSummary]:
    return [
        profile(f"stack-{number}-x" if number else "base", peak_mib=peak, step=number or None)
        for number, peak in enumerate(peaks_mib)
    ]


@given(st.lists(st.integers(110, 10_000), min_size=2, max_size=8))
def test_measured_changes_lead_from_the_base_to_the_last_step(peaks_mib: list[float]) -> None:
    steps = stack_of(variant_figures(stack(peaks_mib)))
    assert [step.number for step in steps] == list(range(len(peaks_mib)))
    changes = [step.peak_change_bytes for step in steps[1:]]
    assert None not in changes
    total = sum(change for change in changes if change is not None)
    assert total == (peaks_mib[-1] - peaks_mib[0]) * MIB
    assert steps[0].peak_change_bytes is None
    assert [step.idle_change_bytes for step in steps[1:]] == changes


def test_a_step_whose_step_below_is_missing_has_no_change() -> None:
    base, _, last = stack([500, 400, 300])
    steps = stack_of(variant_figures([base, last]))
    assert [(step.number, step.peak_change_bytes) for step in steps] == [(0, None), (2, None)]


def test_without_steps_there_is_no_stack() -> None:
    assert stack_of(variant_figures([profile(), profile("int8", weights="int8")])) == ()
