"""A /proc that hides other users' processes, in a mount and process namespace of its own."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

_NOBODY = 65534
_PR_SET_DUMPABLE = 4
_MOUNT = 'mount -t proc -o "hidepid=$0" proc /proc && exec "$@"'


def become_nobody() -> None:
    """For the rest of this process, with all its modules loaded: it may not reach Python's any more."""
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    # A change of user hides a process even from those of the same user, until it says otherwise.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)


def run_where_hidden(hidepid: int, code: str, *arguments: str) -> str:
    """What Python code printed, run as root and as the first process where /proc is so mounted.

    All that it leaves behind ends with it. Raises CalledProcessError.
    """
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", _MOUNT, str(hidepid), sys.executable, "-c", code, *arguments),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=60,
    )
    return done.stdout


@functools.cache
def why_nothing_can_be_hidden() -> str:
    """Empty where ``run_where_hidden`` works."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "hiding processes takes root and unshare"
    try:
        run_where_hidden(2, "")
    except subprocess.CalledProcessError as error:
        return f"no namespace with a /proc of its own: {error.stderr.strip()}"
    return ""
