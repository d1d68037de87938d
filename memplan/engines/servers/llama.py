"""llama.cpp's server: the one inside xllamacpp, or a ``llama-server`` binary that the user names.

Defaults are chosen for measuring, and differ from llama.cpp's own: one thread, as many slots and as much
context as model.yaml says, no prompt cache unless it is asked for, nothing fitted behind one's back.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.engines.servers.described import ServerFacts, metrics_in
from memplan.engines.servers.reply import Api
from memplan.errors import EngineError, MachineError
from memplan.gguf_header import GgufHeader, check_gguf_whole
from memplan.records import Request
from memplan.specs import Deployment
from memplan.units import MIB

# ggml's block formats: bytes for how many values.
_KV_FORMATS = {
    "f32": (4, 1), "f16": (2, 1), "bf16": (2, 1), "q8_0": (34, 32), "q5_1": (24, 32),
    "q5_0": (22, 32), "q4_1": (20, 32), "q4_0": (18, 32),
}  # fmt: skip
_KV_NAMES = {"auto": "f16", "fp32": "f32", "fp16": "f16"}
_LOAD_NAMES = {"mapped": "mmap", "read": "none", "locked": "mmap+mlock"}
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
_BATCH_TOKENS = 512
_HELP_S = 30.0


class LlamaServer:
    """Raises MachineError where its package or binary is missing, InputError for a damaged file."""

    api: Api = "completions"
    path = "/v1/completions"
    ready_path = "/health"
    gauge_paths: tuple[str, ...] = ("/metrics", "/slots")
    sends_tokens = True

    def __init__(self, deployment: Deployment) -> None:
        assert deployment.server is not None
        self._settings = deployment.settings
        self._spec = deployment.server
        self._file = deployment.model_file()
        self._header = check_gguf_whole(self._file)
        self._kv = _KV_NAMES.get(self._settings.kv, self._settings.kv)
        if self._spec.binary is None and importlib.util.find_spec("xllamacpp") is None:
            raise MachineError(
                "engine llama needs the package xllamacpp, which is not installed",
                hint="pip install 'memplan[llama]', or name a llama-server in server.binary",
            )

    def command(self, port: int) -> Sequence[str]:
        options = self._options(port)
        if self._spec.binary is None:
            launcher = "memplan.engines.servers.llama_launcher"
            return [sys.executable, "-m", launcher, json.dumps(options)]
        return [self._spec.binary, *self._arguments(options), *self._spec.arguments]

    def environment(self) -> Mapping[str, str]:
        return {}

    def weight_files(self) -> tuple[Path, ...]:
        return (self._file,)

    def facts(self, answers: Mapping[str, bytes], printed: str) -> ServerFacts:
        predicted: dict[str, int] = {}
        for place, part, size in _BUFFER.findall(printed):
            name = f"{part.lower()} ({place})"
            predicted[name] = predicted.get(name, 0) + round(float(size) * MIB)
        pool_bytes = sum(size for name, size in predicted.items() if name.startswith("kv "))
        slots = json.loads(answers["/slots"])
        per_slot = min(slot["n_ctx"] for slot in slots)
        pool_tokens = per_slot if self._settings.unified_kv else per_slot * len(slots)
        formula = kv_bytes_per_token(self._header, self._kv)
        # A model with sliding windows keeps less than the formula: what it set aside is what counts.
        is_formula = not pool_bytes or abs(pool_bytes / (formula * pool_tokens) - 1) < 0.01
        per_token = formula if is_formula else round(pool_bytes / pool_tokens)
        return ServerFacts(
            version=_version(self._spec.binary),
            device="cuda:0" if any("CUDA" in name for name in predicted) else "cpu",
            vocab_tokens=vocab_tokens(self._header),
            context_tokens=per_slot,
            max_requests=len(slots),
            kv_bytes_per_token=per_token,
            kv_pool_tokens=pool_tokens,
            kv_block_tokens=1,
            kv_pool_bytes=pool_bytes,
            weights_bytes=sum(one.size_bytes or 0 for one in self._header.tensors),
            mapped_files=() if self._settings.load == "read" else (self._file,),
            predicted=predicted,
            settings={
                "kv_dtype": self._kv,
                "kv_formula": f"{formula:,} bytes a token"
                + ("" if is_formula else f"; the server set aside {per_token:,}"),
                "load": _LOAD_NAMES[self._settings.load],
                "threads": str(self._threads),
                "prompt_cache": f"{self._prompt_cache_mib} MiB",
                "repack": "on" if self._settings.repack else "off",
            },
        )

    def body(self, request: Request, prompt: Sequence[int]) -> Mapping[str, Any]:
        return {
            "prompt": list(prompt),
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": self._settings.prefix_sharing == "kept",
            "temperature": 0,
            **({"logprobs": 1} if self._settings.confidence else {}),
        }

    def gauges_of(self, path: str, answer: bytes) -> Mapping[str, int]:
        if path == "/slots":
            return {}
        found = metrics_in(answer)
        names = {
            "llamacpp:requests_processing": "engine.running",
            "llamacpp:requests_deferred": "engine.waiting",
            "llamacpp:prompt_tokens_cached_total": "engine.cached_tokens",
        }
        return {ours: round(found[theirs]) for theirs, ours in names.items() if theirs in found}

    # --- steps -----------------------------------------------------------------------------

    @property
    def _threads(self) -> int:
        return self._settings.threads or 1

    @property
    def _prompt_cache_mib(self) -> int:
        return -(-self._settings.prompt_cache_bytes // MIB)

    def _options(self, port: int) -> dict[str, Any]:
        settings = self._settings
        batch = settings.max_batch_tokens
        layers = settings.gpu_layers
        if layers is None:
            layers = 0 if settings.device == "cpu" else "all"
        return {
            "model": str(self._file),
            "port": port,
            "context": settings.max_kv_tokens,
            "slots": settings.max_requests,
            "unified": settings.unified_kv,
            "kv": self._kv,
            "batch": batch,
            "micro_batch": settings.micro_batch_tokens or min(batch, _BATCH_TOKENS),
            "threads": self._threads,
            "load": _LOAD_NAMES[settings.load],
            "prompt_cache_mib": self._prompt_cache_mib,
            "repack": settings.repack,
            "layers": layers,
            "kv_on_host": settings.kv_on_host,
        }

    def _arguments(self, options: Mapping[str, Any]) -> list[str]:
        """Flags come and go within months, so that the binary's own help decides how to say it."""
        assert self._spec.binary is not None
        told = _help_of(self._spec.binary)
        given = [
            "--model", options["model"], "--host", "127.0.0.1", "--port", str(options["port"]),
            "--ctx-size", str(options["context"]), "--parallel", str(options["slots"]),
            "--cache-type-k", options["kv"], "--cache-type-v", options["kv"],
            "--batch-size", str(options["batch"]), "--ubatch-size", str(options["micro_batch"]),
            "--threads", str(options["threads"]), "--n-gpu-layers", str(options["layers"]),
            "--metrics", "--slots",
        ]  # fmt: skip
        if "--load-mode" in told:
            given += ["--load-mode", options["load"]]
        else:
            given += {"mmap": [], "none": ["--no-mmap"], "mmap+mlock": ["--mlock"]}[options["load"]]
        wishes = [
            ("--kv-unified" if options["unified"] else "--no-kv-unified", ()),
            ("--cache-ram", (str(options["prompt_cache_mib"]),)),
            ("--fit", ("off",)),
            ("--sse-ping-interval", ("3",)),
            ("--log-verbosity", ("4",)),
            *([] if options["repack"] else [("--no-repack", ())]),
            *([("--no-kv-offload", ())] if options["kv_on_host"] else []),
        ]
        for flag, values in wishes:
            if flag in told:
                given += [flag, *values]
        return given


