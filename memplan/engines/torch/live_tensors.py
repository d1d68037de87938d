"""The exact bytes of live CPU tensors and their peak, from a hook in front of torch's allocator.

torch counts memory on accelerators only. The hook is forty lines of C, compiled once with the
machine's compiler into the user's cache and preloaded into the engine process. Where it cannot be,
the reason is kept as text, and activations are then known by a lower bound only.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_SYMBOLS = (b"_ZN3c109alloc_cpuEm", b"_ZN3c108free_cpuEPv")
OFF = "MEMPLAN_NO_TENSOR_HOOK"
"""Environment variable: measures without the hook, as on a machine without a compiler."""
REASON = "MEMPLAN_TENSOR_HOOK_MISSING"
"""How memplan tells the worker why there is no hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """``library`` to preload, or the ``reason`` why there is none."""

    library: Path | None
    reason: str = ""


def find_hook(cache: Path) -> Hook:
    """Compiles the hook on first use (0.1 s); never raises."""
    if os.environ.get(OFF):
        return Hook(library=None, reason=f"{OFF} is set")
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return Hook(library=None, reason="torch is not installed")
    libc10 = Path(found.submodule_search_locations[0]) / "lib" / "libc10.so"
    if not libc10.exists() or not all(name in libc10.read_bytes() for name in _SYMBOLS):
        return Hook(library=None, reason="this torch's libc10.so has no alloc_cpu to stand before")
    target = cache / f"live_tensors-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if target.exists():
        return Hook(library=target)
    return _compile(target)


def _compile(target: Path) -> Hook:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Hook(library=None, reason="no C compiler (cc, gcc or clang) on PATH")
    scratch = target.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(scratch), str(_SOURCE), "-ldl"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            scratch.rename(target)
            return Hook(library=target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Hook(library=None, reason=f"{compiler} could not be run: {error}")
    lines = done.stderr.strip().splitlines()
    return Hook(library=None, reason=f"{compiler} failed: {lines[-1] if lines else 'no output'}")


class LiveTensors:
    """Inside the engine: reads the preloaded hook."""

    def __init__(self) -> None:
        process = ctypes.CDLL(None)
        self._live = process.memplan_live_bytes
        self._take_peak = process.memplan_take_peak_bytes
        self._live.restype = self._take_peak.restype = ctypes.c_int64

    def take(self) -> tuple[int, int]:
        """(peak since the last call, live now), in bytes."""
        return int(self._take_peak()), int(self._live())


def open_live_tensors() -> LiveTensors | str:
    """The hook, proved by an allocation of known size, or the reason why it cannot be used."""
    import torch

    try:
        counted = LiveTensors()
    except AttributeError:
        return os.environ.get(REASON) or "the hook is not preloaded"
    _, before = counted.take()
    probe = torch.empty(1 << 20, dtype=torch.uint8)
    peak, after = counted.take()
    if min(peak, after) - before < probe.numel():
        return "the hook is preloaded and does not see torch's allocations"
    return counted
