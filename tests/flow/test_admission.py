"""Who waits for what, who is turned away and what is shared: the real CLI over the scripted engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

KIB, MIB = 2**10, 2**20
# A prompt of 100 tokens is read in 0.1 s, a step of decodes takes 0.1 s; a block is 16 KiB of KV.
MODEL = """\
memplan: 1
name: pencil
engine: scripted
settings: {{block_tokens: 16, max_kv_tokens: 4096, max_batch_tokens: 512, {settings}}}
classes:
  - {{name: short, when: {{input_tokens: "<512"}}, budget: {{{budget}}}}}
  - {{name: long, when: {{input_tokens: ">=512"}}}}
script: {{weights: 200MiB, runtime: 100MiB, kv_bytes_per_token: 1024, prefill_tokens_per_s: 1000,
         decode_s_per_step: 100ms, activation_bytes_per_token: 2048, vocab_tokens: 1000,
         context_tokens: 2048}}
"""
SHORT, LONG = (100, 3), (600, 3)
ONE_AT_A_TIME = "max_requests: 1"


@pytest.fixture
def replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Replays requests of (ms, (prompt, output)), and gives the JSON document."""

    def replay(settings: str, *rows: tuple[int, tuple[int, int]], budget: str = "") -> Any:
        (tmp_path / "model.yaml").write_text(MODEL.format(settings=settings, budget=budget))
        lines = (
            json.dumps({"timestamp": at_ms, "input_length": tokens, "output_length": out})
            for at_ms, (tokens, out) in rows
        )
        (tmp_path / "trace.jsonl").write_text("\n".join(lines))
        trace = str(tmp_path / "trace.jsonl")
        assert run(["replay", trace, "--out", str(tmp_path / "run"), "--json", "--force"]) == 0
        return json.loads(capsys.readouterr().out)

    return replay


def waits(document: Any, name: str) -> dict[str, float]:
    one = next(found for found in document["classes"] if found["name"] == name)
    return {wait["reason"]: round(wait["total_s"], 6) for wait in one["admission"]["waits"]}


def codes(document: Any) -> set[str]:
    return {finding["code"] for finding in document["findings"]}


BURST = ((0, SHORT), (50, SHORT), (60, SHORT), (70, SHORT))


def test_a_full_queue_rejects_who_comes(replayed: Any) -> None:
    # The first runs 0 to 0.3 s; the second comes in its first step and waits for its place.
    document = replayed(f"{ONE_AT_A_TIME}, queue_limit: 1, overload: reject", *BURST)
    short = document["classes"][0]
    assert (short["completed"], short["rejected"]) == (2, 2)
    assert short["reasons"] == short["admission"]["rejected"] == {"queue_full": 2}
    assert short["admission"]["entered"] == 2
    waited = waits(document, "short")
    assert waited.keys() == {"requests", "step"}
    assert sum(waited.values()) == pytest.approx(0.25)
    assert waited["requests"] >= 0.2
    assert "requests_not_run" in codes(document)


def test_a_full_queue_answers_shortly_where_it_is_told_to(replayed: Any) -> None:
    settings = f"{ONE_AT_A_TIME}, queue_limit: 1, overload: fall_back, fall_back_tokens: 1"
    document = replayed(settings, *BURST)
    short = document["classes"][0]
    assert (short["completed"], short["rejected"]) == (4, 0)
    assert (short["admission"]["shortened"], short["admission"]["shortened_tokens"]) == (2, 4)
    assert "requests_shortened" in codes(document)
    assert "lengths_differ" not in codes(document)


LANES = "max_requests: 4, lanes: [{up_to_tokens: 511}, {max_requests: 1}]"


def test_a_long_request_in_the_way_of_another_does_not_hold_up_short_ones(replayed: Any) -> None:
    rows = ((0, LONG), (10, LONG), (20, SHORT))
    document = replayed(LANES, *rows)
    assert waits(document, "short").keys() == {"step"}
    assert waits(document, "long").keys() == {"step", "lane"}
    one_queue = replayed("max_requests: 1", *rows)
    assert "requests" in waits(one_queue, "short")
    soonest, behind = (
        one["classes"][0]["latency"]["e2e_s"]["p50"] for one in (document, one_queue)
    )
    assert soonest < behind


