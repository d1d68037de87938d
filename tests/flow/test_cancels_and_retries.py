"""Users who give up, and clients that ask again, through the real CLI."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.recording import read_run
from memplan.records import Recording

SCRIPT = """\
script:
  weights: 20MiB
  runtime: 10MiB
  kv_bytes_per_token: 1024
  prefill_tokens_per_s: 10000
  decode_s_per_step: 50ms
  activation_bytes_per_token: 64
  vocab_tokens: 1000
  context_tokens: 4096
"""
MODEL = """\
memplan: 1
name: pencil
engine: %s
settings: {block_tokens: 16, max_requests: %d, max_kv_tokens: 8192, max_batch_tokens: 2048%s}
"""


def replayed(
    folder: Path,
    rows: list[dict[str, Any]],
    *options: str,
    engine: str = "scripted",
    at_once: int = 8,
    more: str = "",
    code: int = 0,
) -> Recording:
    (folder / "model.yaml").write_text(MODEL % (engine, at_once, more) + SCRIPT)
    lines = [{"memplan_trace": 1}, *rows]
    (folder / "trace.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    command = ["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), "--force"]
    assert run([*command, *options]) == code
    return read_run(folder / "run")


def row(at_ms: float, output: int = 40, **more: Any) -> dict[str, Any]:
    return {"timestamp": at_ms, "input_length": 200, "output_length": output, **more}


# --- users who give up -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["scripted", "ballast"])
@pytest.mark.parametrize("dilation", ["1", "2"])
def test_who_gives_up_ends_at_that_time_and_holds_nothing_after_it(
    tmp_path: Path, engine: str, dilation: str
) -> None:
    rows = [row(0), row(100, cancel_after_ms=500), row(100, cancel_after_ms=60_000)]
    found = replayed(tmp_path, rows, "--dilation", dilation, engine=engine)
    stays, gone, patient = (found.outcomes[one.request_id] for one in found.requests)
    assert (stays.outcome, gone.outcome, patient.outcome) == ("completed", "cancelled", "completed")
    assert gone.intended_s is not None and gone.end_s is not None
    # A step of 50 ms ends before anybody is heard.
    late_s = gone.end_s - gone.intended_s - 0.5 * float(dilation)
    assert -1e-6 <= late_s < 0.2
    assert 0 < gone.output_tokens_run < 40
    assert gone.input_tokens_run == 200
    after = [one for one in found.segments if one.start_s >= gone.end_s]
    assert len(after) > 5
    assert all(gone.request_id not in {f.request_id for f in one.in_flight} for one in after)
    kv = 1024 * 16 * -(-240 // 16)
    assert max(one.gauges.get("engine.kv_blocks", 0) for one in after) <= 2 * kv


def test_who_gives_up_in_the_queue_has_run_nothing_and_nobody_waits_for_it(tmp_path: Path) -> None:
    rows = [row(0), row(0, cancel_after_ms=300), row(400)]
    found = replayed(tmp_path, rows, at_once=1)
    first, gone, last = (found.outcomes[one.request_id] for one in found.requests)
    assert gone.outcome == "cancelled"
    assert (gone.admitted_s, gone.input_tokens_run) == (None, 0)
    assert last.admitted_s == pytest.approx(first.end_s)


def test_one_that_was_cancelled_before_its_first_token_is_sent_all_the_same(tmp_path: Path) -> None:
    """Its prompt was read, so it was load."""
    rows = [row(0, output=0, status="cancelled", cancel_after_ms=5), row(0, output=0)]
    found = replayed(tmp_path, rows)
    (only,) = found.outcomes.values()
    assert found.header.workload.dropped == {"zero_output": 1}
    assert only.input_tokens_run == 200


def test_the_report_counts_them_apart_from_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(tmp_path, [row(0), row(0, cancel_after_ms=300)])
    assert "1 cancelled by their users" in capsys.readouterr().out
    assert run(["report", str(tmp_path / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (only,) = (one for one in document["classes"] if one["requests"])
    assert (only["completed"], only["cancelled"], only["failed"]) == (1, 1, 0)
    assert only["latency"]["e2e_s"]["n"] == 1
    assert "requests_not_run" not in {one["code"] for one in document["findings"]}


def test_at_a_references_pace_they_get_what_the_reference_had_given_by_then(
    tmp_path: Path,
) -> None:
    rows = [row(0, cancel_after_ms=500), row(0, cancel_after_ms=10), row(0, output=4)]
    found = replayed(tmp_path, rows, "--reference", "prefill=10000,tpot=100ms", "--pace")
    gone, early, stays = (found.outcomes[one.request_id] for one in found.requests)
    # 20 ms of prompt, and a token each 100 ms.
    assert (gone.output_tokens_run, stays.output_tokens_run) == (5, 4)
    assert early.output_tokens_run <= 1
    assert gone.end_s is not None and gone.intended_s is not None
    assert gone.end_s - gone.intended_s == pytest.approx(0.5, abs=0.06)
    assert [one.service_e2e_s for one in found.requests] == pytest.approx([0.5, 0.01, 0.42])


def test_a_probe_has_nobody_who_gives_up(tmp_path: Path) -> None:
    rows = [row(at * 100, cancel_after_ms=300) for at in range(30)]
    options = ("--reference", "prefill=10000,tpot=100ms", "--pace", "--dilation", "auto")
    replayed(tmp_path, rows, *options)
    probed = read_run(tmp_path / "run-probe")
    assert {one.outcome for one in probed.outcomes.values()} == {"completed"}


@pytest.mark.parametrize("value", [-1, True, "soon", 1e13])
def test_a_time_that_is_none_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    (tmp_path / "model.yaml").write_text(MODEL % ("scripted", 1, "") + SCRIPT)
    lines = [{"memplan_trace": 1}, row(0, cancel_after_ms=value)]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert run(["replay", str(tmp_path / "trace.jsonl"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "trace.jsonl:2 cancel_after_ms: got" in said and "expected milliseconds" in said


# --- clients that ask again ----------------------------------------------------------------------

FULL = ", queue_limit: 1, overload: reject"
RETRY = ("--retry", "most=3,after=1s,factor=3")


def test_what_is_rejected_is_asked_again_after_the_policys_waits(tmp_path: Path) -> None:
    rows = [row(0, output=200) for _ in range(4)]  # 10 s each, one at a time, one may wait
    found = replayed(tmp_path, rows, *RETRY, at_once=1, more=FULL)
    assert Counter(one.attempt for one in found.requests) == {1: 4, 2: 2, 3: 2, 4: 2}
    by_first: dict[str, list[Any]] = {}
    for one in found.requests:
        by_first.setdefault(one.retry_of or one.request_id, []).append(
            found.outcomes[one.request_id]
        )
    for tries in by_first.values():
        assert all(one.outcome == "rejected" for one in tries[:-1])
        for before, after, wait_s in zip(tries, tries[1:], (1, 3, 9), strict=False):
            assert after.intended_s == pytest.approx(before.end_s + wait_s)
    assert Counter(tries[-1].outcome for tries in by_first.values())["completed"] >= 3
    assert found.header.workload.retries == "at most 3, after 1 s × 3 each time"


def test_waits_are_dilated_as_arrivals_are(tmp_path: Path) -> None:
    rows = [row(0, output=20) for _ in range(3)]
    found = replayed(tmp_path, rows, *RETRY, "--dilation", "4", at_once=1, more=FULL)
    (again,) = (one for one in found.requests if one.attempt == 2)
    assert again.retry_of is not None
    first = found.outcomes[again.retry_of]
    assert found.outcomes[again.request_id].intended_s == pytest.approx(first.end_s + 4)


def test_what_can_never_run_is_not_asked_again(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 5000, "output_length": 1}, row(0)]
    found = replayed(tmp_path, rows, *RETRY, "--oversize", "reject")
    assert [one.attempt for one in found.requests] == [1, 1]


def test_a_turn_follows_the_attempt_that_was_answered(tmp_path: Path) -> None:
    session = [
        row(0, output=20, request_id="long"),
        row(1, output=20, request_id="waits"),
        row(2, output=4, request_id="asked", session_id="s", observed={"e2e_ms": 100}),
        row(300, output=4, request_id="next", session_id="s", observed={"e2e_ms": 100}),
    ]
    found = replayed(tmp_path, session, *RETRY, "--closed-loop", at_once=1, more=FULL)
    answered = found.outcomes["asked~2"]
    assert found.outcomes["asked"].outcome == "rejected"
    assert answered.outcome == "completed" and answered.end_s is not None
    following = found.outcomes["next"].intended_s
    assert following == pytest.approx(answered.end_s + 0.198)


def test_a_trace_that_lists_its_retries_is_not_given_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(0, request_id="a"), row(900, request_id="b", retry_of="a", attempt=2)]
    found = replayed(tmp_path, rows)
    assert [(one.retry_of, one.attempt) for one in found.requests] == [(None, 1), ("a", 2)]
    capsys.readouterr()
    replayed(tmp_path, rows, *RETRY, code=2)
    assert "it lists its retries" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("", "got '', expected most=TIMES"),
        ("most=3", "after missing"),
        ("after=1s", "most missing"),
        ("most=0,after=1s", "expected most from 1 to 100"),
        ("most=three,after=1s", "got 'most=three'"),
        ("most=3,after=soon", "got 'after=soon'"),
        ("most=3,after=1s,factor=0.5", "a factor from 1 to 100"),
    ],
)
def test_a_policy_that_is_none_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, told: str
) -> None:
    (tmp_path / "model.yaml").write_text(MODEL % ("scripted", 1, "") + SCRIPT)
    (tmp_path / "trace.jsonl").write_text(json.dumps(row(0)) + "\n")
    command = ["replay", str(tmp_path / "trace.jsonl"), "--out", str(tmp_path / "run")]
    assert run([*command, "--retry", policy]) == 2
    said = capsys.readouterr().err
    assert told in said and "--retry most=3,after=1s,factor=2" in said
