from io import StringIO

import pytest
from example_run import (
    NODES_CSV,
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)
from rich.console import Console

from memplan.plan.nodes import parse_nodes
from memplan.report.document import document_of
from memplan.report.terminal import print_document

RECORDING = replay_recording()
REPLAY = document_of([(replay_summary(RECORDING), RECORDING)], parse_nodes(NODES_CSV, "nodes.csv"))
PROFILE = document_of(
    [
        (profile_summary(), profile_recording()),
        (profile_summary("kv-int8", scale=0.5), profile_recording("kv-int8", scale=0.5)),
    ]
)
STACK = document_of(
    [
        (profile_summary(name, scale=0.5, step=step), profile_recording(name, scale=0.5))
        for name, step in (
            ("base", None),
            ("weights-int8-kv-int8-max_batch_tokens-2048", None),
            ("stack-1-kv-int8", 1),
            ("stack-2-jemalloc", 2),
        )
    ]
)


def printed(document: object, width: int) -> str:
    out = StringIO()
    print_document(document, Console(file=out, width=width))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 140])
@pytest.mark.parametrize("document", [REPLAY, PROFILE, STACK], ids=["replay", "profile", "stack"])
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cut(
    document: object, width: int
) -> None:
    text = printed(document, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_a_narrow_terminal_keeps_each_figure_on_one_line() -> None:
    lines = printed(REPLAY, 80).splitlines()
    row = next(line for line in lines if line.startswith("long") and "attributed" in line)
    assert row.split()[2:] == ["6", "107.5", "MiB", "122.0", "MiB", "withheld", "122.0", "MiB"]
    assert "97.0–112.0 MiB" not in printed(REPLAY, 80)
    assert "Intervals are shown from 120 columns on" in printed(REPLAY, 80)


def test_a_wide_terminal_shows_intervals() -> None:
    text = printed(REPLAY, 140)
    assert "97.0–112.0 MiB" in text
    assert "see p99_withheld" in text
    assert "Intervals are shown from" not in text


def test_findings_carry_their_code_and_the_next_thing_to_try() -> None:
    text = printed(REPLAY, 140)
    assert "[p99_withheld]" in text
    assert "next: replay a longer slice: 299 requests of the class are enough" in text


def test_square_brackets_in_names_are_no_markup() -> None:
    summary = profile_summary("[bold]int8[/bold]")
    text = printed(document_of([(summary, profile_recording())]), 140)
    assert "[bold]int8[/bold]" in text


def test_a_profile_shows_solo_costs_the_ladder_and_its_variants() -> None:
    text = printed(PROFILE, 140)
    assert "quality not measured" in text
    assert "113.6–125.0 MiB" in text
    assert "length-1x6144" in text
