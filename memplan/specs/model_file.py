"""model.yaml as it is written.

ModelFile and its parts are the only description of the file: they check it, and
``model.schema.json`` is printed from them. Keys are written as people write them (``cpu: 64MiB``);
fields carry the house's units (``budget.cpu_bytes``). docs/model-yaml.md is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from memplan.specs.classes import ClassSpec
from memplan.specs.matrix import Matrix, values_of
from memplan.specs.model_source import ModelSource
from memplan.specs.places import Location
from memplan.specs.pools import GatewaySpec, PoolSpec, RouteSpec
from memplan.specs.server import ServerSpec
from memplan.specs.settings import Engine, Script, SelfTest, Settings, Variant
from memplan.specs.values import Name, Part, number_of, tuple_of


class ModelFile(Part):
    """model.yaml as it is written: a deployment, its classes, and its variants."""

    model_config = ConfigDict(
        title="memplan model.yaml",
        json_schema_extra={
            "if": {"properties": {"engine": {"enum": ["torch", "llama", "vllm"]}}},
            "then": {"required": ["model"], "not": {"required": ["script"]}},
            "else": {"not": {"required": ["model"]}},
        },
    )

    memplan: Annotated[Literal[1], BeforeValidator(number_of)]
    name: Name
    engine: Engine
    model: ModelSource | None = None
    settings: Settings = Field(default_factory=Settings)
    # In this order an empty list is told apart from a list whose items are faulty.
    classes: (
        Annotated[tuple[ClassSpec, ...], BeforeValidator(tuple_of), Field(min_length=1)] | None
    ) = Field(default=None, json_schema_extra={"minItems": 1})
    variants: Annotated[tuple[Variant, ...], BeforeValidator(tuple_of)] = ()
    matrix: Matrix | None = None
    stack: Annotated[tuple[Variant, ...], BeforeValidator(tuple_of)] = ()
    server: ServerSpec | None = None
    script: Script | None = None
    self_test: SelfTest | None = None
    pools: Annotated[Literal["by_class"] | tuple[PoolSpec, ...], BeforeValidator(tuple_of)] = ()
    routes: Annotated[tuple[RouteSpec, ...], BeforeValidator(tuple_of)] = ()
    gateway: GatewaySpec | None = None

    def written_settings(self) -> Iterator[tuple[Location, Settings]]:
        """Every place that names settings, each with its own; a matrix value by value."""
        yield ("settings",), self.settings
        for part in ("variants", "stack"):
            for index, variant in enumerate(getattr(self, part)):
                yield (part, index), variant
        for index, pool in enumerate(self.pools if self.pools != "by_class" else ()):
            yield ("pools", index, "settings"), pool.settings
        for field, values in (values_of(self.matrix) if self.matrix else {}).items():
            for value in values:
                yield ("matrix",), Settings().model_copy(update={field: value})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of model.yaml, as an editor reads it. It knows no impossible combinations."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ModelFile.model_json_schema(by_alias=True),
    }
