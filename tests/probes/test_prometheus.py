"""Prometheus as a source: what a query's answer comes to, and what no answer does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from memplan.probes.prometheus import PrometheusProbe, value_of
from memplan.specs.server import PrometheusSpec

ANSWERS = {
    "one": {"resultType": "vector", "result": [{"metric": {}, "value": [1.0, "1048576"]}]},
    "two": {
        "resultType": "vector",
        "result": [{"value": [1.0, "3e6"]}, {"value": [1.0, "1000000.4"]}],
    },
    "scalar": {"resultType": "scalar", "result": [1.0, "7"]},
    "none": {"resultType": "vector", "result": []},
    "nan": {"resultType": "vector", "result": [{"value": [1.0, "NaN"]}]},
    "odd": {"resultType": "vector", "result": [{"metric": {}}]},
}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        (query,) = parse_qs(urlsplit(self.path).query)["query"]
        data = json.dumps({"status": "success", "data": ANSWERS[query]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("one", 1048576),
        ("two", 4000000),
        ("scalar", 7),
        ("none", None),
        ("nan", None),
        ("odd", None),
    ],
)
def test_an_answer_is_summed_and_what_is_no_number_is_none(
    url: str, query: str, value: int | None
) -> None:
    assert value_of(url, query) == value


def test_nobody_there_is_no_value() -> None:
    assert value_of("http://127.0.0.1:1", "one") is None


def test_the_probe_reads_in_the_background_and_counts_what_failed(url: str) -> None:
    spec = PrometheusSpec.model_validate(
        {"url": url, "every": "20ms", "queries": {"held": "one", "lost": "none"}}
    )
    probe = PrometheusProbe(spec)
    probe.attach(None)  # type: ignore[arg-type]
    deadline_s = time.monotonic() + 10
    while probe.read().get("prometheus.failures", 0) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    found = probe.read()
    assert found["prometheus.held"] == 1048576
    assert "prometheus.lost" not in found
    assert found["prometheus.failures"] >= 2
