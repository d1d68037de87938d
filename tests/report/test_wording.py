import pytest

from memplan.records import Finding
from memplan.report.wording import interval_text, quantile_cell, range_text, ratio_text
from memplan.stats.summary import Quantile
from memplan.units import MIB, bytes_text, seconds_text

FINDINGS = (
    Finding(code="few_medium", text="class medium: p99 is withheld", hint="longer"),
    Finding(code="few_long", text="class long: p99 is withheld", hint="longer"),
)


def quantile(value: float | None, low: float | None = None, high: float | None = None) -> Quantile:
    return Quantile(p=0.99, value=value, low=low, high=high)


def test_a_percentile_shows_its_value_and_under_it_its_interval() -> None:
    cell = quantile_cell(quantile(171 * MIB, 161 * MIB, 180 * MIB), bytes_text, (), "long")
    assert (cell.text, cell.detail) == ("171.0 MiB", "161.0–180.0 MiB")


def test_a_withheld_percentile_says_so_and_names_the_finding_of_its_class() -> None:
    cell = quantile_cell(quantile(None), bytes_text, FINDINGS, "long")
    assert (cell.text, cell.detail) == ("withheld", "see few_long")


def test_a_withheld_percentile_without_a_finding_still_says_withheld() -> None:
    cell = quantile_cell(quantile(None), bytes_text, (), "long")
    assert (cell.text, cell.detail) == ("withheld", "")


def test_a_measured_zero_is_not_unknown() -> None:
    assert quantile_cell(quantile(0.0, 0.0, 0.0), bytes_text, (), "long").text == "0 B"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.25, 0.5, "250–500 ms"),
        (0.5, 1.5, "500 ms–1.50 s"),
        (0.25, None, "at least 250 ms"),
        (None, 0.5, "at most 500 ms"),
        (None, None, "no 95 % bounds"),
    ],
)
def test_an_open_side_of_an_interval_is_said(
    low: float | None, high: float | None, text: str
) -> None:
    assert interval_text(quantile(0.4, low, high), seconds_text) == text


def test_a_shared_unit_is_written_once() -> None:
    assert range_text(5 * MIB, 9 * MIB, bytes_text) == "5.00–9.00 MiB"


@pytest.mark.parametrize(
    ("value", "base", "text"),
    [(58.0, 100.0, "−42.0 %"), (110.0, 100.0, "+10.0 %"), (3.0, 3.0, "same"), (3.0, 0.0, "")],
)
def test_a_change_is_a_signed_percentage(value: float, base: float, text: str) -> None:
    assert ratio_text(value, base) == text
