"""A group's gauges: what is charged, what it consists of, and the signs of trouble."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from memplan.cgroups.peak import peak_mark_of
from memplan.cgroups.place import Place, Version

_MACHINE_PRESSURE = "/proc/pressure/memory"

_CHARGE_FILES: Mapping[Version, Mapping[str, str]] = {
    "v1": {
        "cgroup.current": "memory.usage_in_bytes",
        "cgroup.kernel": "memory.kmem.usage_in_bytes",
    },
    "v2": {"cgroup.current": "memory.current"},
}
# memory.stat: in v1 the plain names leave out groups below, the total_ ones do not.
_STAT_NAMES: Mapping[Version, Mapping[str, str]] = {
    "v1": {
        "total_rss": "cgroup.anon",
        "total_cache": "cgroup.file",
        "total_inactive_file": "cgroup.inactive_file",
        "total_shmem": "cgroup.shmem",
        "total_workingset_refault_file": "cgroup.refaults",
        "total_pgmajfault": "cgroup.major_faults",
    },
    "v2": {
        "anon": "cgroup.anon",
        "file": "cgroup.file",
        "inactive_file": "cgroup.inactive_file",
        "shmem": "cgroup.shmem",
        "kernel": "cgroup.kernel",
        "workingset_refault_file": "cgroup.refaults",
        "pgmajfault": "cgroup.major_faults",
    },
}
OOM_FILE: Mapping[Version, str] = {"v1": "memory.oom_control", "v2": "memory.events"}


class GroupMemory:
    """A group's gauges, with its files kept open. Raises OSError once the group is removed."""

    def __init__(self, place: Place) -> None:
        self._version = place.version
        self._charges = {
            gauge: fd
            for gauge, name in _CHARGE_FILES[place.version].items()
            if (fd := _opened(place.folder / name)) is not None
        }
        self._peak = peak_mark_of(place)
        self._stat = _opened(place.folder / "memory.stat")
        self._oom = _opened(place.folder / OOM_FILE[place.version])
        own = _opened(place.folder / "memory.pressure") if place.version == "v2" else None
        self._pressure_of = "machine" if own is None else "cgroup"
        self._pressure = _opened(Path(_MACHINE_PRESSURE)) if own is None else own

    def read_charge(self) -> dict[str, int]:
        """What is charged now and was at most: a microsecond a file."""
        charge = {gauge: int(os.pread(fd, 32, 0)) for gauge, fd in self._charges.items()}
        if self._peak is not None:
            charge["cgroup.peak"] = self._peak.read()
        return charge

    def read_detail(self) -> dict[str, int]:
        """What it consists of, and counters of trouble: refaulted pages, major faults, OOM kills,
        and the time that tasks stood still for memory (``…psi_some_us``, ``…psi_full_us``)."""
        stat = fields_in(_text(self._stat))
        gauges = {g: stat[name] for name, g in _STAT_NAMES[self._version].items() if name in stat}
        oom = fields_in(_text(self._oom))
        if "oom_kill" in oom:
            gauges["cgroup.oom_kills"] = oom["oom_kill"]
        for kind, total_us in pressure_in(_text(self._pressure)).items():
            gauges[f"{self._pressure_of}.psi_{kind}_us"] = total_us
        return gauges

    def close(self) -> None:
        for fd in (*self._charges.values(), self._stat, self._oom, self._pressure):
            if fd is not None:
                os.close(fd)
        self._charges, self._peak = {}, None
        self._stat = self._oom = self._pressure = None


def fields_in(text: str) -> dict[str, int]:
    """``name number`` a line, as in memory.stat, memory.events and memory.oom_control."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def pressure_in(text: str) -> dict[str, int]:
    """Microseconds of stall by kind, ``some`` and ``full``, from a PSI file (accounting/psi.rst)."""
    return {kind: int(us) for kind, us in re.findall(r"^(\w+) .*total=(\d+)$", text, re.MULTILINE)}


# --- steps ------------------------------------------------------------------------------------


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # this kernel has no such file
        return None


def _text(fd: int | None) -> str:
    """A PSI file opens on kernels where PSI is off, and says so when it is read."""
    if fd is None:
        return ""
    try:
        return os.pread(fd, 1 << 16, 0).decode()
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ""
        raise
