"""ServeGen's tables, sampled: as many as their rates say, as bursty, and as long."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from memplan.cli import run
from memplan.errors import InputError
from memplan.workload.servegen import sample_servegen
from memplan.workload.trace import read_trace


def client(folder: Path, number: int, rows: list[str], lengths: dict[str, dict[str, str]]) -> None:
    (folder / f"chunk-{number}-trace.csv").write_text("\n".join(rows))
    (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(lengths))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # One over the square of the variation is the shape of a gamma law: 4 gives 0.5, and 0.25 gives 2.
    client(
        tmp_path, 1,
        ["0,5,0.5,Gamma,4,99", "600,0,0,,0,0", "1200,5,2,Gamma,0.25,99"],
        {"0": {"input_tokens": "{100: 0.25, 300: 0.75}", "output_tokens": "{7: 1.0}"},
         "600": {"input_tokens": "{}", "output_tokens": "{}"}},
    )  # fmt: skip
    client(
        tmp_path, 2, ["0,1,1,Weibull,1.0,99", "1800,1,1,Weibull,1.0,99"],
        {"0": {"input_tokens": "{0: 0.5, 9: 0.5}", "output_tokens": "{2: 1.0}"}},
    )  # fmt: skip
    return tmp_path


def test_rates_variation_and_lengths_are_those_of_the_tables(folder: Path) -> None:
    trace = sample_servegen(folder, 0, 1800, seed=3)
    first = [row for row in trace.rows if row.labels["client"] == "chunk-1"]
    even = [row.timestamp_s for row in first if row.timestamp_s < 610]
    bursty = [row.timestamp_s for row in first if row.timestamp_s > 1000]
    assert len(even) + len(bursty) == len(first)
    for times, variation, tolerance in ((even, 0.5, 0.05), (bursty, 2.0, 0.25)):
        gaps = [after - before for before, after in pairwise(times)]
        assert 1 / fmean(gaps) == pytest.approx(5, rel=0.15)
        assert pstdev(gaps) / fmean(gaps) == pytest.approx(variation, abs=tolerance)
    lengths = Counter(row.input_tokens for row in first)
    assert lengths[300] / len(first) == pytest.approx(0.75, abs=0.03)
    second = [row for row in trace.rows if row.labels["client"] == "chunk-2"]
    assert len(second) == pytest.approx(1800, rel=0.1)
    assert {row.input_tokens for row in second} == {1, 9}  # a prompt has a token


def test_everything_follows_from_the_seed(folder: Path) -> None:
    assert sample_servegen(folder, 0, 600, seed=3) == sample_servegen(folder, 0, 600, seed=3)
    assert (
        sample_servegen(folder, 0, 600, seed=3).rows != sample_servegen(folder, 0, 600, seed=4).rows
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("chunk-1-dataset.json", None, "chunk-1"),
        ("chunk-1-trace.csv", "0,5,1,Normal,1,1", "a rate and its law"),
        ("chunk-2-trace.csv", "0,5", "expected 6"),
        ("chunk-2-dataset.json", "[1]", "chunk-2"),
        ("chunk-2-dataset.json", '{"0": {"input_tokens": "{1: 2"}}', "chunk-2"),
    ],
)
def test_broken_tables_are_one_sentence(
    folder: Path, name: str, text: str | None, said: str
) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(InputError) as caught:
        sample_servegen(folder, 0, 600, seed=0)
    assert said in caught.value.message


def test_the_command_writes_a_trace_and_refuses_what_it_cannot(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "made.jsonl"
    assert run(["trace", "sample", str(folder), str(target), "--to", "10min"]) == 0
    assert read_trace(target).rows[0].labels["client"] in ("chunk-1", "chunk-2")
    assert run(["trace", "inspect", str(target)]) == 0
    assert "made up: synth ServeGen" in " ".join(capsys.readouterr().out.split())
    for words, said in (
        ([str(folder / "none"), str(target)], "holds no chunk-N-trace.csv"),
        ([str(folder), str(target), "--from", "1h", "--to", "1h", "--force"], "send nothing"),
        ([str(folder), str(target)], "exists already"),
    ):
        assert run(["trace", "sample", *words]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
