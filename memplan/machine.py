"""What this machine is: the facts a recording's header holds, read once and without torch."""

from __future__ import annotations

import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from memplan.records import MachineFacts

_PACKAGES = ("torch", "transformers", "torchao", "safetensors", "gguf", "psutil", "nvidia-ml-py")


def read_machine() -> MachineFacts:
    """Facts of the machine and of the packages whose versions move bytes."""
    return MachineFacts(
        hostname=socket.gethostname(),
        kernel=platform.release(),
        cpu_model=_cpu_model(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        swap_bytes=psutil.swap_memory().total,
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip(),
        transparent_hugepages=_transparent_hugepages(),
        gpus=_gpus(),
        packages=_versions(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _transparent_hugepages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text.split("[")[1].split("]")[0] if "[" in text else text.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs; empty where there is no driver."""
    import pynvml  # noqa: PLC0415 - 15 ms that only a measuring command should pay

    return gpu_names(pynvml)


def gpu_names(nvml: Any) -> tuple[str, ...]:
    """By pynvml, or what stands in for it. A GPU that does not answer is named by its failure."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(_gpu_name(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:
        return (f"unknown ({error})",)
    finally:
        nvml.nvmlShutdown()


def _gpu_name(nvml: Any, index: int) -> str:
    try:
        return str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index)))
    except nvml.NVMLError as error:
        return f"unknown ({error})"
