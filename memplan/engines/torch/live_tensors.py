"""The exact bytes of live CPU tensors and their peak, from a hook in front of torch's allocator.

torch counts memory on accelerators only. The hook is a small library in C, compiled once with the
machine's compiler into the user's cache and preloaded into the engine process. Where it cannot be,
the reason is kept as text, and activations are then known by a lower bound only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.compiled import compile_once
from memplan.engines.raw_segments import TensorNames, tensor_peaks

if TYPE_CHECKING:
    import torch

_SOURCE = Path(__file__).with_suffix(".c")
_SYMBOLS = (b"_ZN3c109alloc_cpuEm", b"_ZN3c108free_cpuEPv")
OFF = "MEMPLAN_NO_TENSOR_HOOK"
"""Environment variable: measures without the hook, as on a machine without a compiler."""
REASON = "MEMPLAN_TENSOR_HOOK_MISSING"
"""How memplan tells the worker why there is no hook."""
WEIGHTS, STEP = "weights", "step"
"""Owners of tensors that no part of the model makes: the weights; and a step's own inputs, what passes
from part to part, and every tensor below 64 KiB."""
_OWNERS = 64
"""As in live_tensors.c."""


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
    hook = compile_once(_SOURCE, "library", cache)
    return Hook(library=hook.path, reason=hook.reason)


class LiveTensors:
    """Inside the engine: reads the preloaded hook, and tells it which part of the model runs."""

    def __init__(self) -> None:
        process = ctypes.CDLL(None)
        self._take = process.memplan_take_tensors
        self._out = array("q", bytes(8 * (3 + _OWNERS)))
        self._address = self._out.buffer_info()[0]
        self._take.argtypes = (ctypes.c_void_p,)
        address = ctypes.cast(self._take, ctypes.c_void_p).value or 0
        self.c_function = address, 8 * (3 + _OWNERS)
        process.memplan_tensors_told.restype = ctypes.c_void_p
        told = process.memplan_tensors_told()
        self._running = ctypes.c_int32.from_address(told)
        self.counting = ctypes.c_int32.from_address(told + 4)
        """0: nothing is counted, for measuring what counting costs."""
        self._interpreter = process.memplan_interpreter_bytes
        self._interpreter.restype = ctypes.c_int64
        self._counted = ctypes.PyDLL(None).memplan_part_function
        self._counted.argtypes = (ctypes.py_object, ctypes.c_int32)
        self._counted.restype = ctypes.py_object
        self._owners = [STEP, WEIGHTS]
        self._modules: list[str | None] = [None]
        self._watched: list[tuple[torch.nn.Module, Callable[..., Any]]] = []
        self._is_watching = False
        self._names = TensorNames()

    def cut(self) -> bytes:
        """The interval since the last call ends, and the next begins."""
        self._take(self._address)
        return self._out.tobytes()

    @property
    def names(self) -> TensorNames:
        known = self._names
        if (len(known.owners), len(known.modules)) != (len(self._owners), len(self._modules)):
            self._names = TensorNames(tuple(self._owners), tuple(self._modules), WEIGHTS)
        return self._names

    @contextmanager
    def owned_by(self, owner: str) -> Iterator[None]:
        """Tensors made in the meantime belong to ``owner``."""
        before, self._running.value = self._running.value, self._owner_id(owner)
        try:
            yield
        finally:
            self._running.value = before

    def know_parts(self, model: torch.nn.Module) -> None:
        """The parts of this model shall own what they make, while ``watch`` says so."""
        for name, module in _parts(model, ""):
            owner = self._owner_id(re.sub(r"\.\d+", ".*", name))
            self._modules.append(name)
            counted = self._counted(module.forward, len(self._modules) - 1 << 8 | owner)
            self._watched.append((module, counted))

    def watch(self, *, is_on: bool) -> None:
        """Turned off for small steps, whose tensors are too small to have an owner."""
        if is_on == self._is_watching:
            return
        self._is_watching = is_on
        for module, counted in self._watched:
            # Straight into what an instance has in front of its class: by way of the module itself 60
            # of them took 0.3 ms.
            if is_on:
                module.__dict__["forward"] = counted
            else:
                del module.__dict__["forward"]

    def interpreter_bytes(self) -> int:
        """Arenas of Python's small objects that were mapped since ``count_interpreter``."""
        return int(self._interpreter())

    def _owner_id(self, owner: str) -> int:
        if owner not in self._owners:
            if len(self._owners) == _OWNERS:
                return 0
            self._owners.append(owner)
        return self._owners.index(owner)


def open_live_tensors() -> LiveTensors | str:
    """The hook, proved by an allocation of known size, or the reason why it cannot be used."""
    import torch

    try:
        counted = LiveTensors()
    except (AttributeError, ValueError):
        return os.environ.get(REASON) or "the hook is not preloaded"
    before = tensor_peaks(counted.cut(), counted.names).live_bytes
    probe = torch.empty(1 << 20, dtype=torch.uint8)
    seen = tensor_peaks(counted.cut(), counted.names)
    if min(seen.peak_bytes, seen.live_bytes) - before < probe.numel():
        return "the hook is preloaded and does not see torch's allocations"
    return counted


def count_interpreter() -> None:
    """Makes Python map its arenas through the hook; to be called before the heavy imports."""

    class Allocator(ctypes.Structure):  # PyObjectArenaAllocator, Include/cpython/objimpl.h
        _fields_ = (
            ("context", ctypes.c_void_p),
            ("alloc", ctypes.c_void_p),
            ("free", ctypes.c_void_p),
        )

    process = ctypes.CDLL(None)
    try:
        allocator = Allocator(
            None,
            ctypes.cast(process.memplan_map_arena, ctypes.c_void_p),
            ctypes.cast(process.memplan_unmap_arena, ctypes.c_void_p),
        )
    except AttributeError:
        return  # not preloaded; open_live_tensors says why
    ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(allocator))


def _parts(model: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules by which memory is told apart: what stands beside the layers, and the parts of each
    layer but its norms, which own next to nothing."""
    for name, module in model.named_children():
        where = f"{prefix}{name}"
        if "Norm" in type(module).__name__:
            continue
        if not module._modules:
            yield where, module
        elif name.isdigit():
            parts = module.named_children()
            yield from ((f"{where}.{n}", m) for n, m in parts if "Norm" not in type(m).__name__)
        else:
            yield from _parts(module, f"{where}.")