def kv_bytes_per_token(header: GgufHeader, kv: str) -> int:
    """Keys and values of all layers, in ggml's block format: layers × KV heads × (key + value length).

    Source: llama.cpp, llama-kv-cache.cpp; heads and lengths from the GGUF file's own metadata.
    """
    of = {key.partition(".")[2]: number for key, number in header.numbers.items()}
    heads = of["attention.head_count"]
    length = of["embedding_length"] // heads
    key_length = of.get("attention.key_length", length)
    value_length = of.get("attention.value_length", length)
    kv_heads = of.get("attention.head_count_kv", heads)
    size, values = _KV_FORMATS[kv]
    return of["block_count"] * kv_heads * (key_length + value_length) * size // values


def vocab_tokens(header: GgufHeader) -> int:
    return header.numbers.get("tokenizer.ggml.tokens#") or header.numbers.get(
        f"{header.architecture}.vocab_size", 0
    )


def llama_context_tokens(deployment: Deployment) -> int:
    """The longest request that a slot takes: the model's context, or the slot's part of the pool."""
    header = check_gguf_whole(deployment.model_file())
    settings = deployment.settings
    trained = header.numbers.get(f"{header.architecture}.context_length", settings.max_kv_tokens)
    slot = settings.max_kv_tokens
    if not settings.unified_kv:
        slot //= settings.max_requests
    return min(trained, slot)


def _version(binary: str | None) -> str:
    if binary is None:
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    told = _run(binary, "--version")
    line = next((one for one in told.splitlines() if "version" in one), "")
    return line.strip() or "says no version"


def _help_of(binary: str) -> str:
    told = _run(binary, "--help")
    if "--ctx-size" not in told:
        raise EngineError(
            f"server.binary: {binary} is no llama-server: its --help names no --ctx-size",
            hint="name a llama-server of llama.cpp, or leave server.binary out",
        )
    return told


def _run(binary: str, flag: str) -> str:
    try:
        done = subprocess.run(
            [binary, flag], capture_output=True, text=True, errors="replace", timeout=_HELP_S,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"server.binary: {binary} cannot be run: {getattr(error, 'strerror', None) or error}",
            hint="name a llama-server of llama.cpp, or leave server.binary out",
        ) from error
    return done.stdout + done.stderr
