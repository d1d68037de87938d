"""Pools and routes: several engines behind one gateway, and which of them a request goes to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from memplan.specs.classes import ClassWhen
from memplan.specs.model_source import ModelSource
from memplan.specs.settings import Script, Settings
from memplan.specs.values import Bytes, Count, Name, Part, Seconds, VariantName, tuple_of

BY_CLASS: Literal["by_class"] = "by_class"
"""``pools: by_class``: an engine of its own for each request class."""

Names = Annotated[tuple[Name, ...], BeforeValidator(tuple_of)]


class PoolSpec(Part):
    """One engine behind the gateway: what it replaces of the deployment, and the most that the gateway
    hands it at once."""

    name: VariantName
    model: ModelSource | None = None
    settings: Settings = Field(default_factory=Settings)
    script: Script | None = None
    max_in_flight: Count | None = None
    max_tokens_in_flight: Count | None = None


class RouteWhen(ClassWhen):
    """All of the given conditions must hold; none given matches every request."""

    classes: Annotated[Names, Field(alias="class")] = ()


class RouteSpec(Part):
    """Where requests go, in this order: the first pool with room; then they wait; then what is to be
    done when all are full; then they are rejected."""

    name: Name
    when: RouteWhen = Field(default_factory=RouteWhen)
    to: Annotated[Names, Field(min_length=1)]
    under_pressure: Names = ()
    cascade_below: Annotated[float, Field(gt=0, le=1)] | None = None
    wait_s: Seconds | None = Field(default=None, alias="wait")
    when_full: Annotated[tuple[Literal["cached", "deferred"], ...], BeforeValidator(tuple_of)] = ()
    defer_s: Seconds = Field(default=30.0, alias="defer")

    def asks_how_sure(self, pool: str) -> bool:
        """Whether an answer of that pool may have to go on to another."""
        return self.cascade_below is not None and pool in (*self.to[:-1], *self.under_pressure)


class Pressure(Part):
    """The node is short of memory while less than this is available to it."""

    available_below_bytes: Bytes = Field(alias="available_below")


class GatewaySpec(Part):
    pressure: Pressure | None = None
