"""costs.yaml: what money the plan counts beside the node's own price. A key that is left out is
unknown or not paid, as its line says; nothing is guessed."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from memplan.errors import InputError
from memplan.specs.faults import text_of
from memplan.specs.places import json_path
from memplan.specs.values import Part, number_of
from memplan.specs.yaml_source import read_yaml

Usd = Annotated[float, Field(ge=0, le=1e12)]
Ratio = Annotated[float, Field(ge=0, le=1)]


def _day_of(value: object) -> object:
    """YAML reads a bare day as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


class Sourced(Part):
    """Where a figure is from, in the user's words; printed beside it."""

    source: str = "costs.yaml"
    date: Annotated[str | None, BeforeValidator(_day_of)] = None


class Currency(Sourced):
    code: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    per_usd: Annotated[float, Field(gt=0, le=1e9)] = 1.0


class OwnNode(Sourced):
    """Hardware that is bought, one node of it."""

    cpu_chassis_nic: Usd
    dram_gib: Annotated[float, Field(gt=0, le=1e6)]
    dram_usd_per_gib: Usd
    accelerators: Usd = 0.0
    years: Annotated[float, Field(gt=0, le=20)] = 4.0
    residual_ratio: Ratio = 0.0
    watts: Annotated[float, Field(ge=0, le=1e6)]
    pue: Annotated[float, Field(ge=1, le=5)] = 1.3
    usd_per_kwh: Usd
    rack_usd_per_month: Usd = 0.0


class Api(Sourced):
    """What the same tokens cost elsewhere, in US dollars for a million."""

    input: Usd
    output: Usd
    cached: Usd | None = None


class Costs(Part):
    memplan_costs: Annotated[Literal[1], BeforeValidator(number_of)]
    currency: Currency = Field(default_factory=Currency)
    basis: Literal["on demand", "1 year", "3 years", "spot"] = "on demand"
    own: OwnNode | None = None
    api: Api | None = None
    support_ratio: Ratio = 0.0
    people_usd_per_month: Usd = 0.0
    network_usd_per_month: Usd = 0.0
    wacc: Annotated[float, Field(ge=0, le=1)] = 0.0


def load_costs(path: Path) -> Costs:
    """Raises InputError with every fault of the file."""
    source = read_yaml(path)
    try:
        found: Costs | None = Costs.model_validate(source.data)
        details: list[Any] = []
    except ValidationError as error:
        found, details = None, list(error.errors())
    lines = [
        f"{path}:{source.line_of(place)} {json_path(place)}: {text_of(detail, _keys_of)}"
        for detail in details
        for place in [tuple(detail["loc"])]
    ]
    lines += [
        f"{path}:{source.line_of(place)} {json_path(place)}: {text}"
        for place, text in source.faults
    ]
    if lines or found is None:
        raise InputError.of_faults(str(path), lines, hint="correct these lines; docs/costs-yaml.md")
    return found


def _keys_of(location: tuple[str | int, ...]) -> list[str]:
    part: Any = Costs
    for key in location:
        hint = part.model_fields[str(key)].annotation
        part = next(
            (one for one in getattr(hint, "__args__", (hint,)) if hasattr(one, "model_fields")),
            part,
        )
    return list(part.model_fields)
