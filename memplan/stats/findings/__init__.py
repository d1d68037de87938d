"""What makes a measurement doubtful, and what it therefore does not prove.

Each rule is a function from a recording, or from figures made of it, to findings; a rule is added in
the module of its subject and in the tuple at that module's end.
"""

from __future__ import annotations

from memplan.records import Finding, Recording
from memplan.stats.findings import (
    clocks,
    figures,
    lost,
    pressure,
    quality,
    servers,
    sources,
    traffic,
)
from memplan.stats.summary import Attribution, ClassSummary, Fidelity, KvSlope

_RULES = (
    *sources.RULES,
    *lost.RULES,
    *clocks.RULES,
    *pressure.RULES,
    *traffic.RULES,
    *quality.RULES,
    *servers.RULES,
)


def findings_of(
    recording: Recording,
    classes: tuple[ClassSummary, ...],
    attributions: tuple[Attribution, ...],
    kv_slope: KvSlope | None = None,
    fidelity: Fidelity | None = None,
) -> tuple[Finding, ...]:
    """The recording's own findings first, then every rule's."""
    found = list(recording.findings)
    for rule in _RULES:
        found.extend(rule(recording))
    found.extend(figures.withheld(classes))
    found.extend(figures.unexplained(attributions))
    found.extend(figures.kv_slope_off(kv_slope))
    found.extend(figures.states_apart(fidelity))
    return tuple(found)
