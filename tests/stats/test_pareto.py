"""The laws of the front: somebody is on it, nobody beats himself, and noise beats nobody."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from variant_runs import profile

from memplan.stats.pareto import dominates, front_of
from memplan.stats.variants import VariantFigures, variant_figures

WEIGHTS = ("bf16", "int8", "int4")


@st.composite
def variants(draw: st.DrawFn) -> tuple[VariantFigures, ...]:
    runs = []
    for number in range(draw(st.integers(1, 8))):
        weights = draw(st.sampled_from(WEIGHTS))
        scored: dict[str, Any] | None = None
        if weights != "int4":  # int4 was never scored
            scored = {"perplexity": 10.0 if weights == "bf16" else draw(st.floats(9.5, 12))}
        runs.append(
            profile(
                "base" if number == 0 else f"v{number}",
                peak_mib=draw(st.floats(150, 800)),
                slower=draw(st.floats(0.5, 2.0)),
                idle_reach_mib=draw(st.floats(0, 100)),
                weights=weights,
                quality=scored,
                requests=draw(st.sampled_from([2, 4])),
            )
        )
    return variant_figures(runs)


@given(variants())
def test_somebody_is_on_the_front(figures: tuple[VariantFigures, ...]) -> None:
    front = front_of(figures)
    assert front
    assert sorted(front) == list(front)
    for at, one in enumerate(figures):
        beaten = any(dominates(other, one) for other in figures)
        assert (at in front) is not beaten


@given(variants())
def test_nobody_beats_himself_and_no_two_beat_each_other(
    figures: tuple[VariantFigures, ...],
) -> None:
    for one in figures:
        assert not dominates(one, one)
        assert not any(dominates(one, other) and dominates(other, one) for other in figures)


@given(variants(), st.randoms())
def test_the_order_of_variants_changes_no_front(
    figures: tuple[VariantFigures, ...], random: Any
) -> None:
    shuffled = list(figures)
    random.shuffle(shuffled)
    named = {figures[at].variant for at in front_of(figures)}
    assert {shuffled[at].variant for at in front_of(shuffled)} == named


@given(st.floats(0, 0.99), st.floats(0, 0.0099))
def test_what_is_within_the_spread_beats_nobody(memory: float, time: float) -> None:
    # A peak may be off by 10 MiB to either side, a time by 1 %.
    figures = variant_figures(
        [
            profile(idle_reach_mib=10),
            profile("a", peak_mib=500 - 20 * memory, slower=1 - time, idle_reach_mib=10),
        ]
    )
    assert front_of(figures) == (0, 1)


def test_less_memory_at_the_same_times_beats() -> None:
    assert front_of(variant_figures([profile(), profile("a", peak_mib=400)])) == (1,)


def test_less_memory_that_costs_time_stands_beside_it() -> None:
    assert front_of(variant_figures([profile(), profile("a", peak_mib=400, slower=1.2)])) == (0, 1)


def test_nothing_beats_where_quality_was_not_measured() -> None:
    runs = [profile(quality={}), profile("int8", peak_mib=300, weights="int8")]
    assert front_of(variant_figures(runs)) == (0, 1)
    runs[1] = profile("int8", peak_mib=300, weights="int8", quality={})
    assert front_of(variant_figures(runs)) == (1,)


def test_worse_answers_stand_beside_more_memory() -> None:
    scored = {"perplexity": 15.0}
    runs = [profile(quality={}), profile("int4", peak_mib=300, weights="int4", quality=scored)]
    assert front_of(variant_figures(runs)) == (0, 1)


def test_who_carries_less_beats_nobody() -> None:
    assert front_of(variant_figures([profile(), profile("few", peak_mib=300, requests=2)])) == (
        0,
        1,
    )


def test_a_variant_without_a_peak_is_left_out() -> None:
    broken = replace(profile("broken"), peak_bytes=None)
    assert front_of(variant_figures([profile(), broken])) == (0,)


def test_a_time_that_only_one_has_is_no_reason() -> None:
    untimed = replace(profile("untimed", peak_mib=300), solo=())
    assert front_of(variant_figures([profile(), untimed])) == (0, 1)
