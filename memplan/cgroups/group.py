"""One control group of ours: made below our own, limited, joined, and removed when its engine ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from memplan.cgroups.gauges import OOM_FILE, fields_in
from memplan.cgroups.peak import peak_mark_of
from memplan.cgroups.place import Place, place_of
from memplan.errors import MachineError
from memplan.units import bytes_text

_NAME = re.compile(r"^memplan-(\d+)-\w+$")
_REMOVE_S = 2.0

# Joined by the shell that becomes the engine: all that the engine ever allocates is charged here,
# and no Python runs between fork and exec.
_JOIN = '{ echo 0 > "$1"; } 2>/dev/null; shift; exec "$@"'


class Group:
    """One control group of ours, while its engine lives."""

    def __init__(self, place: Place, *, limit_bytes: int | None) -> None:
        self.place = place
        self.limit_bytes = limit_bytes
        self._peak = peak_mark_of(place)

    def joining(self, command: Sequence[str]) -> list[str]:
        """The command that joins this group and then becomes ``command``, under the same pid."""
        return ["/bin/sh", "-c", _JOIN, "sh", str(self.place.folder / "cgroup.procs"), *command]

    def pids(self) -> tuple[int, ...]:
        return _pids(self.place.folder)

    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for memory."""
        with contextlib.suppress(OSError):
            text = (self.place.folder / OOM_FILE[self.place.version]).read_text()
            return fields_in(text).get("oom_kill", 0)
        return 0

    def peak_bytes(self) -> int | None:
        """The most that was charged since ``end_loading``, or ever; None where nothing keeps it."""
        with contextlib.suppress(OSError):
            return None if self._peak is None else self._peak.read()
        return None

    def end_loading(self) -> bool:
        """Sets the mark back, so that it is that of serving. False: it stays that of the life."""
        return self._peak is not None and self._peak.reset()

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


# --- steps ------------------------------------------------------------------------------------


def _cannot(reason: str) -> MachineError:
    return MachineError(
        f"the engine gets no control group of its own: {reason}",
        hint="run as root, or as `systemd-run --user --scope -p Delegate=yes memplan …`; "
        "or leave the memory limit out",
    )


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
