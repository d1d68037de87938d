"""A probe that reads what it is told, for tests and for trying the tool without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.records import EngineFacts


class ScriptedProbe:
    """Returns its readings in turn and stays on the last one."""

    def __init__(self, readings: Sequence[Mapping[str, int]]) -> None:
        self._readings = list(readings)
        self._next = 0

    def attach(self, facts: EngineFacts) -> None:
        self._next = 0

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        reading = self._readings[min(self._next, len(self._readings) - 1)]
        self._next += 1
        return reading