def test_what_no_lane_can_ever_hold_is_rejected(replayed: Any) -> None:
    lanes = "max_requests: 4, lanes: [{up_to_tokens: 511, max_kv_tokens: 64}, {}]"
    document = replayed(lanes, (0, SHORT), (0, LONG))
    assert document["classes"][0]["reasons"] == {"exceeds_lane": 1}
    assert document["classes"][1]["completed"] == 1


def test_a_class_keeps_to_its_budget_and_others_pass_it(replayed: Any) -> None:
    # Each short request needs ceil(102 / 16) = 7 blocks of 16 KiB: two are more than 8 blocks.
    rows = ((0, SHORT), (10, SHORT), (20, LONG))
    within = replayed("max_requests: 4", *rows, budget="in_flight: 128KiB")
    assert waits(within, "short").keys() == {"step", "class_budget"}
    assert within["classes"][0]["completed"] == 2
    without = replayed("max_requests: 4", *rows)
    assert waits(without, "short").keys() == {"step"}
    assert within["admission"]["kv"]["held_bytes"] < without["admission"]["kv"]["held_bytes"]


def test_a_request_above_its_classs_budget_is_rejected(replayed: Any) -> None:
    document = replayed("max_requests: 4", (0, SHORT), budget="in_flight: 96KiB")
    assert document["classes"][0]["reasons"] == {"exceeds_class_budget": 1}


def shared_trace(folder: Path) -> list[str]:
    """One after the other: three requests of 64 tokens, of which the first 48 are the same, and one
    of 128 that nobody else begins like."""
    header = {"memplan_trace": 1, "block_size": 16}
    rows = [
        {
            "timestamp": 1000 * n,
            "input_length": 64,
            "output_length": 2,
            "hash_ids": [1, 2, 3, 10 + n],
        }
        for n in range(3)
    ]
    alone = {
        "timestamp": 3000,
        "input_length": 128,
        "output_length": 2,
        "hash_ids": [*range(20, 28)],
    }
    rows.append(alone)
    (folder / "shared.jsonl").write_text("\n".join(map(json.dumps, [header, *rows])))
    (folder / "model.yaml").write_text(
        MODEL.format(settings="max_requests: 4, prefix_sharing: kept", budget="")
    )
    return [str(folder / "shared.jsonl"), "--out", str(folder / "run"), "--force"]


def test_kept_blocks_are_shared_and_every_byte_of_the_peak_has_its_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = shared_trace(tmp_path)
    assert run(["replay", *command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    short = document["classes"][0]
    assert (short["admission"]["shared_tokens"], short["admission"]["prompt_tokens"]) == (96, 320)
    # A request of 65 tokens fills 4 blocks, which are kept, and begins a fifth, which is not. The second
    # and the third have one of their own each. The last one fills 8 and begins a ninth.
    kv = document["admission"]["kv"]
    assert kv["kept_bytes"] == 6 * 16 * KIB
    assert kv["held_bytes"] == 9 * 16 * KIB
    assert document["process"]["attribution"]["unexplained_bytes"] == 0
    parts = document["process"]["attribution_of"]["kv_parts_bytes"]
    assert parts == {"of one request": 8 * 16 * KIB, "kept, of no request": 6 * 16 * KIB}
    assert sum(parts.values()) == document["process"]["attribution"]["kv_bytes"]
    assert document["kv_slope"] is None


def test_the_report_says_what_was_shared_and_a_plain_run_has_no_such_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", *shared_trace(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "What requests waited for" in told
    assert "kept for who may come" in told
    page = tmp_path / "report.html"
    assert run(["report", str(tmp_path / "run"), "--out", str(page)]) == 0
    assert "KV blocks over the run" in page.read_text()
    capsys.readouterr()
    assert run(["explain", str(tmp_path / "run"), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["classes"]
    suggestion = next(s for s in one["suggestions"] if s["code"] == "prefix_sharing")
    assert suggestion["change"] == "prefix_sharing: running (now kept)"
    assert (suggestion["saves_bytes"], suggestion["is_measured"]) == (6 * 16 * KIB, True)

    (tmp_path / "model.yaml").write_text(MODEL.format(settings="max_requests: 4", budget=""))
    assert run(["replay", *one_request(tmp_path)]) == 0
    assert "What requests waited for" not in capsys.readouterr().out


def one_request(folder: Path) -> list[str]:
    (folder / "one.jsonl").write_text('{"timestamp": 0, "input_length": 64, "output_length": 2}')
    return [str(folder / "one.jsonl"), "--out", str(folder / "run"), "--force"]
