"""The published schemas are those of the documents, and say no to what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memplan.cli import run
from memplan.published_schemas import plan_schema, simulation_schema

PACKAGE = Path(__file__).parents[1] / "memplan"
SCHEMAS = {"plan": plan_schema, "simulation": simulation_schema}
MODEL = """\
memplan: 1
name: published
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 16384, max_batch_tokens: 512}
classes: [{name: any, slo: {ttft: 10ms}}]
script: {prefill_tokens_per_s: 4000, decode_s_per_step: 20ms, kv_bytes_per_token: 100000}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / "model.yaml").write_text(MODEL)
    rows = (
        f'{{"timestamp": {at * 500}, "input_length": {100 + at % 90}, "output_length": 20}}\n'
        for at in range(200)
    )
    (folder / "trace.jsonl").write_text("".join(rows))
    asked = ["--model", str(folder / "model.yaml"), "--out", str(folder / "run")]
    assert run(["replay", str(folder / "trace.jsonl"), *asked]) == 0
    return folder / "run"


@pytest.fixture
def documents(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    made = {}
    for name, verb in (("plan", "plan"), ("simulation", "simulate")):
        capsys.readouterr()
        assert run([verb, str(run_folder), "--json"]) == 0
        made[name] = json.loads(capsys.readouterr().out)
    return made


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_file_is_what_the_code_says(name: str) -> None:
    published = json.loads((PACKAGE / f"{name}.schema.json").read_text())
    assert published == SCHEMAS[name](), (
        f"write json.dumps(memplan.published_schemas.{name}_schema(), indent=2) to "
        f"memplan/{name}.schema.json"
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_document_is_valid_and_one_without_a_key_or_with_another_is_not(
    name: str, documents: dict[str, Any]
) -> None:
    check = jsonschema.Draft202012Validator(SCHEMAS[name]())
    whole = documents[name]
    assert list(check.iter_errors(whole)) == []
    for key in whole:
        assert not check.is_valid({k: v for k, v in whole.items() if k != key}), key
    assert not check.is_valid({**whole, "more": 1})
    assert not check.is_valid({**whole, "schema": "memplan.run/1"})


def test_what_is_inside_is_checked_too(documents: dict[str, Any]) -> None:
    plan = jsonschema.Draft202012Validator(plan_schema())
    broken = json.loads(json.dumps(documents["plan"]))
    broken["nodes"][0]["replicas"] = "many"
    assert not plan.is_valid(broken)
    del broken["nodes"][0]["replicas"]
    assert not plan.is_valid(broken)
    simulation = jsonschema.Draft202012Validator(simulation_schema())
    broken = json.loads(json.dumps(documents["simulation"]))
    assert broken["what_if"], "so that all of the document is there"
    broken["classes"][0]["ttft_s"]["p50"] = "soon"
    assert not simulation.is_valid(broken)
