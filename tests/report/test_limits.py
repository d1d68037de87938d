from dataclasses import replace

import pytest
from example_run import replay_recording, replay_summary

from memplan.report.limits import Limit, limits_of, verdict_of, verdicts_of
from memplan.report.limits_section import limits_table
from memplan.stats.summary import (
    ClassSummary,
    Percentiles,
    Quantile,
    ReferenceFit,
    StateFigures,
    StateFit,
)

SUMMARY = replay_summary(replay_recording())
SHORT = SUMMARY.classes[0]


def with_ttft(low: float | None, value: float | None, high: float | None) -> ClassSummary:
    p99 = Quantile(p=0.99, value=value, low=low, high=high)
    return replace(SHORT, ttft_s=replace(SHORT.ttft_s, p99=p99, peak=1.0))


def ttft_limit(value: float) -> Limit:
    return Limit(class_name="short", subject="ttft_s", value=value)


@pytest.mark.parametrize(
    ("low", "high", "limit", "outcome", "is_certain"),
    [
        (0.8, 1.2, 2.0, "kept", True),
        (0.8, 2.2, 2.0, "kept", False),
        (0.8, None, 2.0, "kept", False),
        (0.8, 1.2, 1.0, "kept", False),
        (0.8, 1.2, 0.9, "broken", False),
        (0.8, 1.2, 0.5, "broken", True),
    ],
)
def test_a_verdict_is_certain_only_when_the_interval_lies_on_its_side(
    low: float, high: float | None, limit: float, outcome: str, is_certain: bool
) -> None:
    verdict = verdict_of(ttft_limit(limit), with_ttft(low, 1.0, high))
    assert (verdict.outcome, verdict.is_certain) == (outcome, is_certain)


def test_a_withheld_p99_is_judged_at_p95() -> None:
    verdict = verdict_of(ttft_limit(100.0), with_ttft(None, None, None))
    assert verdict.judged == SHORT.ttft_s.p95
    assert verdict.outcome == "kept"


def test_a_kept_limit_that_one_request_broke_is_not_certain() -> None:
    one = with_ttft(0.8, 1.0, 1.2)
    slowest = replace(one, ttft_s=replace(one.ttft_s, peak=9.0))
    verdict = verdict_of(ttft_limit(2.0), slowest)
    assert (verdict.outcome, verdict.is_certain, verdict.largest) == ("kept", False, 9.0)


def test_a_median_alone_proves_no_limit() -> None:
    nothing = Quantile(p=0.95, value=None, low=None, high=None)
    few = replace(SHORT, ttft_s=replace(SHORT.ttft_s, p95=nothing, p99=nothing, peak=0.6))
    verdict = verdict_of(ttft_limit(100.0), few)
    assert (verdict.outcome, verdict.judged, verdict.largest) == ("unknown", None, 0.6)


def test_what_was_not_measured_is_unknown_and_not_kept() -> None:
    nothing = Quantile(p=0.5, value=None, low=None, high=None)
    withheld = Percentiles(n=0, method="", p50=nothing, p95=nothing, p99=nothing, peak=None)
    empty = replace(SHORT, ttft_s=withheld)
    assert verdict_of(ttft_limit(1.0), empty).outcome == "unknown"
    assert verdict_of(ttft_limit(1.0), None).outcome == "unknown"
    gpu = Limit(class_name="short", subject="gpu_bytes", value=1.0)
    assert verdict_of(gpu, SHORT).outcome == "unknown"


def test_every_budget_and_promise_of_the_deployment_is_read() -> None:
    classes = [
        {
            "name": "chat",
            "budget": {"cpu_bytes": 10, "gpu_bytes": 20},
            "slo": {"ttft_s": 1.5, "tpot_s": 0.1, "e2e_s": 9},
        }
    ]
    found = {limit.subject: limit.value for limit in limits_of({"classes": classes})}
    assert found == {
        "cpu_bytes": 10,
        "gpu_bytes": 20,
        "ttft_s": 1.5,
        "tpot_s": 0.1,
        "e2e_s": 9,
    }


@pytest.mark.parametrize(
    "deployment",
    [
        {},
        {"classes": None},
        {"classes": "short"},
        {"classes": [None, {"budget": {"cpu_bytes": 1}}, {"name": 3}]},
        {"classes": [{"name": "a", "budget": None, "slo": []}]},
        {"classes": [{"name": "a", "budget": {"cpu_bytes": "64MiB"}, "slo": {"ttft_s": True}}]},
    ],
)
def test_a_promise_not_made_or_not_understood_is_no_limit(deployment: dict[str, object]) -> None:
    assert limits_of(deployment) == ()


def test_times_at_a_references_pace_are_no_times_of_the_engine() -> None:
    summary = replace(SUMMARY, classes=(with_ttft(0.9, 1.0, 1.1),))
    assert [one.outcome for one in verdicts_of([ttft_limit(2.0)], summary)] == ["kept"]
    fidelity = summary.fidelity
    assert fidelity is not None
    figures = StateFigures(mean=1.0, p50=1.0, p95=1.0, p99=1.0, most=1.0)
    running = StateFit(
        name="running requests", reference=figures, reached=figures, w1_ratio=0.0,
        reference_curve=(), reached_curve=(),
    )  # fmt: skip
    paced = ReferenceFit(
        reference="declared", is_paced=True, windows=(), judged_s=1.0, running=running,
        kv_tokens=None,
    )  # fmt: skip
    held = replace(summary, fidelity=replace(fidelity, against_reference=paced))
    (verdict,) = verdicts_of([ttft_limit(2.0)], held)
    assert (verdict.outcome, verdict.is_paced) == ("unknown", True)
    cells = limits_table([verdict], "").rows[0]
    assert "reference's pace" in cells[-1].detail
