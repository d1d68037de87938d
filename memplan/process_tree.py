"""Who belongs to an engine's process tree, also where /proc hides some of them from us."""

from __future__ import annotations

import os
from pathlib import Path


def family_of(root: int) -> list[int]:
    """``root`` and its descendants, parents first; those that can be listed, readable or not.

    The kernel's own list of a task's children (CONFIG_PROC_CHILDREN) names even processes that
    hidepid hides, but not what those have started. Without that list /proc is searched, which finds
    only what can be seen.
    """
    family = [root]
    for pid in family:
        try:
            family += _children_of(pid)
        except OSError:  # gone, or hidden from us
            continue
    return family if len(family) > 1 or lists_children() else family_by_search(root)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, whoever owns it and whatever /proc shows of it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def lists_children() -> bool:
    """Whether this kernel keeps a list of each task's children (CONFIG_PROC_CHILDREN)."""
    return Path("/proc/thread-self/children").exists()


def _children_of(pid: int) -> list[int]:
    """Raises OSError for a process that is gone or hidden."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children += map(int, (task / "children").read_text().split())
        except FileNotFoundError:  # a thread that has ended
            continue
    return children


def family_by_search(root: int) -> list[int]:
    """The same from all of /proc, for kernels that keep no list. Slower, and blind to the hidden."""
    import psutil  # noqa: PLC0415 - an engine process that never needs it shall not hold it

    try:
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    except psutil.Error:
        return [root]
