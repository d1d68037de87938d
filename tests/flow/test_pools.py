"""Several engines behind a gateway, through the real CLI over scripted engines and their clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.gateway_file import PATHS, read_gateway

MODEL = """\
memplan: 1
name: pools
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 4096, max_batch_tokens: 512}
classes:
  - {name: short, when: {input_tokens: "<512"}}
  - {name: long, when: {input_tokens: ">=512"}}
script:
  {prefill_tokens_per_s: 1000, decode_s_per_step: 100ms, kv_bytes_per_token: 1024, context_tokens: 2048}
"""
POOLS = """\
pools:
  - {name: small, settings: {max_requests: 1}, max_in_flight: 1}
  - {name: large, max_in_flight: 1}
routes:
  - {name: short, when: {class: [short]}, to: [small, large], when_full: [deferred], defer: 10s}
  - {name: long, to: [large]}
"""
BURST = "".join(
    f'{{"timestamp": {at}, "input_length": {tokens}, "output_length": 3}}\n'
    for at, tokens in ((0, 100), (0, 100), (1, 600), (2, 100))
)


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL + POOLS)
    (tmp_path / "trace.jsonl").write_text(BURST)
    return tmp_path


def replayed(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    trace, out = str(folder / "trace.jsonl"), str(folder / "run")
    assert run(["replay", trace, "--out", out, "--json", "--force", *options]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_every_request_is_accounted_for_by_its_path(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(pools, capsys)
    paths = {(one["class"], one["path"]): one for one in document["paths"]}
    # Both pools hold one short request; the long one finds no room; the last short one comes later.
    assert {key: one["requests"] for key, one in paths.items()} == {
        ("short", "small"): 1,
        ("short", "large"): 1,
        ("short", "deferred → small"): 1,
        ("long", "no_room"): 1,
    }
    assert (document["requests"], document["answered"]) == (4, 3)
    assert document["handed"] == {"small": 2, "large": 1}
    # 100 tokens at 1,000 tokens/s and two decode steps of 100 ms.
    assert paths["short", "small"]["e2e_s"]["p50"] == pytest.approx(0.3, abs=0.005)
    assert paths["short", "deferred → small"]["e2e_s"]["p50"] == pytest.approx(10.3, abs=0.005)
    assert paths["long", "no_room"]["e2e_s"] is None
    assert sum(len(one["classes"]) for one in document["pools"]["runs"]) == 4


def test_the_pools_are_runs_of_their_own_and_the_page_says_both(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(pools, capsys)
    assert run(["report", str(pools / "run" / "small"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variant"] == "small"
    assert run(["report", str(pools / "run"), "--out", str(pools / "page.html")]) == 0
    page = (pools / "page.html").read_text()
    assert "Which way requests went" in page
    assert "deferred → small" in page
    capsys.readouterr()
    assert run(["report", str(pools / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "memplan.gateway/1"


def test_a_pool_is_a_variant_that_can_be_measured_alone(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(pools, capsys, "--variant", "small")
    assert document["schema"] == "memplan.replay/1"
    assert document["variant"] == "small"
    assert run(["profile", str(pools / "model.yaml"), "--out", str(pools / "p"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["variant"] for one in found["variants"]] == ["small", "large"]


def test_an_engine_for_each_class_holds_that_class_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.yaml").write_text(MODEL + "pools: by_class\n")
    (tmp_path / "trace.jsonl").write_text(BURST)
    document = replayed(tmp_path, capsys)
    assert document["handed"] == {"short": 3, "long": 1}
    for one in document["pools"]["runs"]:
        served = {c["name"]: c["completed"] for c in one["classes"] if c["completed"]}
        assert list(served) == [one["variant"]]


def test_a_run_that_was_cut_off_is_read_with_what_was_on_its_way(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(pools, capsys)
    path = pools / "run" / PATHS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    gateway = read_gateway(pools / "run")
    assert not gateway.is_whole
    outcomes = [one.outcome for one in gateway.paths]
    assert len(outcomes) == 4
    assert "unfinished" in outcomes
    assert run(["report", str(pools / "run"), "--out", str(pools / "cut.html")]) == 0
    assert "cut off" in (pools / "cut.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--restart-engine"], "--restart-engine: model.yaml has pools"),
        (["--repeat", "2"], "--repeat: model.yaml has pools"),
        (["--length-scale", "9"], "longer than any pool of their route"),
        (["--memory-limit", "1GiB"], "--memory-limit"),
    ],
)
def test_what_cannot_be_done_with_pools_is_one_sentence(
    pools: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    trace, out = str(pools / "trace.jsonl"), str(pools / "run")
    assert run(["replay", trace, "--out", out, *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "→" in said
    assert not (pools / "run").exists()


def test_every_fault_of_pools_and_routes_is_told_at_once(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pools / "model.yaml").write_text(
        MODEL + "pools:\n"
        "  - {name: a}\n"
        "  - {name: a, settings: {max_kv_tokens: 8}}\n"
        "  - {name: idle, model: {package: x}}\n"
        "routes:\n"
        "  - {name: one, to: [a, b], under_pressure: [a]}\n"
        "  - {name: two, when: {class: [shrt]}, to: [a], defer: 3s}\n"
    )
    assert run(["replay", str(pools / "trace.jsonl")]) == 2
    said = capsys.readouterr().err
    for words in (
        'there is a pool "a" above already',
        "less than one block",
        'no route leads to pool "idle"',
        "engine scripted loads no model",
        'there is no pool "b", expected one of a, a, idle',
        "nothing says when memory is short",
        'there is no class "shrt", expected one of short, long',
        "nothing is deferred",
        'route "two" can never be taken',
    ):
        assert words in said, words


def test_a_user_who_gives_up_leaves_the_pool_and_tries_no_other(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Patience counts from the arrival at the gateway: of one that is put off it is over when it is
    handed over."""
    rows = [
        {"timestamp": 0, "input_length": 100, "output_length": 3, "cancel_after_ms": 150},
        {"timestamp": 0, "input_length": 100, "output_length": 3},
        {"timestamp": 1, "input_length": 100, "output_length": 3, "cancel_after_ms": 5000},
    ]
    lines = [json.dumps(one) + "\n" for one in ({"memplan_trace": 1}, *rows)]
    (pools / "trace.jsonl").write_text("".join(lines))
    document = replayed(pools, capsys)
    outcomes = {one.request_id: one for one in read_gateway(pools / "run").paths}
    first, second, put_off = (outcomes[name] for name in sorted(outcomes))
    assert (first.outcome, second.outcome, put_off.outcome) == (
        "cancelled",
        "completed",
        "cancelled",
    )
    assert [len(one.attempts) for one in (first, second, put_off)] == [1, 1, 1]
    assert first.end_s == pytest.approx(0.2, abs=0.05)  # a step had to end first
    assert put_off.attempts[0].sent_s == pytest.approx(10, abs=0.1)
    assert put_off.end_s is not None and put_off.end_s - put_off.attempts[0].sent_s < 0.2
    assert document["answered"] == 1
