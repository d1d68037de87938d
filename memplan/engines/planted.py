"""Allocations of known size and life, made inside an engine process to prove that peaks are seen."""

from __future__ import annotations

import ctypes
import mmap
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memplan.compiled import cache_folder, compile_once
from memplan.errors import MachineError
from memplan.records import PlantedSpike

_SOURCE = Path(__file__).with_name("planted_spike.c")


def with_library(plan: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A self-test's settings, and what is to be loaded for spikes in a C call.

    Called on memplan's side, so that no compiler runs in the engine. Raises MachineError without one.
    """
    if plan is None or plan["made_by"] != "c_call":
        return plan
    library = compile_once(_SOURCE, "library", cache_folder())
    if library.path is None:
        raise MachineError(
            f"self_test.made_by: c_call cannot be compiled: {library.reason}",
            hint="install a C compiler (apt-get install gcc), or write made_by: thread",
        )
    return {**plan, "library": str(library.path)}


class SpikePlanter:
    """Plants ``count`` spikes from a thread of its own, one every ``every_s``.

    With a ``library`` each is made in one C call that keeps Python's lock: no other Python code runs
    from its first page to its last, neither the engine's nor a sampler's.
    """

    def __init__(
        self,
        *,
        spike_bytes: int,
        hold_s: float,
        count: int,
        every_s: float,
        now_s: Callable[[], float],
        made_by: str = "thread",
        seed: int | None = None,
        library: str | None = None,
    ) -> None:
        self._spike_bytes = spike_bytes
        self._hold_s = hold_s
        self._now_s = now_s
        # Where our clock begins on that of time.monotonic and of C; a thread switch between the two
        # readings makes one of them too early, never too late.
        self._epoch_s = max(time.monotonic() - now_s() for _ in range(9))
        draw = random.Random(seed)
        self._pauses_s = [
            every_s * (1.0 if seed is None else draw.uniform(0.5, 1.5)) for _ in range(count)
        ]
        self._plant = self._in_thread if made_by == "thread" else self._in_c_call
        self._library = ctypes.PyDLL(library) if library is not None else None
        self._done: list[PlantedSpike] = []
        self._thread = threading.Thread(target=self._run, name="memplan-planter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[PlantedSpike]:
        """Those planted since the last call."""
        done, self._done = self._done, []
        return done

    def _run(self) -> None:
        for pause_s in self._pauses_s:
            time.sleep(pause_s)
            began_s, resident_s, gone_s = self._plant()
            self._done.append(
                PlantedSpike(
                    spike_bytes=self._spike_bytes,
                    began_s=began_s,
                    resident_s=resident_s,
                    gone_s=gone_s,
                )
            )

    def _in_thread(self) -> tuple[float, float, float]:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        began_s = self._now_s()
        spike = mmap.mmap(-1, self._spike_bytes, flags=flags)
        resident_s = self._now_s()
        time.sleep(self._hold_s)
        gone_s = self._now_s()
        spike.close()
        return began_s, resident_s, gone_s

    def _in_c_call(self) -> tuple[float, float, float]:
        assert self._library is not None, "with_library comes first"
        times_ns = (ctypes.c_int64 * 3)()
        error = self._library.memplan_plant(
            ctypes.c_int64(self._spike_bytes), ctypes.c_int64(round(self._hold_s * 1e9)), times_ns
        )
        if error:
            raise OSError(error, "the spike could not be mapped")
        began_s, resident_s, gone_s = (at_ns * 1e-9 - self._epoch_s for at_ns in times_ns)
        return began_s, resident_s, gone_s
