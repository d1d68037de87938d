"""How an engine's process ended, in words: one way of saying it for all engines."""

from __future__ import annotations

import signal

from memplan.engines import OutOfMemory
from memplan.errors import EngineError
from memplan.units import bytes_text

_MOST_LETTERS = 200


def ending_text(code: int, printed: str) -> str:
    """Its signal (a negative ``code``), or its exit code and the last line that it printed."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in printed.splitlines() if line.strip()] if code else []
    return f"exit code {code}" + (f": {lines[-1][:_MOST_LETTERS]}" if lines else "")


def killed_while_loading(engine: str, killed: OutOfMemory) -> EngineError:
    """``engine`` as model.yaml names it; its limit is known."""
    return EngineError(
        f"the {engine} engine cannot load its model within the memory limit of "
        f"{bytes_text(killed.limit_bytes)}: the kernel killed it with "
        f"{bytes_text(killed.charged_peak_bytes)} charged at the peak",
        hint="raise --memory-limit (settings.memory_limit); without one the load peak is measured",
    )
