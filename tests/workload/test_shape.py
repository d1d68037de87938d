"""A trace's shape, its windows and shares, and what looks made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from memplan.cli import run
from memplan.errors import InputError
from memplan.in_flight import at_times
from memplan.specs import BUILTIN_CLASSES
from memplan.workload.reference import lives_of, parse_reference
from memplan.workload.shape import TraceShape
from memplan.workload.slicing import share_of, window_of
from memplan.workload.summary import summarise_trace
from memplan.workload.trace import Trace, read_trace


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "trace.jsonl"
    header = {"memplan_trace": 1, "time_unit": "s", "block_size": 16}
    path.write_text("".join(json.dumps(one) + "\n" for one in [header, *rows]))
    return path


def traced(folder: Path, rows: list[dict[str, object]]) -> Trace:
    return read_trace(written(folder, rows))


def shaped(path: Path) -> TraceShape:
    return summarise_trace(path, BUILTIN_CLASSES).shape


def row(at: float, inputs: int = 40, outputs: int = 5, **more: object) -> dict[str, object]:
    return {"timestamp": at, "input_length": inputs, "output_length": outputs, **more}


def poisson(n: int, seed: int = 1) -> list[dict[str, object]]:
    draw, at, rows = random.Random(seed), 0.0, []
    for _ in range(n):
        at += draw.expovariate(5)
        rows.append(row(at, int(draw.lognormvariate(5, 1)) + 1, int(draw.lognormvariate(3, 1)) + 1))
    return rows


def test_poisson_arrivals_have_the_dispersion_of_poisson_and_nothing_looks_made_up(
    tmp_path: Path,
) -> None:
    found = shaped(written(tmp_path, poisson(4000)))
    assert found.gap_cv == pytest.approx(1, abs=0.1)
    assert found.dispersion == pytest.approx(1, abs=0.4)
    assert found.requests_per_s == pytest.approx(5, rel=0.1)
    assert found.tick_s is None
    assert found.findings == ()


def test_lengths_sessions_and_reuse_by_hand(tmp_path: Path) -> None:
    rows = [
        row(0, 32, 1, hash_ids=[1, 2], session_id="a"),
        row(1, 48, 2, hash_ids=[1, 2, 3], session_id="a"),
        row(2, 600, 3, hash_ids=list(range(50, 88)), session_id="b"),
    ]
    found = shaped(written(tmp_path, rows))
    assert found.input.quantiles == (48, 600, 600, 600)
    assert (found.sessions, found.session_turns_mean) == (2, 1.5)
    assert found.reused_ratio == pytest.approx(2 / 43)
    assert dict(found.classes) == {"short": 2, "medium": 1}


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ([row(at * 0.5, 40 + at % 7, 5 + at % 3) for at in range(200)], "constant_gaps"),
        ([row(at, 7, 5 + at % 3) for at in range(200)], "constant_input_lengths"),
        (
            [row(60 * (at // 20) + 3 * (at % 20)) for at in range(400)],
            "same_count_each_minute",
        ),
        (
            [
                {**one, "input_length": random.Random(at).randint(1, 999)}
                for at, one in enumerate(poisson(900))
            ],
            "uniform_input_lengths",
        ),
    ],
)
def test_what_no_log_of_real_traffic_shows_is_flagged(
    tmp_path: Path, made: list[dict[str, object]], code: str
) -> None:
    assert code in {one.code for one in shaped(written(tmp_path, made)).findings}


def test_years_without_a_row_take_no_memory(tmp_path: Path) -> None:
    rows = [row(float(at)) for at in range(60)]
    few = shaped(written(tmp_path, [*rows, row(2e9)])).dispersion
    many = shaped(written(tmp_path, [*rows, row(2e11)])).dispersion
    # 60 arrivals in 6 bins of 10: the mean of squares over the mean is 10 whatever the span.
    assert few == pytest.approx(10, rel=1e-3)
    assert many == pytest.approx(10, rel=1e-3)


def test_a_clock_of_ticks_is_seen(tmp_path: Path) -> None:
    found = shaped(written(tmp_path, [row(3.0 * (at // 10), 40 + at) for at in range(300)]))
    assert found.tick_s == pytest.approx(3.0)
    assert found.same_instant == 270


def test_a_window_starts_at_its_first_row_and_counts_the_rest(tmp_path: Path) -> None:
    trace = traced(tmp_path, [row(at) for at in range(10)])
    found = window_of(trace, 3, 6)
    assert [one.timestamp_s for one in found.rows] == [0, 1, 2, 3]
    assert found.dropped == {"outside_the_window": 6}
    with pytest.raises(InputError, match="no row arrives between 50 s and 60 s"):
        window_of(trace, 50, 60)


def test_shares_are_whole_sessions_and_together_the_whole(tmp_path: Path) -> None:
    trace = traced(tmp_path, [row(at, session_id=f"s{at % 40}") for at in range(400)])
    found = share_of(trace, 4, seed=0)
    sessions = {one.session_id for one in found.rows}
    assert all(sum(r.session_id == s for r in found.rows) == 10 for s in sessions)
    assert 4 <= len(sessions) <= 18
    assert share_of(trace, 1, seed=0) is trace


def test_a_prompt_that_all_share_does_not_bind_them_together(tmp_path: Path) -> None:
    rows = [row(at, 48, hash_ids=[0, 100 + at % 50, 1000 + at]) for at in range(500)]
    found = share_of(traced(tmp_path, rows), 5, seed=1)
    assert 30 < found.rows_kept < 250
    groups = {one.hash_ids[1] for one in found.rows}
    assert all(sum(r.hash_ids[1] == g for r in found.rows) == 10 for g in groups)


def test_the_commands_read_show_and_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traced(tmp_path, poisson(300))
    source, made = str(tmp_path / "trace.jsonl"), str(tmp_path / "made.jsonl")
    assert run(["trace", "inspect", source, "--out", str(tmp_path / "t.html")]) == 0
    assert "300 of 300 rows" in capsys.readouterr().out
    assert "Tokens" in (tmp_path / "t.html").read_text()
    assert run(["trace", "inspect", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "memplan.trace_shape/1"
    assert run(["trace", "convert", source, made]) == 0
    assert run(["trace", "slice", source, made, "--from", "10s", "--to", "20s"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["trace", "slice", source, made, "--from", "10s", "--to", "20s", "--force"]) == 0
    assert 20 < read_trace(Path(made)).rows_kept < 90
    around = ["--around", "most", "--length", "20s", "--reference", "prefill=900,tpot=20ms"]
    assert run(["trace", "slice", source, made, "--force", *around]) == 0
    trace, reference = read_trace(Path(source)), parse_reference(around[-1])
    _, held = at_times(lives_of(trace.rows, reference), np.arange(0, trace.span_s, 0.05))
    cut = read_trace(Path(made))
    assert cut.span_s <= 20
    # The fullest instant of all is in it, but for the requests that came before the window.
    _, cut_held = at_times(lives_of(cut.rows, reference), np.arange(0, 20, 0.05))
    assert 0.5 * held.max() < cut_held.max() <= 1.01 * held.max()
    assert run(["trace", "slice", source, made, "--force", "--around", "p99"]) == 2
    assert "with --reference" in capsys.readouterr().err
    for words in (["--share", "1of8"], ["--from", "ten"], ["--from", "9h", "--to", "10h"]):
        assert run(["trace", "slice", source, made, "--force", *words]) == 2
        assert "→" in capsys.readouterr().err
