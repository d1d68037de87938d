"""What differs between servers: how one is started, asked and read. The seam that ``engine`` drives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from memplan.engines.servers.reply import Api
from memplan.records import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What is known of a server that is ready, from its files, its log and its answers."""

    version: str
    device: str = "cpu"
    vocab_tokens: int
    context_tokens: int
    max_requests: int
    kv_bytes_per_token: int
    kv_pool_tokens: int
    kv_block_tokens: int
    kv_pool_bytes: int
    """Of the pool as the server made it; 0 where it does not say."""
    weights_bytes: int
    mapped_files: tuple[Path, ...] = ()
    """Weight files that may be mapped: what of them is resident is shared by replicas."""
    predicted: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the server itself said it would need, by part: its dry run."""
    settings: Mapping[str, str] = field(default_factory=dict)


class Server(Protocol):
    """One kind of server. Nothing here waits for anything."""

    api: Api
    path: str
    """Of completions, after the server's URL."""
    ready_path: str
    """Answers 200 once requests can be taken."""
    gauge_paths: tuple[str, ...]
    """Asked while it serves, for ``gauges_of``."""
    sends_tokens: bool
    """Prompts go out as token ids, whose number is then known exactly."""

    def command(self, port: int) -> Sequence[str]: ...

    def environment(self) -> Mapping[str, str]: ...

    def weight_files(self) -> tuple[Path, ...]: ...

    def facts(self, answers: Mapping[str, bytes], printed: str) -> ServerFacts:
        """``answers``: what it said on its gauge paths when it was ready."""
        ...

    def body(self, request: Request, prompt: Sequence[int]) -> Mapping[str, Any]: ...

    def gauges_of(self, path: str, answer: bytes) -> Mapping[str, int]:
        """Gauges in the house's names and units; empty where the answer says none."""
        ...


_SAMPLE = re.compile(
    rb"^([A-Za-z_:][A-Za-z0-9_:]*)(\{[^\n]*\})?[ \t]+([0-9.eE+-]+|NaN|[+-]Inf)(?:[ \t]+\d+)?[ \t]*$",
    re.MULTILINE,
)
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


def metrics_in(answer: bytes) -> dict[str, float]:
    """The samples of a page in Prometheus' text format, those of one name and several labels summed."""
    found: dict[str, float] = {}
    for name, _, value in _SAMPLE.findall(answer):
        number = float(value)
        if number == number:  # not NaN
            found[name.decode()] = found.get(name.decode(), 0.0) + number
    return found


def labels_in(answer: bytes, name: str) -> dict[str, str]:
    """The labels of the first sample of that name: how servers tell their configuration."""
    for found, labels, _ in _SAMPLE.findall(answer):
        if found.decode() == name:
            return {key.decode(): value.decode() for key, value in _LABEL.findall(labels)}
    return {}
