"""Runs a server and sees to it that nothing of it outlives memplan: ``python keeper.py COMMAND…``.

It takes in what its command's descendants leave behind when they die (PR_SET_CHILD_SUBREAPER). Its
standard output says ``pid N`` and later ``exit CODE`` (negative: a signal). When its standard input
ends, because memplan asks or was killed, every descendant is killed. Only the standard library, and
nothing of memplan: it is there for as long as the server, and small.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time

_SUBREAPER = 36  # prctl(2)
_LOOK_S = 0.05
_TERM_S = 5.0


def main() -> None:
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        server = subprocess.Popen(
            sys.argv[1:], stdin=subprocess.DEVNULL, stdout=2, stderr=2, restore_signals=True,
            start_new_session=True, preexec_fn=_default_signals,
        )  # fmt: skip
    except OSError as error:
        _say(f"none {error.strerror}")
        return
    _say(f"pid {server.pid}")
    inputs = selectors.DefaultSelector()
    inputs.register(0, selectors.EVENT_READ)
    code = None
    while code is None:
        if inputs.select(_LOOK_S):
            word = os.read(0, 64)
            if not word:
                _kill_all()
                return
            os.kill(server.pid, signal.SIGTERM)
            _wait(server, _TERM_S)
        code = server.poll()
    _kill_all()
    _say(f"exit {code}")


def _default_signals() -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(one, signal.SIG_DFL)


def _wait(server: "subprocess.Popen[bytes]", most_s: float) -> None:
    try:
        server.wait(most_s)
    except subprocess.TimeoutExpired:
        _kill_all()
        server.wait()


def _kill_all() -> None:
    """Those who start others while they are killed are found in the next round."""
    while True:
        found = _descendants()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _descendants() -> list[int]:
    """From /proc alone: a process whose parent has died is our own child now."""
    parents = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs 2 MiB here
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _say(word: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{word}\n".encode())


if __name__ == "__main__":
    main()
