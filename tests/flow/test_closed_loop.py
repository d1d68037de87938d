"""Sessions as a closed loop, through the real CLI and the scripted engine, which is slow here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.cli import run
from memplan.recording import read_run
from memplan.records import Recording

MODEL = """\
memplan: 1
name: pencil
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 65536, max_batch_tokens: 2048}
script:
  weights: 200MiB
  runtime: 100MiB
  kv_bytes_per_token: 1024
  prefill_tokens_per_s: 100
  decode_s_per_step: 50ms
  activation_bytes_per_token: 2048
  vocab_tokens: 1000
  context_tokens: 4096
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL)
    # Three turns of four sessions, each answered in 0.5 s by the fleet; here it takes over 2 s.
    rows = [
        {"timestamp": turn * 1500 + session * 100, "input_length": 200, "output_length": 5,
         "session_id": f"s{session}", "request_id": f"s{session}t{turn}",
         "observed": {"e2e_ms": 500}}
        for turn in range(3)
        for session in range(4)
    ]  # fmt: skip
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def replayed(folder: Path, *options: str) -> Recording:
    command = ["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), "--force"]
    assert run([*command, *options]) == 0
    return read_run(folder / "run")


@pytest.mark.parametrize("repeats", ["1", "2"])
def test_a_turn_waits_for_the_answer_before_it_and_its_users_time(
    folder: Path, repeats: str
) -> None:
    recording = replayed(folder, "--closed-loop", "--repeat", repeats)
    assert recording.header.workload.is_closed_loop
    assert len(recording.requests) == 12 * int(repeats)
    turns = [one for one in recording.requests if one.follows is not None]
    assert len(turns) == 8 * int(repeats)
    for one in turns:
        before, own = (recording.outcomes[name] for name in (one.follows, one.request_id))
        assert before.end_s is not None and own.intended_s is not None
        assert own.intended_s == pytest.approx(before.end_s + 1.0)
        assert own.sent_s is not None and own.sent_s >= own.intended_s


def test_without_it_turns_come_whether_answered_or_not(folder: Path) -> None:
    recording = replayed(folder)
    outcomes = recording.outcomes
    assert any(
        outcomes[f"s{session}t1"].sent_s < outcomes[f"s{session}t0"].end_s  # type: ignore[operator]
        for session in range(4)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pace", "--reference", "observed"), "got --pace"),
        (("--within", "1min", "--reference", "observed"), "--within"),
    ],
)
def test_what_contradicts_it_is_said(
    folder: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), "--closed-loop"]
    assert run([*command, *options]) == 2
    assert said in capsys.readouterr().err
