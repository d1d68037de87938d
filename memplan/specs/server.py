"""A server that is driven over HTTP: how it is started, or where it is, and where its memory is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from memplan.specs.values import Count, EnvName, Name, Part, Seconds, tuple_of

Texts = Annotated[tuple[str, ...], BeforeValidator(tuple_of)]


class PrometheusSpec(Part):
    """A Prometheus server, and what to ask it: each query's answers are summed."""

    url: str
    every_s: Seconds = Field(default=1.0, alias="every")
    queries: dict[Name, str] = Field(
        min_length=1, json_schema_extra={"additionalProperties": False}
    )


class MemorySpec(Part):
    """Where an endpoint's memory can be read from here."""

    pids: Annotated[tuple[Count, ...], BeforeValidator(tuple_of)] = ()
    cgroup: str | None = None
    prometheus: PrometheusSpec | None = None

    @property
    def is_empty(self) -> bool:
        return not self.pids and self.cgroup is None and self.prometheus is None


class ServerSpec(Part):
    """Of the engines llama, vllm and endpoint."""

    binary: str | None = None
    """llama: a llama-server; vllm: a vllm command, or the Python that has vllm installed."""
    arguments: Texts = ()
    start_timeout_s: Seconds = Field(default=600.0, alias="start_timeout")
    request_timeout_s: Seconds = Field(default=600.0, alias="request_timeout")
    stall_timeout_s: Seconds = Field(default=60.0, alias="stall_timeout")
    url: str | None = None
    model: str | None = None
    api: Literal["completions", "chat"] = "completions"
    api_key_env: EnvName | None = None
    prompt: Literal["tokens", "text"] = "tokens"
    vocab_tokens: Count = 32_000
    kv_bytes_per_token: Count | None = None
    memory: MemorySpec = Field(default_factory=MemorySpec)


ENDPOINT_KEYS = (
    "url",
    "model",
    "api",
    "api_key_env",
    "prompt",
    "vocab_tokens",
    "kv_bytes_per_token",
)
LAUNCHED_KEYS = ("binary", "arguments", "start_timeout_s")
