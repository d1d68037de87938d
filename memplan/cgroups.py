"""A control group for the engine alone: an exact second witness of its peak, and a limit that is real.

Versions 1 and 2 of the kernel's memory controller. A group is made for each engine start and never
reset, so the kernel's own peak is that of the engine's whole life. It counts what is charged (page
cache, tmpfs, page tables too), not what is resident.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memplan.errors import MachineError
from memplan.units import bytes_text

Version = Literal["v1", "v2"]

_NAME = re.compile(r"^memplan-(\d+)-\w+$")
_REMOVE_S = 2.0
_MACHINE_PRESSURE = "/proc/pressure/memory"

# Joined by the shell that becomes the engine: all that the engine ever allocates is charged here,
# and no Python runs between fork and exec.
_JOIN = '{ echo 0 > "$1"; } 2>/dev/null; shift; exec "$@"'

_CHARGE_FILES: Mapping[Version, Mapping[str, str]] = {
    "v1": {
        "cgroup.current": "memory.usage_in_bytes",
        "cgroup.peak": "memory.max_usage_in_bytes",
        "cgroup.kernel": "memory.kmem.usage_in_bytes",
    },
    "v2": {"cgroup.current": "memory.current", "cgroup.peak": "memory.peak"},
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
_OOM_FILE: Mapping[Version, str] = {"v1": "memory.oom_control", "v2": "memory.events"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands in the hierarchy that accounts memory."""

    version: Version
    folder: Path


