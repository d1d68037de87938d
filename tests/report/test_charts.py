from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_run import (
    IDLE_BYTES,
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)

from memplan.report.charts import figure_of
from memplan.report.document import document_of
from memplan.report.series import Chart, PeakParts, PercentileBars, StackWaterfall, VariantFront
from memplan.units import MIB

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)
CHARTS: dict[str, Chart] = {
    block.id: block
    for document in (
        document_of([(SUMMARY, RECORDING)]),
        document_of(
            [
                (profile_summary(), profile_recording()),
                (profile_summary("stack-1-kv", scale=0.5, step=1), profile_recording("stack-1-kv")),
            ]
        ),
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
        "variants-front",
        "stack-waterfall",
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


def test_each_bar_of_the_waterfall_ends_at_a_peak_that_was_measured() -> None:
    chart = CHARTS["stack-waterfall"]
    assert isinstance(chart, StackWaterfall)
    bars, idle = figure_of(chart)["data"]
    assert bars["measure"] == ["absolute", "relative"]
    base, after = (bar.peak_bytes / MIB for bar in chart.bars)
    assert bars["y"] == [pytest.approx(base, abs=1e-4), pytest.approx(after - base, abs=1e-4)]
    assert bars["text"][1].startswith("−")
    assert idle["y"][0] == pytest.approx(IDLE_BYTES / MIB, abs=1e-4)


def test_a_step_whose_step_below_is_missing_stands_on_zero() -> None:
    chart = CHARTS["stack-waterfall"]
    assert isinstance(chart, StackWaterfall)
    alone = replace(chart, bars=(chart.bars[0], replace(chart.bars[1], change_bytes=None)))
    bars = figure_of(alone)["data"][0]
    assert bars["measure"] == ["absolute", "absolute"]
    assert bars["y"][1] == pytest.approx(chart.bars[1].peak_bytes / MIB, abs=1e-4)


def test_the_front_parts_who_is_beaten_and_marks_unmeasured_quality_open() -> None:
    chart = CHARTS["variants-front"]
    assert isinstance(chart, VariantFront)
    beaten = replace(chart.points[0], is_on_front=False, is_quality_known=True)
    figure = figure_of(replace(chart, points=(beaten, chart.points[1])))
    named = {trace["name"]: trace for trace in figure["data"]}
    assert named["beaten"]["text"] == ["base"]
    assert named["beaten"]["marker"]["symbol"] == ["circle"]
    assert named["no other beats it"]["text"] == ["stack-1-kv"]
    assert named["no other beats it"]["marker"]["symbol"] == ["circle-open"]
    assert named["beaten"]["x"] == [48.0]  # ms
    assert "decode step, ms" in figure["layout"]["xaxis"]["title"]["text"]
    assert len(figure_of(chart)["data"]) == 1, "no trace without a point"
