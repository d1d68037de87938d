"""The witness's pace, by numbers that can be counted on fingers."""

from __future__ import annotations

from array import array

import pytest
from builders import IDLE_BYTES, engine, recording, segment

from memplan.records import Witness
from memplan.stats.summarise import summarise
from memplan.stats.witness import witness_summary
from memplan.units import MIB


def read_at(*times_s: float) -> Witness:
    sizes = range(IDLE_BYTES, IDLE_BYTES + len(times_s))
    return Witness(
        t_s=array("d", times_s),
        rss_bytes=array("q", sizes),
        period_s=1e-3,
        policy="nice",
        cpu_s=0.25,
    )


def test_gaps_are_observed_values() -> None:
    found = witness_summary(recording(witness=read_at(1.0, 1.1, 1.2, 1.3, 1.8)))
    assert found is not None
    assert (found.n, found.policy, found.cpu_s) == (5, "nice", 0.25)
    assert found.max_bytes == IDLE_BYTES + 4
    assert found.gap_p50_s == pytest.approx(0.1)
    assert found.gap_p99_s == found.gap_max_s == pytest.approx(0.5)


def test_its_rest_while_an_engine_starts_is_no_gap() -> None:
    engines = (engine(ready_s=0.9), engine(engine_start=1, ready_s=7.9))
    found = witness_summary(recording(engines=engines, witness=read_at(1.0, 1.1, 8.0, 8.1)))
    assert found is not None
    assert found.gap_max_s == pytest.approx(0.1)


@pytest.mark.parametrize("times", [(), (1.0,)])
def test_too_few_readings_have_no_gaps(times: tuple[float, ...]) -> None:
    found = witness_summary(recording(witness=read_at(*times)))
    assert found is not None
    assert (found.n, found.gap_p50_s, found.gap_p99_s, found.gap_max_s) == (len(times), *[None] * 3)


def test_no_witness_has_no_summary_and_one_may_hold_the_peak() -> None:
    assert summarise(recording()).witness is None
    run = recording(segments=(segment(peak={"host.hwm": MIB}),), witness=read_at(1.0, 1.1))
    assert summarise(run).peak_bytes == IDLE_BYTES + 1
    assert summarise(recording(witness=read_at())).peak_bytes == IDLE_BYTES + 3 * MIB
