"""What is recommended: within the tolerances, the most bytes for what it costs, and never unknown."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from variant_runs import profile

from memplan.stats.first_technique import FirstTechnique, Tolerances, first_technique
from memplan.stats.summary import RunSummary
from memplan.stats.variants import variant_figures
from memplan.units import MIB

GOOD: dict[str, Any] = {"perplexity": 10.05, "top1_same": 970}


def chosen(*runs: RunSummary, tolerances: Tolerances | None = None) -> FirstTechnique:
    found = first_technique(variant_figures([profile(), *runs]), tolerances)
    assert found is not None
    return found


def verdicts(*runs: RunSummary) -> dict[str, str]:
    return {one.figures.variant: one.verdict for one in chosen(*runs).candidates}


def test_without_a_base_or_anything_beside_it_there_is_no_answer() -> None:
    assert first_technique(variant_figures([profile()])) is None
    assert first_technique(variant_figures([profile("a"), profile("b")])) is None
    unknown = replace(profile(), peak_bytes=None)
    assert first_technique(variant_figures([unknown, profile("a")])) is None


def test_a_lossless_technique_needs_no_quality() -> None:
    found = chosen(profile("jemalloc", peak_mib=450, allocator="jemalloc"))
    assert found.first is not None
    assert (found.first.figures.variant, found.first.saved_bytes) == ("jemalloc", 50 * MIB)
    assert found.first.cost == pytest.approx(0)
    assert found.larger_unknown is None


@pytest.mark.parametrize(
    ("run", "verdict"),
    [
        (profile("a", peak_mib=400, allocator="jemalloc", slower=1.0999), "within"),
        (profile("a", peak_mib=400, allocator="jemalloc", slower=1.11), "too_slow"),
        (profile("a", peak_mib=498.5, allocator="jemalloc"), "saves_nothing"),
        (profile("a", peak_mib=600, allocator="jemalloc"), "saves_nothing"),
        (profile("a", peak_mib=400, max_requests=2, requests=2), "carries_less"),
        (profile("a", peak_mib=400, weights="int8"), "quality_unknown"),
        (profile("a", peak_mib=400, env={"X": "1"}), "quality_unknown"),
        (profile("a", peak_mib=400, weights="int8", quality=GOOD), "within"),
        (profile("a", peak_mib=400, weights="int8", quality={**GOOD, "perplexity": 10.11}),
         "quality_lost"),
        (profile("a", peak_mib=400, weights="int8", quality={**GOOD, "top1_same": 949}),
         "quality_lost"),
        (replace(profile("a", peak_mib=400, allocator="jemalloc"), solo=()), "latency_unknown"),
    ],
)  # fmt: skip
def test_verdicts(run: RunSummary, verdict: str) -> None:
    assert verdicts(run) == {"a": verdict}
    assert (chosen(run).first is not None) is (verdict == "within")


def test_one_slow_figure_of_three_is_enough() -> None:
    run = profile("a", peak_mib=400, max_batch_tokens=64)
    slow_batch = replace(run, rungs=tuple(replace(one, e2e_s=2.5) for one in run.rungs))
    assert verdicts(slow_batch) == {"a": "too_slow"}
    (candidate,) = chosen(slow_batch).candidates
    assert (candidate.slower_in, candidate.slower_ratio) == ("whole batch", pytest.approx(0.25))


def test_a_lossy_technique_of_unknown_cost_is_said_and_not_recommended() -> None:
    found = chosen(
        profile("jemalloc", peak_mib=480, allocator="jemalloc"),
        profile("int8", peak_mib=300, weights="int8"),
    )
    assert found.first is not None and found.first.figures.variant == "jemalloc"
    assert found.larger_unknown is not None
    assert found.larger_unknown.figures.variant == "int8"
    assert found.larger_unknown.cost is None
    smaller = chosen(
        profile("jemalloc", peak_mib=400, allocator="jemalloc"),
        profile("int8", peak_mib=450, weights="int8"),
    )
    assert smaller.larger_unknown is None


def test_a_few_bytes_for_nothing_do_not_come_before_many_for_little() -> None:
    found = chosen(
        profile("trim", peak_mib=490, trim="after_release"),
        profile("int8", peak_mib=250, slower=1.02, weights="int8", quality=GOOD),
    )
    assert found.first is not None and found.first.figures.variant == "int8"


def test_the_higher_steps_of_a_stack_are_no_first() -> None:
    found = chosen(
        profile("stack-1-a", peak_mib=450, step=1, allocator="jemalloc"),
        profile("stack-2-b", peak_mib=300, step=2, allocator="jemalloc", trim="after_release"),
    )
    assert [one.figures.variant for one in found.candidates] == ["stack-1-a"]


@st.composite
def runs(draw: st.DrawFn) -> list[RunSummary]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        weights = draw(st.sampled_from(["bf16", "int8"]))
        perplexity = draw(st.floats(9.9, 10.3))
        scored = draw(st.booleans())
        found.append(
            profile(
                f"v{number}",
                peak_mib=draw(st.floats(200, 600)),
                slower=draw(st.floats(0.8, 1.3)),
                weights=weights,
                allocator=f"a{number}",
                kv=f"k{number}" if weights == "int8" else "bf16",
                quality={"perplexity": perplexity, "top1_same": draw(st.integers(900, 1000))}
                if scored and weights == "int8"
                else None,
            )
        )
    return found


@given(runs(), st.floats(0.01, 0.3), st.floats(0.001, 0.05), st.floats(0.9, 1.0))
def test_what_is_recommended_keeps_every_tolerance(
    found: list[RunSummary], slower: float, perplexity: float, top1: float
) -> None:
    limits = Tolerances(slower_ratio=slower, perplexity_ratio=perplexity, top1_ratio=top1)
    answer = chosen(*found, tolerances=limits)
    if answer.first is None:
        assert all(one.verdict != "within" for one in answer.candidates)
        return
    one = answer.first
    assert one.figures.peak is not None and answer.base.peak is not None
    assert one.figures.peak.high < answer.base.peak.low
    assert one.slower_ratio is not None and one.slower_ratio <= slower
    if one.figures.has_own_numbers:
        assert one.figures.quality is not None
        assert one.figures.quality.perplexity_ratio.value <= 1 + perplexity
        assert one.figures.quality.top1_ratio.value >= top1


@given(runs())
def test_no_other_within_saves_more_for_less(found: list[RunSummary]) -> None:
    answer = chosen(*found)
    if answer.first is None or answer.first.cost is None:
        return
    for one in answer.candidates:
        if one.verdict == "within" and one.cost is not None and one.cost <= answer.first.cost:
            assert one.saved_bytes <= answer.first.saved_bytes


@given(runs(), st.floats(0, 200))
def test_wider_tolerances_never_take_the_answer_away(found: list[RunSummary], more: float) -> None:
    narrow = chosen(*found)
    wide = chosen(
        *found,
        tolerances=Tolerances(
            slower_ratio=0.1 + more, perplexity_ratio=0.01 + more, top1_ratio=0.5
        ),
    )
    assert narrow.first is None or wide.first is not None
