"""The machine around the engine: devices, cores, and what makes resident memory mean something else."""

from __future__ import annotations

from collections.abc import Callable

import pynvml

from memplan.doctor.check import Check
from memplan.records import MachineFacts
from memplan.units import bytes_text

_NO_DRIVER = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)


Device = tuple[str, int, int]
"""Name, bytes in use, bytes in all."""


def nvml_devices() -> tuple[Device, ...]:
    """The query that a run makes, of every device. Raises pynvml.NVMLError."""
    pynvml.nvmlInit()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            found.append((str(pynvml.nvmlDeviceGetName(handle)), int(info.used), int(info.total)))
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def gpu(query: Callable[[], tuple[Device, ...]] = nvml_devices) -> Check:
    """Makes NVML's device query; its process query stalls the driver, and no run makes it."""
    try:
        devices = query()
    except _NO_DRIVER:
        devices = ()
    except pynvml.NVMLError as error:
        return Check(
            name="GPU",
            state="no",
            found=f"NVML: {error}",
            means="device memory is torch's own count: no nvml.N.used, other processes unseen",
            remedy="a driver for which `nvidia-smi` shows memory in use",
        )
    if not devices:
        return Check(
            name="GPU",
            state="note",
            found="no NVIDIA driver or device",
            means="GPU figures are absent, not zero",
        )
    return Check(
        name="GPU",
        state="yes",
        found="; ".join(
            f"{name}, {bytes_text(used)} of {bytes_text(total)} used"
            for name, used, total in devices
        ),
        means="device memory is measured, all processes in one (the process query is never made)",
    )


def cores(machine: MachineFacts) -> Check:
    is_enough = machine.cpu_count >= 2
    return Check(
        name="cores",
        state="yes" if is_enough else "note",
        found=f"{machine.cpu_count}, {bytes_text(machine.memory_bytes)} of memory",
        means="memplan and the engine need not share one"
        if is_enough
        else "memplan takes turns with the engine: requests can be sent late",
    )


def swap(machine: MachineFacts) -> Check:
    return Check(
        name="swap",
        state="note" if machine.swap_bytes else "yes",
        found=bytes_text(machine.swap_bytes) if machine.swap_bytes else "none",
        means="what is swapped out is not resident: a run that swaps carries a finding"
        if machine.swap_bytes
        else "what the engine holds is resident",
        remedy="swapoff -a before a measurement that counts" if machine.swap_bytes else "",
    )


def huge_pages(machine: MachineFacts) -> Check:
    is_always = machine.transparent_hugepages == "always"
    return Check(
        name="huge pages",
        state="note" if is_always else "yes",
        found=machine.transparent_hugepages,
        means="small areas become 2 MiB resident: compare only with machines set the same"
        if is_always
        else "memory becomes resident in pages of its own size",
    )
