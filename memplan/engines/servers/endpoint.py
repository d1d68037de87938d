"""A server that runs already, behind an OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.engines.servers.described import ServerFacts
from memplan.records import Request
from memplan.specs import Deployment
from memplan.specs.server import ServerSpec
from memplan.specs.values import MOST_TOKENS

# Words that common tokenizers hold whole, each with the blank before it.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "night",
    "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month",
    "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind",
    "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city",
)  # fmt: skip


class Endpoint:
    """What it does not say must be declared, or stays unknown."""

    ready_path = "/models"
    gauge_paths: tuple[str, ...] = ()

    def __init__(self, deployment: Deployment) -> None:
        assert deployment.server is not None
        self._spec = deployment.server
        self._settings = deployment.settings
        self.api = self._spec.api
        self.path = "/chat/completions" if self.api == "chat" else "/completions"
        self.sends_tokens = self.api == "completions" and self._spec.prompt == "tokens"

    def command(self, port: int) -> Sequence[str]:
        raise AssertionError("an endpoint is not started")

    def environment(self) -> Mapping[str, str]:
        return {}

    def weight_files(self) -> tuple[Path, ...]:
        return ()

    def facts(self, answers: Mapping[str, bytes], printed: str) -> ServerFacts:
        per_token = self._spec.kv_bytes_per_token or 0
        pool_tokens = (
            self._settings.max_kv_tokens
            if "max_kv_tokens" in self._settings.model_fields_set
            else 0
        )
        return ServerFacts(
            version="not told",
            vocab_tokens=self._spec.vocab_tokens,
            context_tokens=self._settings.context_tokens or MOST_TOKENS,
            max_requests=self._settings.max_requests,
            kv_bytes_per_token=per_token,
            kv_pool_tokens=pool_tokens,
            kv_block_tokens=1,
            kv_pool_bytes=0,
            weights_bytes=0,
            settings={
                "url": self._spec.url or "",
                "kv": "declared" if per_token else "unknown",
                "memory": _memory_text(self._spec),
            },
        )

    def body(self, request: Request, prompt: Sequence[int]) -> Mapping[str, Any]:
        asked: dict[str, Any] = {
            **({"model": self._spec.model} if self._spec.model else {}),
            "max_tokens": request.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "temperature": 0,
        }
        if self._settings.confidence:
            asked["logprobs"] = True if self.api == "chat" else 1
        if self.api == "chat":
            return {**asked, "messages": [{"role": "user", "content": text_of(prompt)}]}
        return {**asked, "prompt": list(prompt) if self.sends_tokens else text_of(prompt)}

    def gauges_of(self, path: str, answer: bytes) -> Mapping[str, int]:
        return {}


def text_of(prompt: Sequence[int]) -> str:
    """Words in the place of tokens, about as many; equal leading tokens are equal leading words.

    How many tokens they are, the server's own count says.
    """
    return " ".join(_WORDS[token % len(_WORDS)] for token in prompt)


def _memory_text(spec: ServerSpec) -> str:
    if spec.memory.is_empty:
        return "not measured: model.yaml names no source (server.memory)"
    sources = [
        *(["processes of this machine"] if spec.memory.pids else []),
        *([f"control group {spec.memory.cgroup}"] if spec.memory.cgroup else []),
        *([f"Prometheus at {spec.memory.prometheus.url}"] if spec.memory.prometheus else []),
    ]
    return ", ".join(sources)
