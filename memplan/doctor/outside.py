"""What can be seen of an engine from outside: its control group, its children, its stalls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

from memplan.cgroups import (
    Group,
    GroupMemory,
    PeakMark,
    Place,
    make_group,
    peak_mark_of,
    pressure_in,
)
from memplan.doctor.check import Check
from memplan.errors import MachineError
from memplan.procfs import ProcessMemory
from memplan.units import bytes_text

_PLANTED_BYTES = 16 << 20
_NOBODY = 65534
_HIDING = re.compile(r" - proc \S+ \S*hidepid=(\w+)")

# One step a line that it is sent, so that the group is read between them.
_CHILD = f"""
import mmap, sys
def told(word):
    print(word, flush=True)
    sys.stdin.readline()
told("ready")
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = mmap.mmap(-1, {_PLANTED_BYTES}, flags=flags)
told("held")
held.close()
told("given back")
"""


def control_group(above: Place | None = None) -> Check:
    """Makes a group (below ``above``, or ours), plants 16 MiB in a child in it, reads, removes it."""
    try:
        group = make_group(None, above=above)
    except MachineError as error:
        return _no_group(error.message.partition(": ")[2])
    version = group.place.version
    try:
        mark = peak_mark_of(group.place)
        if mark is None:
            return _no_group(f"{version}, without memory.peak", remedy="Linux 5.19 or newer")
        seen_bytes, forgotten_bytes = _planted(group, mark)
    except OSError as error:
        return _no_group(str(error))
    finally:
        group.remove()
    found = f"{version}, charged {bytes_text(max(seen_bytes, 0))} for 16.0 MiB"
    if seen_bytes < 0.95 * _PLANTED_BYTES:
        return _no_group(found)
    if forgotten_bytes < _PLANTED_BYTES // 2:
        return Check(
            name="control group",
            state="note",
            found=f"{found}; its mark cannot be reset",
            means="a second witness of the peak, loading included, and --memory-limit",
            remedy="Linux 6.12 or newer, to tell serving from loading",
        )
    return Check(
        name="control group",
        state="yes",
        found=f"{found}, and forgot them",
        means="a group for each engine: a second witness of its peak, and --memory-limit",
    )


def _no_group(
    found: str,
    *,
    remedy: str = "run as root, or as `systemd-run --user --scope -p Delegate=yes memplan …`",
) -> Check:
    return Check(
        name="control group",
        state="no",
        found=found,
        means="no second witness of a peak, no --memory-limit, and refaults go unseen",
        remedy=remedy,
    )


def _planted(group: Group, mark: PeakMark) -> tuple[int, int]:
    """By how much the mark rose for the planted bytes, and fell when it was reset after them.

    Raises OSError when the child or the group's files fail.
    """
    command = group.joining([sys.executable, "-S", "-E", "-c", _CHILD])
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        memory = GroupMemory(group.place)
        try:
            child.stdout.readline()
            before_bytes = memory.read_charge().get("cgroup.current", 0)
            print(file=child.stdin, flush=True)
            child.stdout.readline()
            peak_bytes = mark.read()
            print(file=child.stdin, flush=True)
            child.stdout.readline()
            mark.reset()
            return peak_bytes - before_bytes, peak_bytes - mark.read()
        finally:
            memory.close()
            child.kill()


def other_processes() -> Check:
    """Reads a process of another user: as root a child that it makes, else the first process."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    procs = [line for line in mounts if " /proc " in line]
    hiding = _HIDING.search(procs[-1]) if procs else None  # the last mount covers those before
    told = f"hidepid={hiding.group(1)}" if hiding else "no hidepid"
    try:
        user = _read_another_user()
    except OSError as error:
        return _may_be_hidden("no", f"{told}: {error}")
    if user is None and hiding:
        return _may_be_hidden("note", f"{told}; no process of another user to try it on")
    return Check(
        name="other processes",
        state="yes",
        found=f"{told}; no process of another user to try it on"
        if user is None
        else f"{told}; memory of a process of user {user} was read",
        means="an engine's children are in the timeline, whoever they run as",
    )


def _may_be_hidden(state: Literal["no", "note"], found: str) -> Check:
    return Check(
        name="other processes",
        state=state,
        found=found,
        means="children of an engine that run as another user are missing from timeline and peaks "
        "(process_hidden)",
        remedy="run memplan as root, or mount /proc with hidepid=0",
    )


def _read_another_user() -> int | None:
    """The user whose process was read; None where there is none to try.

    Raises OSError where it could not be read.
    """
    if os.geteuid() != 0:
        user = Path("/proc/1").stat().st_uid
        with ProcessMemory(1) as first:
            first.read()
        return None if user == os.geteuid() else user
    try:
        child = subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE, user=_NOBODY)
    except OSError:  # a user namespace that has no other users
        return None
    with child, ProcessMemory(child.pid) as memory:
        memory.read()
    return _NOBODY


def memory_pressure(path: Path = Path("/proc/pressure/memory")) -> Check:
    try:
        stalled_us = pressure_in(path.read_text()).get("full")
        why = f"{path} says nothing of full stalls"
    except OSError as error:
        stalled_us, why = None, str(error)
    if stalled_us is None:
        return Check(
            name="memory pressure",
            state="no",
            found=why,
            means="stalls for memory go unseen: under a limit they look like a slow engine",
            remedy="a kernel with CONFIG_PSI, booted with psi=1",
        )
    return Check(
        name="memory pressure",
        state="yes",
        found=f"all tasks stood still for {stalled_us / 1e6:.2f} s since the machine started",
        means="a run that waits for memory says so (memory_pressure)",
    )
