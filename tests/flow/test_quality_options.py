"""Quality on the command line: claimed by no engine without a model, refused where it is senseless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run


def test_a_scripted_profile_claims_no_quality(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "profile")
    model = str(workloads / "scripted.yaml")
    assert run(["profile", model, "--out", out, "--repeats", "1", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    for variant in document["variants"]:
        assert variant["quality"] is None
        codes = {one["code"] for one in variant["findings"]}
        assert not codes & {"quality_lost", "quality_not_measured"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "engine scripted gives no real answers"),
        (["--no-quality"], "with --no-quality nothing is scored"),
    ],
)
def test_prompts_that_nothing_would_read_are_refused(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n')
    out = tmp_path / "run"
    asked = ["profile", "scripted", "--prompts", str(prompts), "--out", str(out), *options]
    assert run(asked) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "\n  → " in said
    assert not out.exists(), "told before anything is measured"


def test_faulty_prompts_are_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": ""}\n{"prompts": 1}\n')
    out = tmp_path / "run"
    model = tmp_path / "model.yaml"
    model.write_text("memplan: 1\nname: a\nengine: torch\nmodel: {path: .}\n")
    (tmp_path / "config.json").write_text("{}")
    asked = ["profile", str(model), "--prompts", str(prompts), "--out", str(out)]
    assert run(asked) == 2
    said = capsys.readouterr().err
    assert "2 faults" in said
    assert f"{prompts}:2 " in said
    assert not out.exists()
