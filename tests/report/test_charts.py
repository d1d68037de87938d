from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_run import (
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)

from memplan.report.charts import figure_of
from memplan.report.document import document_of
from memplan.report.series import Chart, PeakParts, PercentileBars
from memplan.units import MIB

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)
CHARTS: dict[str, Chart] = {
    block.id: block
    for document in (
        document_of([(SUMMARY, RECORDING)]),
        document_of([(profile_summary(), profile_recording())]),
    )
    for section in document.sections
    for block in section.blocks
    if isinstance(block, Chart)
}


def test_a_replay_and_a_profile_have_their_charts() -> None:
    assert set(CHARTS) == {
        "run1-percentiles",
        "run1-scatter",
        "run1-timeline-cpu",
        "run1-parts-cpu",
        "ladder-length",
        "ladder-batch",
    }


@pytest.mark.parametrize("id", sorted(CHARTS))
def test_plotly_itself_accepts_every_figure(id: str) -> None:
    figure = go.Figure(figure_of(CHARTS[id]))
    assert len(figure.data) == len(figure_of(CHARTS[id])["data"]) > 0


def test_the_step_line_reaches_the_peak_and_lasts_to_the_end_of_the_run() -> None:
    figure = figure_of(CHARTS["run1-timeline-cpu"])
    steps = figure["data"][0]
    assert steps["line"]["shape"] == "hv"
    assert max(steps["y"]) == pytest.approx((SUMMARY.peak_bytes or 0) / 2**30, abs=1e-3)
    assert steps["x"][-1] == pytest.approx(RECORDING.segments[-1].end_s)
    assert len(steps["x"]) == len(steps["y"]) == len(RECORDING.segments) + 1
    assert figure["layout"]["annotations"][0]["text"] == "peak 1.21 GiB"


def test_a_withheld_percentile_has_no_bar_and_an_open_interval_no_whisker() -> None:
    figure = figure_of(CHARTS["run1-percentiles"])
    p99 = next(trace for trace in figure["data"] if trace["name"] == "p99")
    assert p99["x"] == ["short", "medium", "long"]
    assert p99["y"][2] is None
    assert p99["error_y"]["array"] == [None, None, None]
    assert p99["error_y"]["arrayminus"][0] > 0


def test_a_negative_rest_is_drawn_below_zero_and_not_hidden() -> None:
    chart = PeakParts(
        id="p", title="", caption="", parts=(("weights", 110 * MIB), ("unexplained", -10 * MIB))
    )
    figure = figure_of(chart)
    assert figure["data"][1]["x"] == [-10.0]
    assert figure["layout"]["barmode"] == "relative"


def test_names_are_escaped_for_plotlys_own_html() -> None:
    nasty = replace(SUMMARY.classes[0], name="<script>alert(1)</script>")
    document = document_of([(replace(SUMMARY, classes=(nasty,)), RECORDING)])
    bars = next(
        block
        for section in document.sections
        for block in section.blocks
        if isinstance(block, PercentileBars)
    )
    assert figure_of(bars)["data"][0]["x"] == ["&lt;script&gt;alert(1)&lt;/script&gt;"]
