"""Facts about parts that were loaded when they were first needed, and about collecting garbage."""

from __future__ import annotations

from memplan.report.pieces import Fact
from memplan.stats.summary import AdapterUse, Garbage, OnDemand, RunSummary
from memplan.units import bytes_text, seconds_text


def on_demand_facts(summary: RunSummary) -> tuple[Fact, ...]:
    facts: list[Fact] = []
    if summary.on_demand is not None:
        facts += _part_facts(summary.on_demand)
    if summary.garbage is not None:
        facts.append(Fact(name="garbage collection", text=_garbage_text(summary.garbage)))
    return tuple(facts)


def _part_facts(found: OnDemand) -> list[Fact]:
    facts = []
    if found.adapters_peak_bytes is not None:
        facts.append(
            Fact(
                name="adapters",
                text=f"{bytes_text(found.adapters_peak_bytes)} resident at most, inside the figures "
                "above",
            )
        )
    facts += [Fact(name=f"adapter {one.name}", text=_adapter_text(one)) for one in found.adapters]
    if found.tokenizer_bytes is not None:
        when = (
            f"the first request waited {seconds_text(found.tokenizer_load_s)} for it"
            if found.tokenizer_load_s is not None
            else "loaded before the first request"
        )
        facts.append(
            Fact(
                name="tokenizer",
                text=f"resident memory grew by {bytes_text(found.tokenizer_bytes)}; {when}",
            )
        )
    return facts


def _adapter_text(one: AdapterUse) -> str:
    requests = "1 request" if one.requests == 1 else f"{one.requests:,} requests"
    if not one.waited:
        return f"{requests}, none waited for it to be loaded"
    return (
        f"{requests}, {one.waited:,} waited for it to be loaded, "
        f"{seconds_text(one.longest_load_s)} at most"
    )


def _garbage_text(found: Garbage) -> str:
    times = "once" if found.collections == 1 else f"{found.collections:,} times"
    return (
        f"{times}, {seconds_text(found.total_s)} in all, {seconds_text(found.longest_s)} at most "
        "in one segment"
    )