def place_in(cgroup: str, mountinfo: str) -> Place | None:
    """The memory group that the texts of /proc/PID/cgroup and /proc/PID/mountinfo name.

    None where nothing accounts memory. Where both versions are mounted, memory belongs to version 1
    if that has the controller (cgroups(7)); whether a version 2 has it, only its files tell.
    """
    paths: dict[Version, str] = {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths["v1"] = path
        elif number == "0" and not controllers:
            paths["v2"] = path
    mounts = {m.version: m for m in _mounts(mountinfo)}
    for version in ("v1", "v2"):
        if version in paths and version in mounts:
            return Place(version=version, folder=mounts[version].folder_of(paths[version]))
    return None


def place_of(pid: int | str = "self") -> Place | None:
    """Raises OSError once the process is gone."""
    cgroup = Path(f"/proc/{pid}/cgroup").read_text()
    return place_in(cgroup, Path("/proc/self/mountinfo").read_text())


class Group:
    """One control group of ours, while its engine lives."""

    def __init__(self, place: Place, *, limit_bytes: int | None) -> None:
        self.place = place
        self.limit_bytes = limit_bytes

    def joining(self, command: Sequence[str]) -> list[str]:
        """The command that joins this group and then becomes ``command``, under the same pid."""
        return ["/bin/sh", "-c", _JOIN, "sh", str(self.place.folder / "cgroup.procs"), *command]

    def pids(self) -> tuple[int, ...]:
        return _pids(self.place.folder)

    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for memory."""
        with contextlib.suppress(OSError):
            text = (self.place.folder / _OOM_FILE[self.place.version]).read_text()
            return fields_in(text).get("oom_kill", 0)
        return 0

    def peak_bytes(self) -> int | None:
        """The most that was ever charged; None on a version 2 without memory.peak (before 5.19)."""
        try:
            name = _CHARGE_FILES[self.place.version]["cgroup.peak"]
            return int((self.place.folder / name).read_text())
        except OSError:
            return None

    def text(self) -> str:
        limit = "no limit" if self.limit_bytes is None else f"limit {self.limit_bytes:,} bytes"
        return f"{self.place.version}, of the engine alone, {limit}"

    def remove(self) -> None:
        """Ends what is left in it and removes it; what cannot be removed is left to the next run."""
        deadline_s = time.monotonic() + _REMOVE_S
        while not _removed(self.place.folder) and time.monotonic() < deadline_s:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self.place.version == "v2":
            _step_back(self.place.folder.parent)


def make_group(limit_bytes: int | None, *, above: Place | None = None) -> Group:
    """A new group below our own (or below ``above``), with its limit set and swap off.

    Removes groups of dead runs first. Raises MachineError, saying why, where none can be made.
    """
    try:
        above = above or place_of()
        if above is None:
            raise _cannot("no memory controller is mounted on this machine")
        above = _without_our_own(above)
        _remove_dead(above.folder)
        if above.version == "v2":
            _open_to_children(above.folder)
        folder = above.folder / f"memplan-{os.getpid()}-{secrets.token_hex(3)}"
        folder.mkdir()
    except OSError as error:
        raise _cannot(f"{error.strerror}: {error.filename}") from error
    group = Group(Place(version=above.version, folder=folder), limit_bytes=limit_bytes)
    if limit_bytes is not None:
        try:
            _limit(group.place, limit_bytes)
        except OSError as error:
            group.remove()
            raise _cannot(
                f"a limit of {bytes_text(limit_bytes)} was refused ({error.strerror})"
            ) from error
    return group


class GroupMemory:
    """A group's gauges, with its files kept open. Raises OSError once the group is removed."""

    def __init__(self, place: Place) -> None:
        self._version = place.version
        self._charges = {
            gauge: fd
            for gauge, name in _CHARGE_FILES[place.version].items()
            if (fd := _opened(place.folder / name)) is not None
        }
        self._stat = _opened(place.folder / "memory.stat")
        self._oom = _opened(place.folder / _OOM_FILE[place.version])
        own = _opened(place.folder / "memory.pressure") if place.version == "v2" else None
        self._pressure_of = "machine" if own is None else "cgroup"
        self._pressure = _opened(Path(_MACHINE_PRESSURE)) if own is None else own

    def read_charge(self) -> dict[str, int]:
        """What is charged now and was at most: a microsecond a file."""
        return {gauge: int(os.pread(fd, 32, 0)) for gauge, fd in self._charges.items()}

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
        self._charges = {}
        self._stat = self._oom = self._pressure = None


def fields_in(text: str) -> dict[str, int]:
    """``name number`` a line, as in memory.stat, memory.events and memory.oom_control."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def pressure_in(text: str) -> dict[str, int]:
    """Microseconds of stall by kind, ``some`` and ``full``, from a PSI file (accounting/psi.rst)."""
    return {kind: int(us) for kind, us in re.findall(r"^(\w+) .*total=(\d+)$", text, re.MULTILINE)}


# --- steps ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    version: Version
    root: str
    point: str

    def folder_of(self, path: str) -> Path:
        """A container's mount shows the hierarchy from ``root`` down; a path outside it is its top."""
        if self.root != "/" and not f"{path}/".startswith(f"{self.root}/"):
            return Path(self.point)
        inside = path if self.root == "/" else path[len(self.root) :]
        return Path(self.point, inside.lstrip("/"))


def _mounts(mountinfo: str) -> list[_Mount]:
    found = []
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        root, point = (_unescaped(field) for field in fields.split()[3:5])
        kind, _, options = tail.split(maxsplit=2)
        if kind == "cgroup2":
            found.append(_Mount(version="v2", root=root, point=point))
        elif kind == "cgroup" and "memory" in options.split(","):
            found.append(_Mount(version="v1", root=root, point=point))
    return found


def _unescaped(field: str) -> str:
    """proc(5): blanks in mountinfo are written as \\040 and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def _cannot(reason: str) -> MachineError:
    return MachineError(
        f"the engine gets no control group of its own: {reason}",
        hint="run as root, or as `systemd-run --user --scope -p Delegate=yes memplan …`; "
        "or leave the memory limit out",
    )


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


def _pids(folder: Path) -> tuple[int, ...]:
    try:
        return tuple(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    except OSError:
        return ()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_dead(folder: Path) -> None:
    """Groups of runs that were killed. One that still holds a process refuses, and stays."""
    for one in folder.iterdir():
        match = _NAME.match(one.name)
        if match and not Path("/proc", match.group(1)).exists():
            _removed(one)


def _limit(place: Place, limit_bytes: int) -> None:
    def write(name: str, value: str) -> None:
        (place.folder / name).write_text(value)

    if place.version == "v1":
        write("memory.limit_in_bytes", str(limit_bytes))
        with contextlib.suppress(OSError):  # absent without swap accounting
            write("memory.swappiness", "0")
            write("memory.memsw.limit_in_bytes", str(limit_bytes))
        return
    write("memory.max", str(limit_bytes))
    with contextlib.suppress(OSError):  # absent without swap
        write("memory.swap.max", "0")


# --- version 2: processes live in leaves only ----------------------------------------------------


def _own_leaf(above: Path) -> Path:
    return above / f"memplan-{os.getpid()}-self"


def _without_our_own(place: Place) -> Place:
    """Groups are made beside the leaf that memplan itself moved to for an engine start before."""
    above = place.folder.parent
    return Place(version=place.version, folder=above) if place.folder == _own_leaf(above) else place


def _open_to_children(above: Path) -> None:
    """Lets groups below have the memory controller.

    The kernel refuses it to a group that holds processes. If memplan is the only one, as in a scope
    of its own, it moves down into a leaf first. Raises OSError or MachineError.
    """
    if "memory" not in (above / "cgroup.controllers").read_text().split():
        raise _cannot(f"{above} has no memory controller")
    control = above / "cgroup.subtree_control"
    if "memory" in control.read_text().split():
        return
    try:
        control.write_text("+memory")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        if set(_pids(above)) != {os.getpid()}:
            raise _cannot(f"{above} holds other processes beside memplan") from error
        _own_leaf(above).mkdir(exist_ok=True)
        (_own_leaf(above) / "cgroup.procs").write_text(str(os.getpid()))
        control.write_text("+memory")


def _step_back(above: Path) -> None:
    """Undoes the move, so that the group can take processes again."""
    leaf = _own_leaf(above)
    if leaf.exists():
        with contextlib.suppress(OSError):
            (above / "cgroup.subtree_control").write_text("-memory")
            (above / "cgroup.procs").write_text(str(os.getpid()))
            leaf.rmdir()
