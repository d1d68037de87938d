"""Allocations of known size and life, made inside an engine process to prove that peaks are seen."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable

from memplan.records import PlantedSpike


class SpikePlanter:
    """Plants ``count`` spikes from a thread of its own, one every ``every_s``."""

    def __init__(
        self,
        *,
        spike_bytes: int,
        hold_s: float,
        count: int,
        every_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._spike_bytes = spike_bytes
        self._hold_s = hold_s
        self._count = count
        self._every_s = every_s
        self._now_s = now_s
        self._done: list[PlantedSpike] = []
        self._thread = threading.Thread(target=self._run, name="memplan-planter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[PlantedSpike]:
        """Those planted since the last call."""
        done, self._done = self._done, []
        return done

    def _run(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        for _ in range(self._count):
            time.sleep(self._every_s)
            began_s = self._now_s()
            spike = mmap.mmap(-1, self._spike_bytes, flags=flags)
            resident_s = self._now_s()
            time.sleep(self._hold_s)
            gone_s = self._now_s()
            spike.close()
            self._done.append(
                PlantedSpike(
                    spike_bytes=self._spike_bytes,
                    began_s=began_s,
                    resident_s=resident_s,
                    gone_s=gone_s,
                )
            )
