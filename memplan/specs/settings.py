"""How an engine runs: its technique settings, what a variant replaces, what a script acts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from memplan.specs.values import (
    MOST_TOKENS,
    Bytes,
    Count,
    EnvName,
    EnvValue,
    GpuLayers,
    ModulePattern,
    Name,
    Part,
    Rate,
    Ratio,
    Seconds,
    Trim,
    VariantName,
    off_of,
    tuple_of,
)
from memplan.units import GIB, MIB

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["fp32", "bf16", "fp16", "int8", "int8_dynamic", "int4"]
Kv = Literal[
    "auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"
]
Load = Literal["mapped", "read", "locked"]
Engine = Literal["torch", "llama", "vllm", "endpoint", "scripted", "ballast"]
SERVER_ENGINES = ("llama", "vllm", "endpoint")
"""Driven over HTTP and measured from outside."""
Allocator = Literal["system", "jemalloc", "tcmalloc"]
BASE_VARIANT = "base"
MALLOC_KEYS = {
    "malloc_arenas": ("MALLOC_ARENA_MAX", "glibc.malloc.arena_max"),
    "malloc_mmap_threshold_bytes": ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),
    "malloc_trim_threshold_bytes": ("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold"),
}
"""Each with glibc's two words for it: a variable of its own, and one in GLIBC_TUNABLES (mallopt(3))."""


class LaneSpec(Part):
    """Prompts of up to so many tokens, that no lane before takes, in a queue of their own."""

    up_to_tokens: Count | None = None
    max_requests: Count | None = None
    max_kv_tokens: Count | None = None


class Settings(Part):
    """The technique settings: what a variant may replace."""

    device: Device = "auto"
    weights: Weights = "bf16"
    weights_by_module: dict[ModulePattern, Weights] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}
    )
    resident_layers: Annotated[int, Field(ge=0, le=4096)] | None = None
    adapters: dict[Name, str] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}
    )
    adapters_resident: Count = 4
    adapters_start: Literal["cold", "warm", "hot"] = "cold"
    tokenizer: Literal["never", "start", "first_use"] = "never"
    kv: Kv = "auto"
    prefix_sharing: Annotated[Literal["off", "running", "kept"], BeforeValidator(off_of)] = "off"
    load: Load = "mapped"
    max_requests: Count = 16
    max_kv_tokens: Count = 32768
    max_batch_tokens: Count = 512
    chunk_prompts: bool = True
    block_tokens: Count = 16
    context_tokens: Count | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    batching: Literal["continuous", "static", "dynamic", "micro"] = "continuous"
    batch_wait_s: Seconds | None = Field(default=None, alias="batch_wait")
    batch_prompt_tokens: Count = 512
    lanes: Annotated[tuple[LaneSpec, ...], BeforeValidator(tuple_of)] = ()
    queue_limit: Count | None = None
    overload: Literal["wait", "reject", "fall_back"] = "wait"
    fall_back_tokens: Count = 16
    kv_reserve: Literal["whole", "prompt", "expected"] = "whole"
    expected_output_tokens: Count | None = None
    preempt: Literal["recompute", "swap"] = "recompute"
    offload: Literal["never", "disk", "host"] = "never"
    offload_limit_bytes: Bytes = Field(default=4 * GIB, alias="offload_limit")
    memory_budget_bytes: Bytes | None = Field(default=None, alias="memory_budget")
    memory_limit_bytes: Bytes | None = Field(default=None, alias="memory_limit")
    degrade: Annotated[
        tuple[Literal["shrink_batch", "offload", "preempt", "reject"], ...],
        BeforeValidator(tuple_of),
    ] = ()
    degrade_at: Annotated[float, Field(gt=0, lt=1)] = 0.9
    allocator: Allocator = "system"
    malloc_arenas: Count | None = 1
    malloc_mmap_threshold_bytes: Bytes | None = Field(default=None, alias="malloc_mmap_threshold")
    malloc_trim_threshold_bytes: Bytes | None = Field(default=None, alias="malloc_trim_threshold")
    trim: Trim = "never"
    gc: Annotated[Literal["python", "frozen", "off"], BeforeValidator(off_of)] = "frozen"
    reuse_buffers: bool = False
    recycle_after_requests: Count | None = None
    recycle_after_bytes: Bytes | None = None
    cuda_snapshot: bool = False
    confidence: bool = False
    unified_kv: bool = False
    micro_batch_tokens: Count | None = None
    repack: bool = True
    prompt_cache_bytes: Bytes = Field(default=0, alias="prompt_cache")
    gpu_layers: GpuLayers | None = None
    kv_on_host: bool = False
    cpu_offload_bytes: Bytes | None = Field(default=None, alias="cpu_offload")
    env: dict[EnvName, EnvValue] = Field(
        default_factory=dict,
        json_schema_extra={"additionalProperties": False},
    )

    @property
    def applied_malloc_arenas(self) -> int | None:
        """``malloc_arenas``, but that its default yields to another allocator and to ``env``."""
        is_default = "malloc_arenas" not in self.model_fields_set
        if is_default and (self.allocator != "system" or malloc_variables_in(self.env)[0]):
            return None
        return self.malloc_arenas

    @property
    def malloc_env(self) -> dict[str, str]:
        """The variables that the ``malloc_`` keys become, in the environment of the engine."""
        values = (
            self.applied_malloc_arenas,
            self.malloc_mmap_threshold_bytes,
            self.malloc_trim_threshold_bytes,
        )
        named = zip(MALLOC_KEYS.values(), values, strict=True)
        return {names[0]: str(value) for names, value in named if value is not None}

    @property
    def kv_stored(self) -> str:
        """What ``auto`` comes to: the compute dtype."""
        if self.kv != "auto":
            return self.kv
        return self.weights if self.weights in ("fp32", "fp16") else "bf16"

    @property
    def applied(self) -> dict[str, object]:
        """Plain JSON values, with what the defaults come to: equal means that the same is measured."""
        return {
            **self.model_dump(mode="json"),
            "kv": self.kv_stored,
            "malloc_arenas": self.applied_malloc_arenas,
        }


def malloc_variables_in(env: Mapping[str, str]) -> tuple[str | None, ...]:
    """For each of MALLOC_KEYS the word in ``env`` that says the same, or None."""
    tunables = {part.partition("=")[0] for part in env.get("GLIBC_TUNABLES", "").split(":")}
    return tuple(
        variable if variable in env else tunable if tunable in tunables else None
        for variable, tunable in MALLOC_KEYS.values()
    )


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
    confidence: Ratio | None = None


class SelfTest(Part):
    """Allocations of known size that the engine makes, to prove that peaks are seen."""

    spike_bytes: Bytes = Field(alias="spike")
    hold_s: Seconds = Field(alias="hold")
    count: Count
    every_s: Seconds = Field(alias="every")
    made_by: Literal["thread", "c_call"] = "thread"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
