"""A budget, a failed allocation and a limit that comes near, on real memory of known size."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memplan.cgroups import make_group
from memplan.cli import run
from memplan.errors import MachineError
from memplan.recording import read_run
from memplan.records import Recording
from memplan.stats.summarise import summarise

MIB, GIB = 2**20, 2**30
# At rest 135 MiB; each request of 1,600 tokens adds 31 MiB of KV, a step of 512 at most 4 MiB.
MODEL = """\
memplan: 1
name: ballast
engine: ballast
settings: {{max_requests: 4, max_kv_tokens: 8192, device: cpu, block_tokens: 16, {settings}}}
script: {{weights: 100MiB, runtime: 20MiB, kv_bytes_per_token: 20480, prefill_tokens_per_s: 20000,
         decode_s_per_step: {decode}, activation_bytes_per_token: {activation}, vocab_tokens: 1000,
         context_tokens: 4096}}
"""
LARGE, SMALL = (1600, 40), (4, 20)


def written(
    folder: Path,
    settings: str,
    *rows: tuple[int, tuple[int, int]],
    activation: int = 8192,
    decode: str = "10ms",
) -> list[str]:
    """``rows`` as (ms, (prompt, output)); the words of the command."""
    (folder / "model.yaml").write_text(
        MODEL.format(settings=settings, activation=activation, decode=decode)
    )
    lines = (
        json.dumps({"timestamp": at_ms, "input_length": tokens, "output_length": out})
        for at_ms, (tokens, out) in rows
    )
    (folder / "trace.jsonl").write_text("\n".join(lines))
    return ["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), "--force"]


BURST = tuple((20 * n, LARGE) for n in range(8))


def reasons(recording: Recording) -> set[str]:
    """What requests waited for."""
    return {reason for one in recording.outcomes.values() for reason in one.waited_s}


def outcomes(recording: Recording) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in recording.outcomes.values():
        found[one.outcome] = found.get(one.outcome, 0) + 1
    return found


# --- a budget --------------------------------------------------------------------------------

BUDGET_BYTES = 230 * MIB


def test_a_process_stays_within_its_memory_budget_and_goes_beyond_it_without(
    tmp_path: Path,
) -> None:
    assert run(written(tmp_path, "memory_budget: 230MiB", *BURST)) == 0
    held = read_run(tmp_path / "run")
    summary = summarise(held)
    assert outcomes(held) == {"completed": 8}
    assert summary.peak_bytes is not None
    assert summary.peak_bytes <= BUDGET_BYTES + held.header.drift_bound_bytes
    assert "memory_budget" in reasons(held)
    assert "230.0 MiB = " in held.engines[0].settings["memory_budget"]

    assert run(written(tmp_path, "trim: never", *BURST)) == 0
    free = summarise(read_run(tmp_path / "run"))
    assert free.peak_bytes is not None and free.peak_bytes > BUDGET_BYTES + 10 * MIB


def test_a_request_that_the_budget_can_never_hold_is_rejected_and_the_others_run(
    tmp_path: Path,
) -> None:
    rows = ((0, (100, 5)), (20, (3800, 5)), (40, (100, 5)))
    assert run(written(tmp_path, "memory_budget: 200MiB", *rows)) == 0
    recording = read_run(tmp_path / "run")
    assert outcomes(recording) == {"completed": 2, "rejected": 1}
    (refused,) = (one for one in recording.outcomes.values() if one.outcome == "rejected")
    assert refused.reason == "exceeds_memory_budget"


def test_a_budget_below_the_engine_at_rest_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(written(tmp_path, "memory_budget: 130MiB", *BURST)) == 4
    err = " ".join(capsys.readouterr().err.split())
    assert "settings.memory_budget leaves nothing for KV" in err


# --- a failed allocation ---------------------------------------------------------------------


def test_an_allocation_that_the_kernel_refuses_ends_one_request_and_not_the_run(
    tmp_path: Path,
) -> None:
    # 4 MiB of activations a token: a step with 2,000 of them asks for 8 GB, in one mapping.
    rows = ((0, SMALL), (50, (2000, 2)), (60, SMALL), (600, SMALL))
    words = written(tmp_path, "max_batch_tokens: 2048", *rows, activation=4 * MIB)

    def within_6_gib() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB))

    done = subprocess.run(
        [sys.executable, "-m", "memplan", *words, "--json"],
        preexec_fn=within_6_gib,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recording = read_run(tmp_path / "run")
    assert recording.end is not None and recording.end.reason == "finished"
    assert outcomes(recording) == {"completed": 3, "failed": 1}
    (failed,) = (one for one in recording.outcomes.values() if one.outcome == "failed")
    assert (failed.reason, failed.admitted_s is not None) == ("allocation_failed", True)
    large = next(one for one in recording.requests if one.input_tokens == 2000)
    assert failed.request_id == large.request_id
    document = json.loads(done.stdout)
    assert sum(one["failed"] for one in document["classes"]) == 1
    assert "requests_not_run" in {finding["code"] for finding in document["findings"]}


# --- a limit that comes near -------------------------------------------------------------------

# Four requests at once are 135 + 4 × 31 MiB.
NEAR = "memory_limit: 220MiB, degrade_at: 0.8"
SLOW: dict[str, Any] = {"decode": "20ms"}


@pytest.fixture
def groups() -> None:
    try:
        make_group(GIB).remove()
    except MachineError as error:
        pytest.skip(error.message)


@pytest.mark.usefixtures("groups")
def test_an_engine_that_gives_way_near_its_limit_is_not_killed(tmp_path: Path) -> None:
    assert run(written(tmp_path, "memory_limit: 220MiB", *BURST, **SLOW)) == 4
    killed = read_run(tmp_path / "run")
    assert "oom_killed" in {finding.code for finding in killed.findings}

    assert run(written(tmp_path, f"{NEAR}, degrade: [preempt]", *BURST, **SLOW)) == 0
    recording = read_run(tmp_path / "run")
    assert outcomes(recording) == {"completed": 8}
    assert "memory_pressure" in reasons(recording)
    assert any(one.preemptions for one in recording.outcomes.values())
    summary = summarise(recording)
    assert summary.admission is not None and summary.admission.degraded is not None
    degraded = summary.admission.degraded
    assert degraded.at_bytes == int(0.8 * 220 * MIB)
    assert degraded.most_bytes is not None and degraded.most_bytes > degraded.at_bytes
    (step,) = degraded.steps
    assert step.name == "preempt" and step.times >= 1 and step.lasted_s > 0
    assert degraded.preempted >= 1
    assert "engine_degraded" in {finding.code for finding in summary.findings}


@pytest.mark.usefixtures("groups")
def test_far_from_the_limit_nothing_is_given_up(tmp_path: Path) -> None:
    far = "memory_limit: 1GiB, degrade: [shrink_batch, preempt, reject]"
    assert run(written(tmp_path, far, *BURST[:2])) == 0
    summary = summarise(read_run(tmp_path / "run"))
    assert summary.admission is not None and summary.admission.degraded is not None
    assert [step.times for step in summary.admission.degraded.steps] == [0, 0, 0]
    assert "engine_degraded" not in {finding.code for finding in summary.findings}
