"""What a model.yaml asks of an engine that has no such thing: keys that only some engines know."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from memplan.specs.model_file import ModelFile
from memplan.specs.places import Fault, Location
from memplan.specs.server import ENDPOINT_KEYS, LAUNCHED_KEYS, ServerSpec
from memplan.specs.settings import SERVER_ENGINES, Settings

_LAUNCHED = frozenset(
    {
        "device", "kv", "load", "prefix_sharing", "max_requests", "max_kv_tokens", "max_batch_tokens",
        "context_tokens", "threads", "memory_limit_bytes", "allocator", "malloc_arenas",
        "malloc_mmap_threshold_bytes", "malloc_trim_threshold_bytes", "recycle_after_requests",
        "recycle_after_bytes", "env", "confidence",
    }
)  # fmt: skip
KEYS_OF = {
    "llama": _LAUNCHED
    | {"unified_kv", "micro_batch_tokens", "repack", "prompt_cache_bytes", "gpu_layers", "kv_on_host"},
    "vllm": (_LAUNCHED | {"weights", "block_tokens", "cpu_offload_bytes", "offload",
                          "offload_limit_bytes"}) - {"load"},
    "endpoint": frozenset({"max_requests", "max_kv_tokens", "context_tokens", "confidence"}),
}  # fmt: skip
"""The settings that each server engine takes; docs/server-engines.md says what they become."""
ONLY_SERVERS = frozenset(
    {
        "unified_kv", "micro_batch_tokens", "repack", "prompt_cache_bytes", "gpu_layers", "kv_on_host",
        "cpu_offload_bytes",
    }
)  # fmt: skip
_KV_OF = {
    "llama": ("auto", "fp32", "fp16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    "vllm": ("auto", "fp8"),
}
_OWN_KV = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
_OWN_LOAD = ("mapped", "read")


def server_faults(file: ModelFile) -> Iterator[Fault]:
    """Of a file whose engine is a server, or that asks another engine for what only servers have."""
    if file.engine not in SERVER_ENGINES:
        if file.server is not None:
            yield ("server",), f"engine {file.engine} is no server; leave it out"
        for here, settings in file.written_settings():
            yield from _not_a_server(file.engine, here, settings)
        return
    if file.engine == "endpoint" and file.model is not None:
        yield ("model",), "an endpoint has loaded its model already; name it in server.model"
    if file.engine != "endpoint" and file.model is None:
        yield (), f"model: missing, engine {file.engine} needs one (path, gguf or package)"
    if file.engine == "llama" and file.model is not None and file.model.path is not None:
        yield ("model", "path"), "engine llama loads a GGUF file: write gguf or package"
    for part in ("script", "self_test"):
        if getattr(file, part) is not None:
            yield (part,), f"engine {file.engine} is a server of its own; leave it out"
    for index, spec in enumerate(file.classes or ()):
        if spec.adapter is not None:
            yield ("classes", index, "adapter"), f"engine {file.engine} takes none; use torch"
    yield from _spec_faults(file.engine, file.server or ServerSpec())
    for here, settings in file.written_settings():
        yield from _settings_faults(file.engine, here, settings)


def has_settings(engine: str, keys: Iterable[str]) -> bool:
    """Whether an engine has all of these settings, so that they can contradict each other."""
    known = KEYS_OF.get(engine)
    return known is None or all(key in known for key in keys)


# --- steps ------------------------------------------------------------------------------------


def _not_a_server(engine: str, here: Location, settings: Settings) -> Iterator[Fault]:
    for field in sorted(ONLY_SERVERS & settings.model_fields_set):
        if getattr(settings, field) != Settings.model_fields[field].get_default(
            call_default_factory=True
        ):
            owners = " and ".join(name for name, keys in KEYS_OF.items() if field in keys)
            yield (*here, _key_of(field)), f"engine {engine} has no such setting; {owners} has"
    if settings.kv not in _OWN_KV:
        yield (*here, "kv"), f"engine {engine} stores KV as {', '.join(_OWN_KV)}, not {settings.kv}"
    if settings.load not in _OWN_LOAD:
        yield (*here, "load"), f"engine {engine} loads weights mapped or read, not {settings.load}"


def _settings_faults(engine: str, here: Location, settings: Settings) -> Iterator[Fault]:
    known = KEYS_OF[engine]
    for field in sorted(settings.model_fields_set - known - {"name"}):
        yield (
            (*here, _key_of(field)),
            f"engine {engine} has no such setting; docs/server-engines.md lists those it has",
        )
    kinds = _KV_OF.get(engine)
    if kinds is not None and settings.kv not in kinds:
        yield (*here, "kv"), f"engine {engine} stores KV as {', '.join(kinds)}, not {settings.kv}"
    if engine == "vllm" and settings.weights not in ("fp32", "bf16", "fp16"):
        yield (
            (*here, "weights"),
            "vLLM quantizes nothing by itself: name a quantized model folder, and leave weights out",
        )
    if engine == "vllm" and settings.offload not in ("never", "host"):
        yield (*here, "offload"), f"vLLM moves KV to host memory only, not to {settings.offload}"
    if engine != "endpoint" and settings.prefix_sharing == "running":
        yield (*here, "prefix_sharing"), f"engine {engine} keeps prefixes (kept) or does not (off)"


def _spec_faults(engine: str, spec: ServerSpec) -> Iterator[Fault]:
    given = spec.model_fields_set
    if engine == "endpoint":
        for field in LAUNCHED_KEYS:
            if field in given:
                key = ServerSpec.model_fields[field].alias or field
                yield ("server", key), "an endpoint is not started by memplan; leave it out"
        yield from _url_faults("url", spec.url)
        prometheus = spec.memory.prometheus
        if prometheus is not None:
            yield from _url_faults(("memory", "prometheus", "url"), prometheus.url)
        if spec.api_key_env is not None and not os.environ.get(spec.api_key_env):
            yield (
                ("server", "api_key_env"),
                f"the environment variable {spec.api_key_env} is not set",
            )
        if spec.api == "chat" and spec.prompt == "tokens" and "prompt" in given:
            yield ("server", "prompt"), "chat takes text, never token ids; write prompt: text"
        return
    for field in ENDPOINT_KEYS:
        if field in given:
            yield (
                ("server", field),
                f"engine {engine} is started by memplan; use endpoint, or leave it",
            )
    if spec.memory.pids or spec.memory.cgroup:
        yield ("server", "memory"), f"memplan knows the processes of engine {engine}; leave it out"


def _url_faults(key: str | tuple[str, ...], url: str | None) -> Iterator[Fault]:
    here = ("server", *((key,) if isinstance(key, str) else key))
    if url is None:
        yield ("server",), "url: missing, an endpoint needs one, such as http://127.0.0.1:8000/v1"
        return
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        yield here, f'got "{url}", expected a URL such as http://127.0.0.1:8000/v1'


def _key_of(field: str) -> str:
    return Settings.model_fields[field].alias or field
