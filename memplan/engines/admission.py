"""What an engine is told of classes and priorities, by whoever opens it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memplan.engines.sequence import Pace
from memplan.records import Request

if TYPE_CHECKING:  # the worker imports this package, and pydantic is no part of an engine's memory
    from memplan.specs import Deployment


def class_bytes_of(deployment: Deployment) -> dict[str, int]:
    """KV that the running requests of a class may need at most, together: ``budget.in_flight``."""
    return {
        spec.name: spec.budget.in_flight_bytes
        for spec in deployment.classes
        if spec.budget.in_flight_bytes is not None
    }


def adapter_of(request: Request, deployment: Deployment) -> str:
    """The label ``adapter``, else that of its class; empty for none, and where no model is loaded."""
    if deployment.engine != "torch":
        return ""
    of_class = next((c.adapter for c in deployment.classes if c.name == request.class_name), None)
    return request.labels.get("adapter", of_class or "")


def pace_of(request: Request, arrived_s: float) -> Pace | None:
    """When the tokens of a request that is held to its reference's pace are due. An answer that was
    scaled to fewer tokens takes as long all the same."""
    tick_s, prefill_s, e2e_s = (
        request.pace_tick_s,
        request.service_prefill_s,
        request.service_e2e_s,
    )
    if tick_s is None or prefill_s is None or e2e_s is None:
        return None
    token_s = (e2e_s - prefill_s) / request.output_tokens
    return Pace(first_token_s=arrived_s + prefill_s + token_s, token_s=token_s, tick_s=tick_s)


def priority_of(labels: Mapping[str, str]) -> int:
    """The whole number in the label ``priority``; 0 where there is none."""
    try:
        return int(labels.get("priority", "0"))
    except ValueError:
        return 0
