"""Memory as a Prometheus server knows it: whatever the queries of model.yaml ask for, summed.

A scrape is seconds old and misses what comes and goes between two of them; its figures stand beside the
kernel's own, and in their place only where those cannot be read from here.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from memplan.records import EngineFacts
from memplan.specs.server import PrometheusSpec

_PATIENCE_S = 5.0


class PrometheusProbe:
    """Asks in a thread of its own: a slow server delays no request and no sample.

    ``prometheus.NAME`` for each query; one that cannot be asked is absent, and counted in
    ``prometheus.failures``.
    """

    def __init__(self, spec: PrometheusSpec) -> None:
        self._spec = spec
        self._values: dict[str, int] = {}
        self._failures = 0
        self._thread: threading.Thread | None = None

    def attach(self, facts: EngineFacts) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._keep_asking, name="prometheus", daemon=True
            )
            self._thread.start()

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        return {**self._values, "prometheus.failures": self._failures}

    # --- steps -----------------------------------------------------------------------------

    def _keep_asking(self) -> None:
        while True:
            began_s = time.monotonic()
            asked = {
                f"prometheus.{name}": value_of(self._spec.url, query)
                for name, query in self._spec.queries.items()
            }
            self._values = {name: value for name, value in asked.items() if value is not None}
            self._failures += len(asked) - len(self._values)
            time.sleep(max(0.0, began_s + self._spec.every_s - time.monotonic()))


def value_of(url: str, query: str) -> int | None:
    """The sum of all that an instant query returns, rounded; None where it returns nothing usable."""
    asked = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(asked, timeout=_PATIENCE_S) as answer:
            said = json.load(answer)
        found = said["data"]["result"]
        values = (
            [found] if said["data"]["resultType"] == "scalar" else [one["value"] for one in found]
        )
        total = sum(float(value) for _, value in values)
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError):
        return None
    return round(total) if values and total == total and abs(total) != float("inf") else None
