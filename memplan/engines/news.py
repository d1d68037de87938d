"""When a peak is worth reading what the process is made of."""

from __future__ import annotations

# Reading takes 1 to 3 ms, and 40 ms where malloc has many free chunks to count. It is done when the
# peak grew by a part of itself, as long as that takes no more than a part of the time, and otherwise
# still more seldom.
_BIG_RATIO, _SMALL_RATIO = 0.01, 0.001
_SMALL_TIME_RATIO, _NONE_TIME_RATIO = 0.002, 0.0005


class News:
    """Thresholds, worked out when they change and not at every step."""

    def __init__(self) -> None:
        self._highest_bytes = 0
        self._big_bytes = self._small_bytes = 0.0
        self._small_after_s = self._any_after_s = 0.0

    def is_due(self, peak_bytes: int, now_s: float) -> bool:
        return (
            peak_bytes > self._big_bytes
            or now_s > self._any_after_s
            or (peak_bytes > self._small_bytes and now_s > self._small_after_s)
        )

    def was_read(self, peak_bytes: int, *, began_s: float, ended_s: float) -> None:
        """At such a peak, taking so long."""
        took_s = ended_s - began_s
        self._highest_bytes = max(self._highest_bytes, peak_bytes)
        self._big_bytes = self._highest_bytes * (1 + _BIG_RATIO)
        self._small_bytes = self._highest_bytes * (1 + _SMALL_RATIO)
        self._small_after_s = ended_s + took_s / _SMALL_TIME_RATIO
        self._any_after_s = ended_s + took_s / _NONE_TIME_RATIO
