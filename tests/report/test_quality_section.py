"""Quality as a reader sees it: every figure with its interval, and nothing where none was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import quality
from example_run import profile_summary

from memplan.records import Quality
from memplan.report.document import document_of
from memplan.report.pieces import Table
from memplan.report.quality_json import quality_json
from memplan.report.quality_section import change_text, quality_section, share_text
from memplan.stats.quality import quality_figures
from memplan.stats.summary import RunSummary


def summary_with(made: Quality) -> RunSummary:
    return replace(profile_summary(), quality=made, quality_figures=quality_figures(made))


def rows_of(made: Quality) -> dict[str, tuple[str, ...]]:
    section = quality_section(summary_with(made), "p-")
    assert section is not None
    (table,) = section.blocks
    assert isinstance(table, Table)
    return {row[0].text: tuple(f"{cell.text}|{cell.detail}" for cell in row) for row in table.rows}


def test_each_figure_has_value_interval_n_and_method() -> None:
    rows = rows_of(quality())
    assert rows["same most likely token"][1:3] == ("98.0 %|96.9 %–98.7 %", "1,000|")
    assert rows["perplexity, change"][1].startswith("+1.00 %|+")
    assert rows["perplexity"][1] == "10.100|reference 10.000"
    assert rows["KL divergence, p99, nats"][1] == "0.01|"
    assert "block bootstrap, 10 positions a block" in rows["KL divergence, mean, nats"][3]
    answers = rows["answers, the same to the end"]
    assert answers[1].startswith("5 of 8|78.1 %")


def test_without_answers_there_is_no_row_for_them() -> None:
    assert "answers, the same to the end" not in rows_of(quality(answers=0))


def test_a_run_without_quality_has_no_section_and_null() -> None:
    assert quality_section(profile_summary(), "") is None
    assert quality_json(profile_summary()) is None


@pytest.mark.parametrize(
    ("ratio", "text"), [(1.0, "100.0 %"), (0.9999, "99.9 %"), (0.8768, "87.7 %"), (0.0, "0.0 %")]
)
def test_nearly_all_is_not_all(ratio: float, text: str) -> None:
    assert share_text(ratio) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "same"), (1.05, "+5.00 %"), (0.9, "−10.00 %")])
def test_a_change_has_a_sign(ratio: float, text: str) -> None:
    assert change_text(ratio) == text


def test_the_json_holds_figures_and_bounds_and_no_positions() -> None:
    told = quality_json(summary_with(quality()))
    assert told is not None
    assert set(told) == {
        "text", "text_sha256", "reference", "tokens", "top1_ratio", "kl_mean", "kl_p99",
        "perplexity", "reference_perplexity", "perplexity_ratio", "block_tokens", "answers",
        "answer_tokens", "same_answers", "same_token_ratio",
    }  # fmt: skip
    assert set(told["kl_mean"]) == {"value", "low", "high"}
    assert told["top1_ratio"]["value"] == 0.98
    json.dumps(told, allow_nan=False)


def test_the_section_is_on_the_page_of_a_run() -> None:
    from builders import recording

    document = document_of([(summary_with(quality()), recording())])
    assert "profile1-quality" in [section.id for section in document.sections]
