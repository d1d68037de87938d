"""One thing to measure, with every default filled in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from memplan.gguf_header import check_gguf_whole
from memplan.specs.classes import BUILTIN_CLASSES, ClassSpec
from memplan.specs.model_source import ModelSource, packaged_gguf
from memplan.specs.pools import GatewaySpec, PoolSpec, RouteSpec, RouteWhen
from memplan.specs.server import ServerSpec
from memplan.specs.settings import BASE_VARIANT, Engine, Script, SelfTest, Settings, Variant
from memplan.specs.stack import stack_variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One thing to measure: a model in an engine under one set of settings."""

    name: str
    variant: str = BASE_VARIANT
    engine: Engine
    model: ModelSource | None = None
    """With absolute paths; None for engines that need no weights."""
    settings: Settings = field(default_factory=Settings)
    classes: tuple[ClassSpec, ...] = BUILTIN_CLASSES
    variants: tuple[Variant, ...] = ()
    """Those of the list, then those of the matrix."""
    stack: tuple[Variant, ...] = ()
    """Its steps, each without those below it."""
    stack_step: int | None = None
    """From 1: set where this is a step of the stack, together with those below it."""
    server: ServerSpec | None = None
    """Set for the engines llama, vllm and endpoint, and only there."""
    script: Script | None = None
    """Set for the scripted and ballast engines, and only there."""
    self_test: SelfTest | None = None
    pools: tuple[PoolSpec, ...] = ()
    """Engines behind one gateway; empty where there is one engine, and no gateway."""
    routes: tuple[RouteSpec, ...] = ()
    gateway: GatewaySpec = field(default_factory=GatewaySpec)

    def variants_resolved(self) -> tuple[Deployment, ...]:
        """What there is to measure: ``base``, then each variant with its settings in place, and last
        the stack from the bottom up. With pools ``base`` is all of them behind the gateway, and each
        is a variant of its own."""
        alone = replace(self, variants=(), stack=())
        return (
            alone,
            *(self.pool(spec) for spec in self.pools),
            *(_with(alone, variant) for variant in self.variants),
            *(
                replace(_with(alone, variant), stack_step=number)
                for number, variant in enumerate(stack_variants(self.stack), start=1)
            ),
        )

    def pool(self, spec: PoolSpec) -> Deployment:
        """The engine of one pool, as a deployment of its own whose variant is the pool's name."""
        own = {key: getattr(spec.settings, key) for key in spec.settings.model_fields_set}
        if any(route.asks_how_sure(spec.name) for route in self.routes):
            own["confidence"] = True
        return replace(
            self,
            variant=spec.name,
            model=spec.model or self.model,
            script=spec.script or self.script,
            settings=self.settings.model_copy(update=own),
            variants=(),
            stack=(),
            pools=(),
            routes=(),
        )

    @property
    def has_processes_here(self) -> bool:
        """Whether it runs, or shall run, in processes of this machine that memplan knows."""
        if self.engine == "endpoint":
            assert self.server is not None
            return bool(self.server.memory.pids)
        return self.engine != "scripted"

    def model_file(self) -> Path:
        """The folder or GGUF file to load.

        Raises MachineError when the package is not installed, InputError when it has no such file.
        """
        assert self.model is not None, f"engine {self.engine} loads no model"
        if self.model.package is None:
            return Path(self.model.path or self.model.gguf or "")
        found = packaged_gguf(self.model.package, self.model.file or "*.gguf")
        check_gguf_whole(found)
        return found

    def resolved(self) -> dict[str, object]:
        """This variant as plain JSON values in the house's units, every default filled in."""
        return {
            "memplan": 1,
            "name": self.name,
            "variant": self.variant,
            "engine": self.engine,
            "model": _plain_values(self.model),
            "stack_step": self.stack_step,
            "settings": self.settings.applied,
            "classes": [
                {
                    **spec.model_dump(mode="json"),
                    "rule": spec.rule,
                    "typical": {
                        "input_tokens": spec.typical_input_tokens,
                        "output_tokens": spec.typical_output_tokens,
                    },
                }
                for spec in self.classes
            ],
            "server": _plain_values(self.server),
            "script": _plain_values(self.script),
            "self_test": _plain_values(self.self_test),
        }


def pools_by_class(
    classes: tuple[ClassSpec, ...],
) -> tuple[tuple[PoolSpec, ...], tuple[RouteSpec, ...]]:
    """An engine for each class, and one for requests of no class; who may only go there."""
    named = [(re.sub(r"[^a-z0-9._-]+", "-", one.name.lower()), (one.name,)) for one in classes]
    pools = [*named, ("others", ())]
    return (
        tuple(PoolSpec(name=name) for name, _ in pools),
        tuple(
            RouteSpec.model_validate(
                {"name": name, "when": RouteWhen.model_validate({"class": names}), "to": (name,)}
            )
            for name, names in pools
        ),
    )


def _with(deployment: Deployment, variant: Variant) -> Deployment:
    settings = deployment.settings.model_copy(update=dict(variant.replaced))
    return replace(deployment, variant=variant.name, settings=settings)


def _plain_values(part: BaseModel | None) -> dict[str, Any] | None:
    return None if part is None else part.model_dump(mode="json")
