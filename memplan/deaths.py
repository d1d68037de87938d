"""How the end of an engine is told: died, killed for memory, started again or not."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.engines import OutOfMemory
from memplan.errors import EngineError
from memplan.records import Finding
from memplan.units import bytes_text

# Lost requests that a finding names; requests.jsonl has them all.
_TOLD = 5


def died(reason: str, now_s: float, *, is_last: bool) -> Finding:
    """``is_last``: it will not be started again."""
    rest = " and those after them were not sent" if is_last else ""
    return Finding(
        code="engine_died",
        text=f"The engine was gone after {now_s:.1f} s ({reason}); requests in flight failed{rest}.",
        hint="If the kernel killed it, lower max_requests or max_kv_tokens; its own "
        "output is in engine.log of the run folder.",
    )


def out_of_memory(killed: OutOfMemory, now_s: float, lost: Sequence[str]) -> Finding:
    """``lost``: ids of the requests that were in flight."""
    limit = (
        "not by a limit of its own"
        if killed.limit_bytes is None
        else f"at its limit of {bytes_text(killed.limit_bytes)}"
    )
    told = ", ".join(lost[:_TOLD]) + (", …" if len(lost) > _TOLD else "")
    return Finding(
        code="oom_killed",
        text=f"The kernel killed the engine for memory after {now_s:.1f} s, {limit}; "
        f"{bytes_text(killed.charged_peak_bytes)} were charged at the peak. It took {len(lost)} "
        f"requests with it{': ' if told else ''}{told}.",
        hint="Raise the memory limit, or lower max_requests or max_kv_tokens.",
    )


def restarted(late: int) -> Finding:
    """``late``: requests that came due while there was no engine."""
    return Finding(
        code="engine_restarted",
        text=f"The engine was started again after its death. {late} requests came due "
        "while there was none and are sent late; its caches began empty.",
        hint="Replay without deaths for a measurement that counts.",
    )


def not_started_again(fate: str, error: EngineError) -> Finding:
    """``fate``: how its predecessor ended."""
    return Finding(
        code="restart_failed",
        text=f"The engine that {fate} could not be started again: {error.message}.",
        hint=error.hint,
    )
