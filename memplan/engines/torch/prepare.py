"""A model source → a folder of safetensors in the wanted form, which the engine can map.

A GGUF file is de-quantized once and kept in the user's cache; a Hugging Face folder that already
has the dtype is used where it lies. Quantized forms are made from either, and kept too. Converting
runs in a process of its own, so that its peak is never part of a measurement.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.compiled import cache_folder
from memplan.engines.torch.tokenizer import check_tokenizer
from memplan.engines.torch.weight_forms import FAULT_CODE, WeightPlan
from memplan.errors import EngineError, MachineError
from memplan.specs import Deployment

_EDGE_BYTES = 4 << 20
_CAPABILITY = "ATEN_CPU_CAPABILITY"
"""Environment variable by which torch is held to fewer vector units than there are."""
_LAYOUT = 2
"""Of a folder of quantized weights; another number makes all of them anew."""


def prepared_folder(deployment: Deployment) -> Path:
    """The folder to load; converts on first use (seconds for a small model).

    Raises MachineError when the torch extra is missing and EngineError when the model cannot be
    converted, or a form of ``weights`` does not fit it.
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
    settings = deployment.settings.model_dump(mode="json")
    plan = WeightPlan.of_settings(settings)
    plain = _plain_folder(source, plan.compute)
    if not plan.is_quantized:
        return plain
    if importlib.util.find_spec("torchao") is None:
        raise MachineError(
            f"weights: {plan.base} needs the package torchao, which is not installed",
            hint="pip install 'memplan[torch]'",
        )
    wanted = {key: settings[key] for key in ("weights", "weights_by_module", "device")}
    processor = {_CAPABILITY: settings["env"].get(_CAPABILITY, os.environ.get(_CAPABILITY, ""))}
    digest = _quantized_digest(plain, {**wanted, **processor})
    name = f"{source.stem}-{fingerprint(source)}-{plan.base}-{digest}"
    target = cache_folder() / "models" / name
    if not (target / "config.json").exists():
        command = ["memplan.engines.torch.quantized_folder", str(plain), json.dumps(wanted)]
        fault = f"{source}: its weights cannot be brought into the wanted form"
        _make(command, target, fault, env=processor if processor[_CAPABILITY] else {})
    return target


def tokenizer_folder(deployment: Deployment) -> Path:
    """The folder whose tokenizer an engine would load: the model's own, or one made of its GGUF file.

    Raises InputError where a folder has none, and EngineError where none can be made of a file.
    """
    source = deployment.model_file()
    if source.is_dir():
        check_tokenizer(source)
        return source
    target = cache_folder() / "models" / f"{source.stem}-{fingerprint(source)}-tokenizer"
    if not target.is_dir():
        fault = f"{source}: no tokenizer can be made of it"
        _make(["memplan.engines.torch.tokenizer", str(source)], target, fault)
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
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(name))


def _plain_folder(source: Path, dtype: str) -> Path:
    if source.is_dir() and _stored_dtype(source) == dtype:
        return source
    target = cache_folder() / "models" / f"{source.stem}-{fingerprint(source)}-{dtype}"
    if not (target / "config.json").exists():
        command = ["memplan.engines.torch.prepare", str(source), dtype]
        _make(command, target, f"{source}: transformers cannot load this model")
    return target


def _quantized_digest(plain: Path, wanted: Mapping[str, Any]) -> str:
    """Eight hex digits of all that decides how quantized weights come out, in bits or in layout: int4 is
    packed for the vector units of this processor or for a GPU."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) & {"avx2", "avx512f", "sve", "sve2"}
    facts = {
        **wanted,
        "patterns": list(wanted["weights_by_module"]),  # their order decides
        "plain": str(plain.resolve()),
        "versions": [importlib.metadata.version(name) for name in ("torch", "torchao")],
        "processor": sorted(flags),
        "has_gpu": Path("/dev/nvidiactl").exists(),
        "layout": _LAYOUT,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _make(
    command: list[str], target: Path, fault: str, *, env: Mapping[str, str] | None = None
) -> None:
    """Runs a program that fills the folder which is its last argument; it appears whole or not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise MachineError(
            f"{target.parent}: the model cache cannot be written: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder of yours",
        ) from error
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command, str(scratch)],
            capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
        )  # fmt: skip
        if done.returncode == FAULT_CODE:
            told = json.loads(done.stdout.strip().splitlines()[-1])
            raise EngineError(told["message"], hint=told["hint"])
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise EngineError(
                f"{fault}: {lines[-1][:300]}",
                hint="check that its architecture is one that the installed transformers knows",
            )
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another memplan was first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _main(source: Path, dtype_name: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype_name]
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
