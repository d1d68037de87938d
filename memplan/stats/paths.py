"""Which way requests went through a gateway, and what their users saw: counted by class and path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.records import GatewayRecording, PathOutcome, PathRecord
from memplan.stats.percentiles import of_values
from memplan.stats.summary import Percentiles

_ANSWERED: tuple[PathOutcome, ...] = ("completed", "cached")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathUse:
    """Requests of one class that went one way."""

    class_name: str
    path: str
    """Such as ``large``, ``small (rejected) → large``, ``deferred → small``, ``cached``, ``no_room``."""
    outcome: PathOutcome
    requests: int
    ratio: float
    """Of the requests of the class."""
    under_pressure: int
    """Of them, those whose way was decided while the node was short of memory."""
    waited_s: Percentiles
    """At the gateway, for room."""
    ttft_s: Percentiles | None
    """From the intended arrival; None where nobody got an answer."""
    e2e_s: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySummary:
    """Every request is in exactly one of ``uses``."""

    requests: int
    answered: int
    uses: tuple[PathUse, ...]
    """Classes by name, and in each the most used path first."""
    handed: Mapping[str, int]
    """Pool → requests that it was given."""
    is_whole: bool


def summarise_paths(gateway: GatewayRecording) -> GatewaySummary:
    groups: dict[tuple[str, str, PathOutcome], list[PathRecord]] = {}
    for one in gateway.paths:
        groups.setdefault((one.class_name, path_of(one), one.outcome), []).append(one)
    of_class = Counter(one.class_name for one in gateway.paths)
    handed = Counter(attempt.pool for one in gateway.paths for attempt in one.attempts)
    uses = [
        _use(name, path, outcome, found, of_class[name])
        for (name, path, outcome), found in groups.items()
    ]
    return GatewaySummary(
        requests=len(gateway.paths),
        answered=sum(one.outcome in _ANSWERED for one in gateway.paths),
        uses=tuple(sorted(uses, key=lambda one: (one.class_name, -one.requests, one.path))),
        handed={name: handed[name] for name in gateway.header.pools},
        is_whole=gateway.is_whole,
    )


def path_of(record: PathRecord) -> str:
    """In words; a pool that did not answer with what it said instead."""
    steps = ["deferred"] if record.deferred_s else []
    steps += [
        one.pool
        if one.outcome == "completed" and one.reason is None
        else f"{one.pool} ({one.reason or one.outcome})"
        for one in record.attempts
    ]
    if record.outcome == "cached":
        steps.append("cached")
    elif record.outcome not in _ANSWERED and not record.attempts:
        steps.append(record.reason or record.outcome)
    return " → ".join(steps)


def _use(
    name: str, path: str, outcome: PathOutcome, found: Sequence[PathRecord], of_class: int
) -> PathUse:
    ttft_s = [one.first_token_s - one.intended_s for one in found if one.first_token_s is not None]
    is_answered = outcome in _ANSWERED
    e2e_s = [one.end_s - one.intended_s for one in found if one.end_s is not None and is_answered]
    return PathUse(
        class_name=name,
        path=path,
        outcome=outcome,
        requests=len(found),
        ratio=len(found) / of_class,
        under_pressure=sum(one.is_under_pressure for one in found),
        waited_s=of_values([one.waited_s for one in found], method=_METHOD),
        ttft_s=of_values(ttft_s, method=_METHOD) if ttft_s else None,
        e2e_s=of_values(e2e_s, method=_METHOD) if e2e_s else None,
    )


_METHOD = "one value a request, nearest rank; intervals by order statistics"
