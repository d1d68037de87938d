"""How an engine runs: its technique settings, what a variant replaces, what a script acts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from memplan.specs.values import (
    MOST_TOKENS,
    Bytes,
    Count,
    EnvName,
    EnvValue,
    Part,
    Rate,
    Seconds,
    VariantName,
)
from memplan.units import MIB

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["fp32", "bf16", "int8"]
Engine = Literal["torch", "scripted", "ballast"]
BASE_VARIANT = "base"


class Settings(Part):
    """The technique settings: what a variant may replace."""

    device: Device = "auto"
    weights: Weights = "bf16"
    kv: Literal["auto", "fp32", "bf16"] = "auto"
    max_requests: Count = 16
    max_kv_tokens: Count = 32768
    max_batch_tokens: Count = 512
    block_tokens: Count = 16
    context_tokens: Count | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory_limit_bytes: Bytes | None = Field(default=None, alias="memory_limit")
    env: dict[EnvName, EnvValue] = Field(
        default_factory=lambda: {"MALLOC_ARENA_MAX": "1"},
        json_schema_extra={"additionalProperties": False},
    )

    @property
    def kv_dtype(self) -> Literal["fp32", "bf16"]:
        """What ``auto`` comes to: the compute dtype."""
        if self.kv != "auto":
            return self.kv
        return "fp32" if self.weights == "fp32" else "bf16"


class Variant(Settings):
    """A name and the settings it replaces: those that the file names, the rest stay."""

    name: VariantName

    @property
    def replaced(self) -> Mapping[str, object]:
        return {key: getattr(self, key) for key in sorted(self.model_fields_set - {"name"})}


class Script(Part):
    """The memory and speed that the scripted and ballast engines act out."""

    weights_bytes: Bytes = Field(default=200 * MIB, alias="weights")
    runtime_bytes: Bytes = Field(default=100 * MIB, alias="runtime")
    kv_bytes_per_token: Count = 23_040
    prefill_tokens_per_s: Rate = 4000.0
    decode_s_per_step: Seconds = 0.02
    activation_bytes_per_token: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 4096
    vocab_tokens: Count = 49_152
    context_tokens: Count = 8192


class SelfTest(Part):
    """Allocations of known size that the engine makes, to prove that peaks are seen."""

    spike_bytes: Bytes = Field(alias="spike")
    hold_s: Seconds = Field(alias="hold")
    count: Count
    every_s: Seconds = Field(alias="every")
