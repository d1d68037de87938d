"""vLLM: a server of several processes, started by memplan in the Python that has it installed.

Its KV pool is given to the byte, because left to itself it takes nine tenths of the memory there is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.engines.servers.described import ServerFacts, labels_in, metrics_in
from memplan.engines.servers.reply import Api
from memplan.engines.torch.prepare import prepared_folder, tokenizer_folder
from memplan.errors import MachineError
from memplan.records import Request
from memplan.specs import Deployment
from memplan.units import GIB

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_CPU_BLOCK_TOKENS = 128
_SAID = re.compile(
    r"(Model loading took|Available KV cache memory|model weights take)\D*([\d.,]+)\s*(GiB|GB|MiB)"
)
_UNITS = {"GiB": GIB, "GB": 10**9, "MiB": 1 << 20}


class VllmServer:
    """Raises MachineError where vLLM is not to be found; what else is wrong, its log says."""

    api: Api = "completions"
    path = "/v1/completions"
    ready_path = "/health"
    gauge_paths: tuple[str, ...] = ("/metrics",)
    sends_tokens = True

    def __init__(self, deployment: Deployment) -> None:
        assert deployment.server is not None
        self._deployment = deployment
        self._settings = deployment.settings
        self._spec = deployment.server
        if self._spec.binary is None and importlib.util.find_spec("vllm") is None:
            raise MachineError(
                "engine vllm needs vLLM, which is not installed beside memplan",
                hint="name it: server: {binary: /path/to/venv/bin/python}; docs/server-engines.md "
                "says how to install it",
            )
        self._folder = _model_folder(deployment)
        self._config = _text_config(self._folder)
        self._block_tokens = (
            self._settings.block_tokens
            if "block_tokens" in self._settings.model_fields_set
            else _CPU_BLOCK_TOKENS
        )

    def command(self, port: int) -> Sequence[str]:
        settings = self._settings
        sharing = "--enable-prefix-caching"
        if settings.prefix_sharing == "off":
            sharing = "--no-enable-prefix-caching"
        given = [
            "--model", str(self._folder), "--served-model-name", "m",
            "--tokenizer", str(tokenizer_folder(self._deployment)),
            "--host", "127.0.0.1", "--port", str(port),
            "--dtype", _DTYPES[settings.weights],
            "--max-model-len", str(vllm_context_tokens(self._deployment)),
            "--max-num-seqs", str(settings.max_requests),
            "--max-num-batched-tokens", str(settings.max_batch_tokens),
            "--kv-cache-memory-bytes", str(self._pool_bytes),
            "--enforce-eager", sharing,
        ]  # fmt: skip
        if settings.kv == "fp8":
            given += ["--kv-cache-dtype", "fp8"]
        if "block_tokens" in settings.model_fields_set:
            given += ["--block-size", str(settings.block_tokens)]
        if settings.cpu_offload_bytes:
            given += ["--cpu-offload-gb", f"{settings.cpu_offload_bytes / GIB:g}"]
        if settings.offload == "host":
            given += ["--kv-offloading-size", f"{settings.offload_limit_bytes / GIB:g}"]
        return [*self._program(), *given, *self._spec.arguments]

    def environment(self) -> Mapping[str, str]:
        threads = {"OMP_NUM_THREADS": str(self._settings.threads)} if self._settings.threads else {}
        return {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            **threads,
            **self._settings.env,
        }

    def weight_files(self) -> tuple[Path, ...]:
        return tuple(sorted(self._folder.glob("*.safetensors")))

    def facts(self, answers: Mapping[str, bytes], printed: str) -> ServerFacts:
        config = labels_in(answers.get("/metrics", b""), "vllm:cache_config_info")
        block = int(config.get("block_size") or self._block_tokens)
        pool_bytes = int(_number(config.get("kv_cache_memory_bytes")) or self._pool_bytes)
        per_token = self._kv_bytes_per_token
        tokens = int(_number(config.get("kv_cache_size_tokens")) or pool_bytes // per_token)
        predicted = {
            what.lower(): round(float(size.replace(",", "")) * _UNITS[unit])
            for what, size, unit in _SAID.findall(printed)
        }
        said_tokens = re.search(r"KV cache size: ([\d,]+) tokens", printed)
        if said_tokens:
            predicted["kv cache"] = int(said_tokens.group(1).replace(",", "")) * per_token
        found = re.search(r"[Vv]ersion[: ]+v?([\w.+]+)", printed)
        return ServerFacts(
            version=f"vLLM {found.group(1)}" if found else "vLLM, which told no version",
            device="cuda:0" if "device_config=cuda" in printed else "cpu",
            vocab_tokens=int(self._config["vocab_size"]),
            context_tokens=vllm_context_tokens(self._deployment),
            max_requests=self._settings.max_requests,
            kv_bytes_per_token=per_token,
            kv_pool_tokens=tokens,
            kv_block_tokens=block,
            kv_pool_bytes=pool_bytes,
            weights_bytes=sum(path.stat().st_size for path in self.weight_files()),
            predicted=predicted,
            settings={
                "kv_dtype": config.get("cache_dtype", self._settings.kv),
                "prefix_sharing": self._settings.prefix_sharing,
                "eager": "yes: no compiled graphs",
            },
        )

    def body(self, request: Request, prompt: Sequence[int]) -> Mapping[str, Any]:
        return {
            "model": "m",
            "prompt": list(prompt),
            "max_tokens": request.output_tokens,
            "min_tokens": request.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            **({"logprobs": 1} if self._settings.confidence else {}),
        }

    def gauges_of(self, path: str, answer: bytes) -> Mapping[str, int]:
        found = metrics_in(answer)
        names = {
            "vllm:num_requests_running": "engine.running",
            "vllm:num_requests_waiting": "engine.waiting",
            "vllm:num_preemptions_total": "engine.preemptions",
            "vllm:prefix_cache_hits_total": "engine.cached_tokens",
        }
        gauges = {ours: round(found[theirs]) for theirs, ours in names.items() if theirs in found}
        if "vllm:kv_cache_usage_perc" in found:
            gauges["engine.kv_reported"] = round(
                found["vllm:kv_cache_usage_perc"] * self._pool_bytes
            )
        return gauges

    # --- steps -----------------------------------------------------------------------------

    def _program(self) -> list[str]:
        """``vllm serve`` of a repackaged vLLM cannot start (it asks for its own package's name), so that
        the module is run, which every one of them has."""
        module = ["-m", "vllm.entrypoints.openai.api_server"]
        binary = self._spec.binary
        if binary is None:
            return [sys.executable, *module]
        return [binary, *module] if Path(binary).name.startswith("python") else [binary, "serve"]

    @property
    def _kv_bytes_per_token(self) -> int:
        config = self._config
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or config["hidden_size"] // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        element = 1 if self._settings.kv == "fp8" else _DTYPE_BYTES[self._settings.weights]
        return 2 * int(config["num_hidden_layers"]) * kv_heads * size * element

    @property
    def _pool_bytes(self) -> int:
        blocks = -(-self._settings.max_kv_tokens // self._block_tokens)
        return blocks * self._block_tokens * self._kv_bytes_per_token


def vllm_context_tokens(deployment: Deployment) -> int:
    config = _text_config(_model_folder(deployment))
    trained = int(config.get("max_position_embeddings", 2048))
    most = min(trained, deployment.settings.max_kv_tokens)
    return min(most, deployment.settings.context_tokens or most)


def _model_folder(deployment: Deployment) -> Path:
    """Of a GGUF file the folder that engine torch would map: vLLM's own reader of it needs a GPU."""
    source = deployment.model_file()
    return source if source.is_dir() else prepared_folder(deployment)


def _text_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    return text


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
