"""When the engine makes its allocator give back what is free."""

from __future__ import annotations

from collections.abc import Callable

from memplan.engines.allocator import trim_heap


class Trimmer:
    """``policy`` is ``never``, ``after_release``, or seconds: then at most once in that time.

    Only the end of a request makes room, so nothing is done at other times.
    """

    def __init__(
        self,
        policy: str | float,
        now_s: Callable[[], float],
        trim: Callable[[], None] = trim_heap,
    ) -> None:
        assert policy in ("never", "after_release") or isinstance(policy, float), policy
        self._policy = policy
        self._now_s = now_s
        self._trim = trim
        self._trimmed_s = now_s()

    def after_release(self) -> bool:
        """Once the memory of ended requests was released; says whether the heap was trimmed."""
        match self._policy:
            case "never":
                return False
            case float(period_s) if self._now_s() - self._trimmed_s < period_s:
                return False
        self._trim()
        self._trimmed_s = self._now_s()
        return True
