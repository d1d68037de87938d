"""What an engine gives up when its memory limit comes near, so that it is not killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from memplan.cgroups import GroupMemory, place_of
from memplan.engines.scheduler import PRESSURE, Scheduler

Degradation = Literal["shrink_batch", "offload", "preempt", "reject"]
PERIOD_S = 0.05
"""Time between two looks at what is charged; one takes about 30 µs."""
_RELIEF_RATIO = 0.9
"""Of the threshold: below that, one step is taken back."""
_SMALLEST_BATCH_RATIO = 8
"""A batch is halved until it is this many times smaller, and never below one token a request."""


class Pressure:
    """Takes the deployment's degradations one after the other while what is charged stays above
    ``at_bytes``, each for as long as it takes, and takes them back in the other order.

    ``preempt`` leaves those that still run what they need to their end: nobody takes the place of who
    had to make way.
    """

    def __init__(
        self,
        steps: tuple[Degradation, ...],
        *,
        at_bytes: int,
        charged_bytes: Callable[[], int],
        max_requests: int,
    ) -> None:
        self._steps = steps
        self._at_bytes = at_bytes
        self._relief_bytes = int(_RELIEF_RATIO * at_bytes)
        self._charged_bytes = charged_bytes
        self._max_requests = max_requests
        self._looked_s = 0.0
        self._found_bytes: int | None = None
        self._full_batch_tokens: int | None = None
        self.level = 0
        """How many of the steps are taken."""

    @property
    def refuses(self) -> bool:
        return "reject" in self._steps[: self.level]

    def gauges(self) -> Mapping[str, int]:
        """How many of the steps are taken, and what was charged at the look that left it so."""
        level = {"engine.degradation": self.level}
        if self._found_bytes is None:
            return level
        return {**level, "engine.working_set": self._found_bytes}

    def look(self, scheduler: Scheduler, now_s: float) -> None:
        if not self._steps or now_s < self._looked_s + PERIOD_S:
            return
        self._looked_s = now_s
        self._found_bytes = charged = self._charged_bytes()
        if charged > self._at_bytes:
            self._degrade(scheduler, now_s)
        elif charged < self._relief_bytes and self.level:
            self.level -= 1
            if self._steps[self.level] == "shrink_batch" and self._full_batch_tokens:
                scheduler.max_batch_tokens = self._full_batch_tokens
            elif self._steps[self.level] == "preempt":
                scheduler.lift_limit(PRESSURE)

    def _degrade(self, scheduler: Scheduler, now_s: float) -> None:
        """The steps taken go on as far as they can; where none could, the next one is taken."""
        if any([self._apply(step, scheduler, now_s) for step in self._steps[: self.level]]):
            return
        if self.level < len(self._steps):
            self.level += 1
            self._apply(self._steps[self.level - 1], scheduler, now_s)

    def _apply(self, step: Degradation, scheduler: Scheduler, now_s: float) -> bool:
        """Whether it changed anything."""
        match step:
            case "shrink_batch":
                return self._shrink(scheduler)
            case "offload":
                return scheduler.book.evict_kept() > 0
            case "preempt":
                # The last one that runs goes on, or nothing would ever end.
                victim = scheduler.youngest() if len(scheduler.running) > 1 else None
                if victim is None:
                    return False
                scheduler.preempt(victim, now_s)
                scheduler.book.evict_kept()  # what it leaves would be kept otherwise
                scheduler.limit_blocks(PRESSURE, scheduler.reserved_blocks)
                return True
            case "reject":
                return False

    def _shrink(self, scheduler: Scheduler) -> bool:
        if self._full_batch_tokens is None:
            self._full_batch_tokens = scheduler.max_batch_tokens
        smallest = max(self._max_requests, self._full_batch_tokens // _SMALLEST_BATCH_RATIO)
        smaller = max(smallest, scheduler.max_batch_tokens // 2)
        is_change = smaller < scheduler.max_batch_tokens
        scheduler.max_batch_tokens = smaller
        return is_change


def open_pressure(settings: Mapping[str, Any]) -> Pressure | None:
    """None where nothing is to be given up, or nothing limits the engine. Raises RuntimeError where
    this process cannot read what its group is charged."""
    limit_bytes = settings["memory_limit_bytes"]
    if not settings["degrade"] or limit_bytes is None:
        return None
    place = place_of("self")
    if place is None:
        raise RuntimeError(
            "settings.degrade: this process is in no control group with a memory limit"
        )
    memory = GroupMemory(place)

    def working_set_bytes() -> int:
        """Charged, less the file pages that the kernel drops first."""
        charged = memory.read_charge()["cgroup.current"]
        return charged - memory.read_detail().get("cgroup.inactive_file", 0)

    return Pressure(
        tuple(settings["degrade"]),
        at_bytes=int(settings["degrade_at"] * limit_bytes),
        charged_bytes=working_set_bytes,
        max_requests=settings["max_requests"],
    )
