"""JSON Schemas of a plan and of a simulation, from the values that these documents are made of.

``memplan/plan.schema.json`` and ``memplan/simulation.schema.json`` are printed from them; a test holds
both together.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from memplan.plan.budget import ReplicaBudget
from memplan.plan.capacity import Capacity, FleetPeriod
from memplan.plan.fleet import Demand
from memplan.plan.memory_model import MemoryModel
from memplan.plan.plan import Asked, NodePlan
from memplan.plan.simulation import ReplicaRules
from memplan.plan.step_law import StepFit
from memplan.plan.tco import Tco
from memplan.records import Finding
from memplan.simulating import OwnRun, Simulation

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}


def plan_schema() -> dict[str, Any]:
    """Of ``memplan.plan/1``, which ``planning.plan_json`` writes."""
    parts, defs = _parts(
        ReplicaBudget, FleetPeriod, Demand, MemoryModel, Asked, NodePlan, Tco, Finding, Capacity
    )
    capacity, node_plan = defs["Capacity"], defs["NodePlan"]
    budget = defs["ReplicaBudget"]
    node = {
        **{name: one for name, one in capacity["properties"].items() if name != "node"},
        **{name: one for name, one in node_plan["properties"].items() if name != "capacity"},
        "node": _object({"provider": _TEXT, "instance": _TEXT}),
        "overflow": {"type": "number"},
        "overflow_upper": {"type": "number"},
        "overflow_blocks": {"type": "integer"},
    }
    snippets = {"type": "object", "additionalProperties": _TEXT}
    properties = {
        "schema": {"const": "memplan.plan/1"},
        "run": _object({"path": _TEXT, "run_id": _TEXT}),
        "asked": parts["Asked"],
        "demand": parts["Demand"],
        "model": _or_null(parts["MemoryModel"]),
        "budget": _object({**budget["properties"], "snippets": snippets}),
        "nodes": {"type": "array", "items": _object(node), "minItems": 1},
        "fleet": _or_null({"type": "array", "items": parts["FleetPeriod"]}),
        "tco": _or_null(parts["Tco"]),
        "findings": {"type": "array", "items": parts["Finding"]},
    }
    return _document("A plan of memplan", properties, defs)


def simulation_schema() -> dict[str, Any]:
    """Of ``memplan.simulation/1``, which ``simulation_document.simulation_json`` writes."""
    parts, defs = _parts(Simulation, OwnRun, StepFit, ReplicaRules, Finding)
    rules = {
        name: one
        for name, one in defs["ReplicaRules"]["properties"].items()
        if name not in ("law", "over_blocks")
    }
    properties = {
        "schema": {"const": "memplan.simulation/1"},
        "run": _TEXT,
        "step_law": parts["StepFit"],
        "rules": _object(rules),
        "own_run": parts["OwnRun"],
        **defs["Simulation"]["properties"],
        "findings": {"type": "array", "items": parts["Finding"]},
    }
    return _document("Replicas that memplan simulated", properties, defs)


def _parts(*kinds: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """A reference to each by its name, and what they refer to."""
    asked: list[Any] = [(one.__name__, "serialization", TypeAdapter(one)) for one in kinds]
    found, whole = TypeAdapter.json_schemas(asked)
    return {name: one for (name, _), one in found.items()}, dict(whole["$defs"])


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _document(title: str, properties: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": _DIALECT,
        "title": title,
        **_object(properties),
        "additionalProperties": False,
        "$defs": defs,
    }
