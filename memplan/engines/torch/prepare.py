"""A model source → a folder of safetensors in the wanted dtype, which the engine can map.

A GGUF file is de-quantized once and kept in the user's cache; a Hugging Face folder that already
has the dtype is used where it lies. Converting runs in a process of its own, so that its peak is
never part of a measurement.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from memplan.compiled import cache_folder
from memplan.errors import EngineError, MachineError
from memplan.specs import Deployment

_EDGE_BYTES = 4 << 20


def prepared_folder(deployment: Deployment) -> Path:
    """The folder to load; converts on first use (seconds for a small model).

    Raises MachineError when the torch extra is missing and EngineError when the model cannot be
    converted.
    """
    if (
        importlib.util.find_spec("torch") is None
        or importlib.util.find_spec("transformers") is None
    ):
        raise MachineError(
            "engine torch needs the packages torch and transformers, which are not installed",
            hint="pip install 'memplan[torch]'",
        )
    source = deployment.model_file()
    dtype = "fp32" if deployment.settings.weights == "fp32" else "bf16"
    if source.is_dir() and _stored_dtype(source) == dtype:
        return source
    target = cache_folder() / "models" / f"{source.stem}-{fingerprint(source)}-{dtype}"
    if not (target / "config.json").exists():
        _convert(source, dtype, target)
    return target


def model_context_tokens(deployment: Deployment) -> int:
    """The context that the model was made for, from its own config."""
    config = json.loads((prepared_folder(deployment) / "config.json").read_text())
    return int(config.get("text_config", config)["max_position_embeddings"])


def fingerprint(source: Path) -> str:
    """Twelve hex digits of SHA-256 over every weight file's name, size, first and last 4 MiB.

    Not the whole content: reading a 100 GB file to name it would take longer than loading it.
    """
    digest = hashlib.sha256()
    files = [*weight_files(source), source / "config.json"]
    for path in files if source.is_dir() else [source]:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as data:
            digest.update(data.read(_EDGE_BYTES))
            data.seek(max(0, size - _EDGE_BYTES))
            digest.update(data.read(_EDGE_BYTES))
    return digest.hexdigest()[:12]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """What the engine maps or reads of a model folder."""
    return tuple(sorted(folder.glob("*.safetensors")))


def _stored_dtype(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype")
    return {"float32": "fp32", "bfloat16": "bf16"}.get(str(name))


def _convert(source: Path, dtype: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise MachineError(
            f"{target.parent}: the model cache cannot be written: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder of yours",
        ) from error
    try:
        command = [sys.executable, "-m", "memplan.engines.torch.prepare"]
        done = subprocess.run(
            [*command, str(source), dtype, str(scratch)],
            capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise EngineError(
                f"{source}: transformers cannot load this model: {lines[-1][:300]}",
                hint="check that its architecture is one that the installed transformers knows",
            )
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # else another memplan was first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _main(source: Path, dtype_name: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
    if source.is_dir():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=dtype
        )
        # It was de-quantized while loading; left set, this would forbid saving plain weights.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    model.to(dtype).save_pretrained(target)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
