"""A plan under a real limit, with engines of known memory: N hold, and one more is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.cgroups import make_group
from memplan.cli import run
from memplan.errors import MachineError

# At rest 125 MiB; each request of 1,600 tokens adds 31 MiB of KV, and four are always in flight.
MODEL = """\
memplan: 1
name: ballast
engine: ballast
settings: {max_requests: 4, max_kv_tokens: 8192, device: cpu, block_tokens: 16}
script: {weights: 100MiB, runtime: 20MiB, kv_bytes_per_token: 20480, prefill_tokens_per_s: 20000,
         decode_s_per_step: 10ms, activation_bytes_per_token: 4096, vocab_tokens: 1000,
         context_tokens: 4096}
"""


@pytest.fixture(autouse=True, scope="module")
def _with_groups() -> None:
    try:
        make_group(None).remove()
    except MachineError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("planned")
    (tmp_path / "model.yaml").write_text(MODEL)
    rows = (
        f'{{"timestamp": {at * 60}, "input_length": 1600, "output_length": {20 + at % 3}}}\n'
        for at in range(60)
    )
    (tmp_path / "trace.jsonl").write_text("".join(rows))
    trace, out = str(tmp_path / "trace.jsonl"), str(tmp_path / "run")
    assert run(["replay", trace, "--limit", "24", "--out", out]) == 0
    plan = str(tmp_path / "plan")
    assert run(["plan", out, "--node", "c7i.24xlarge", "--overflow", "1e-3", "--out", plan]) == 0
    return tmp_path


def test_n_replicas_hold_and_one_more_is_killed(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["verify", str(planned / "plan"), str(planned / "trace.jsonl"), "--replicas", "2"]
    out = planned / "tried"
    assert run([*words, "--limit", "8", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, more = found["trials"]
    assert (first["holds"], first["completed"], first["died"]) == (True, 16, 0)
    assert first["peak_charged_bytes"] <= found["node"]["limit_bytes"]
    assert 0 < found["node"]["kernel_bytes"] < 2 * 1024**2  # two small engines' stacks and files
    assert more["holds"] is False
    assert more["oom_kills"] >= 1
    assert run(["report", str(out / "2-replicas"), "--json"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["{plan}", "{other}"], 2, "is not the trace that the plan's run replayed"),
        (["{run}", "{trace}"], 2, "cannot be read as a plan"),
        (["{plan}", "{trace}", "--model", "{changed}"], 2, "its settings are not those"),
    ],
)
def test_what_cannot_be_tried_is_said(
    planned: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    (planned / "other.jsonl").write_text((planned / "trace.jsonl").read_text().replace("21}", "9}"))
    (planned / "changed.yaml").write_text(MODEL.replace("max_requests: 4", "max_requests: 3"))
    places = {
        "plan": planned / "plan",
        "run": planned / "run",
        "trace": planned / "trace.jsonl",
        "other": planned / "other.jsonl",
        "changed": planned / "changed.yaml",
    }
    capsys.readouterr()
    assert run(["verify", *(word.format(**places) for word in words)]) == code
    assert told in capsys.readouterr().err
