"""Python's collector of reference cycles inside the engine: what it may look at, and what it costs."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Literal

Mode = Literal["python", "frozen", "off"]

_NOTHING = {"engine.gc_us": 0, "engine.gc_runs": 0}


class Garbage:
    """python: as Python does by itself. frozen: what the start left behind is collected once, and then
    never looked at again. off: that too, and nothing is collected while the engine serves."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._began_s = 0.0
        self._spent_s = 0.0
        self._collections = 0

    def settle(self) -> str:
        """When the engine is warm; what was done, in words."""
        if self._mode == "python":
            gc.callbacks.append(self._notice)
            return f"python: {len(gc.get_objects()):,} objects are looked at again and again"
        # What the warm-up left behind in Python's own heap is not a cost of the first request.
        gc.collect()
        gc.freeze()
        gc.callbacks.append(self._notice)  # counts what happens from here on
        frozen = f"{gc.get_freeze_count():,} objects of the start are left alone"
        if self._mode == "off":
            gc.disable()
            return f"off: {frozen}, and cycles that are made while serving stay"
        return f"frozen: {frozen}"

    def take(self) -> Mapping[str, int]:
        """Since the last call: ``engine.gc_us``, microseconds spent in collections, and
        ``engine.gc_runs``, how many there were."""
        if not self._collections:
            return _NOTHING
        taken = {"engine.gc_us": round(self._spent_s * 1e6), "engine.gc_runs": self._collections}
        self._spent_s, self._collections = 0.0, 0
        return taken

    def _notice(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
        else:
            self._spent_s += time.perf_counter() - self._began_s
            self._collections += 1
