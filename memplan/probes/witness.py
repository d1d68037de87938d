"""The witness: a small C program that reads the engine's resident bytes at 1 kHz into its own file.

It is the third word on a peak, after the kernel's mark and the timeline. It resets nothing and decides
nothing; where it cannot run, ``start`` says why.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from memplan.compiled import Compiled, compile_once
from memplan.records import EngineFacts, Finding

PERIOD_S = 1e-3
_SOURCE = Path(__file__).with_name("fast_sampler.c")
_STOP_S = 5.0


def compile_sampler(cache: Path) -> Compiled:
    return compile_once(_SOURCE, "program", cache)


class WitnessProbe:
    """Follows the engine as other probes do; what it reads goes to a file and not through memplan."""

    def __init__(self, path: Path, *, epoch_s: float, cache: Path) -> None:
        self._path = path
        self._epoch_s = epoch_s
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Finding | None:
        """Starts the sampler, which waits for an engine. A finding says why there is none."""
        sampler = compile_sampler(self._cache)
        if sampler.path is None:
            return _none(sampler.reason)
        numbers = [str(round(PERIOD_S * 1e9)), str(round(self._epoch_s * 1e9))]
        try:
            self._process = subprocess.Popen(
                [str(sampler.path), str(self._path), *numbers],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is memplan's to handle
            )
        except OSError as error:
            return _none(f"{sampler.path} could not be run: {error.strerror}")
        return None

    def attach(self, facts: EngineFacts) -> None:
        self.follow(facts.pids)

    def follow(self, pids: tuple[int, ...]) -> None:
        """These and their descendants from now on, and nobody else."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # it is gone: its file ends before the run does
            self._process.stdin.write(" ".join(map(str, pids)).encode() + b"\n")
            self._process.stdin.flush()

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        return {}

    def stop(self) -> None:
        """Ends the sampler; all that it read is in its file then."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:  # its disk does not answer
            process.kill()
            process.wait()


def _none(reason: str) -> Finding:
    return Finding(
        code="no_witness",
        text=f"No 1 kHz sampler stood beside the segments ({reason}): a peak that something else took "
        "away from them shows only in the timeline, which sees few short ones.",
        hint="Install a C compiler (apt-get install gcc) and run again.",
    )
