"""Planted spikes are as large and as long as they say, and a C call lets no Python see them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from memplan.engines.planted import SpikePlanter, with_library
from memplan.errors import MachineError
from memplan.procfs import ProcessMemory
from memplan.records import PlantedSpike
from memplan.units import MIB

PLAN = {"spike_bytes": 20 * MIB, "hold_s": 0.02, "count": 1, "every_s": 0.01, "seed": None}


def planted(made_by: str, **changes: Any) -> list[PlantedSpike]:
    plan = with_library({**PLAN, "made_by": made_by, **changes})
    assert plan is not None
    planter = SpikePlanter(**plan, now_s=time.monotonic)
    planter.start()
    planter._thread.join()
    return planter.take()


@pytest.mark.parametrize("made_by", ["thread", "c_call"])
def test_the_kernels_mark_sees_its_height_and_it_is_held_as_long(made_by: str) -> None:
    with ProcessMemory() as memory:
        memory.reset_peak()
        before = memory.read()["host.rss"]
        (spike,) = planted(made_by)
        after = memory.read()
    assert abs(after["host.hwm"] - before - 20 * MIB) < MIB
    assert after["host.rss"] - before < MIB
    assert spike.began_s < spike.resident_s
    assert spike.gone_s - spike.resident_s >= 0.02
    assert spike.spike_bytes == 20 * MIB


def test_no_python_thread_runs_while_a_c_call_holds_its_spike() -> None:
    seen: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(time.monotonic())

    looker = threading.Thread(target=look)
    looker.start()
    (spike,) = planted("c_call")
    done.set()
    looker.join()
    assert len(seen) > 100
    assert [t for t in seen if spike.resident_s < t < spike.gone_s] == []


def test_a_seed_draws_the_pauses_and_repeats_them() -> None:
    def pauses(seed: int | None) -> list[float]:
        plan = {**PLAN, "count": 50, "every_s": 0.2, "seed": seed}
        return SpikePlanter(**plan, now_s=time.monotonic)._pauses_s  # type: ignore[arg-type]

    assert pauses(None) == [0.2] * 50
    assert pauses(3) == pauses(3) != pauses(4)
    assert all(0.1 <= pause_s <= 0.3 for pause_s in pauses(3))
    assert max(pauses(3)) > 0.25 > 0.15 > min(pauses(3))


def test_without_a_compiler_a_c_call_is_refused_and_a_thread_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="no C compiler") as told:
        with_library({**PLAN, "made_by": "c_call"})
    assert "made_by: thread" in told.value.hint
    assert with_library({**PLAN, "made_by": "thread"}) == {**PLAN, "made_by": "thread"}
    assert with_library(None) is None
