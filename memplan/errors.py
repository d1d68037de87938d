"""Every failure that memplan explains to its user, as one small tree.

MemplanError                 1   our own fault: "please report"
├── InputError               2   what the user wrote: a flag, model.yaml, a trace
├── MachineError             3   what this machine lacks: a package, a permission, disk space
├── EngineError              4   the engine would not start, or died
├── RecordingError           5   a run folder that cannot be written or read
└── GateError                6   what was measured breaks a budget, a promise or a baseline

Messages say what, where, got what, expected what; hints say what to type next. ``cli.main`` is
the only place that catches them.
"""

from __future__ import annotations

from collections.abc import Iterable


class MemplanError(Exception):
    """A failure with a sentence for the user and the next thing to type."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(MemplanError):
    """Something the user wrote cannot be used."""

    exit_code = 2

    @classmethod
    def of_faults(cls, where: str, faults: Iterable[str], *, hint: str) -> InputError:
        """All faults of one file at once, one a line, in the order given."""
        lines = list(faults)
        head = f"{where}: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
        return cls("\n".join([head, *(f"  {line}" for line in lines)]), hint=hint)


class MachineError(MemplanError):
    """This machine lacks something that the command needs."""

    exit_code = 3


class EngineError(MemplanError):
    """The engine could not start, or stopped while it was measured."""

    exit_code = 4


class RecordingError(MemplanError):
    """A run folder cannot be written or read."""

    exit_code = 5


class GateError(MemplanError):
    """What was measured is not what was asked for: the run itself is fine."""

    exit_code = 6
