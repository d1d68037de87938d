"""Where a process stands in the hierarchy of control groups that accounts memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Version = Literal["v1", "v2"]


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


def place_at(folder: Path) -> Place:
    """A group that is named by its folder; what kind it is, its files tell."""
    is_v1 = (folder / "memory.usage_in_bytes").exists()
    return Place(version="v1" if is_v1 else "v2", folder=folder)


def place_of(pid: int | str = "self") -> Place | None:
    """Raises OSError once the process is gone."""
    cgroup = Path(f"/proc/{pid}/cgroup").read_text()
    return place_in(cgroup, Path("/proc/self/mountinfo").read_text())


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
