"""A server as our child process: in a control group of its own, watched, and gone when we are."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from memplan.cgroups import Group, Place, make_group
from memplan.engines import Died, OutOfMemory
from memplan.engines.endings import ending_text
from memplan.errors import EngineError, MachineError

_KEEPER = Path(__file__).with_name("keeper.py")
_STOP_S = 15.0
_STARTED_S = 10.0


class Child:
    """Raises EngineError where the command cannot be run, MachineError where its limit cannot be set.

    ``group_text`` says which control group it has, or why none.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        limit_bytes: int | None,
        above: Place | None,
    ) -> None:
        self._log = log
        self.group: Group | None = None
        self._exit_code: int | None = None
        try:
            self.group = make_group(limit_bytes, above=above)
            self.group_text = self.group.text()
        except MachineError as error:
            if limit_bytes is not None:
                raise
            self.group_text = f"none: {error.message}"
        whole = self.group.joining(command) if self.group else list(command)
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), *whole],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **env},
                start_new_session=True,  # Ctrl-C is memplan's to handle
            )
        self.pid = self._started(command[0])

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        if self._exit_code is None:
            self._hear(0.0)
        return self._exit_code

    def printed(self) -> str:
        """What it has printed since it was started."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def death(self) -> Died:
        """How it ended, in words, once it has."""
        code = self._exit_code
        gone = "its keeper ended before it"
        reason = gone if code is None else ending_text(code, self.printed())
        return Died(reason=reason, out_of_memory=self._out_of_memory())

    def stop(self) -> None:
        """Asks it to end, then ends it; nothing of it is left."""
        with contextlib.suppress(OSError):
            assert self._keeper.stdin is not None
            self._keeper.stdin.write(b"stop\n")
            self._keeper.stdin.flush()
        deadline_s = time.monotonic() + _STOP_S
        while self.exit_code is None and time.monotonic() < deadline_s:
            self._hear(deadline_s - time.monotonic())
        self._close()

    def kill(self) -> None:
        self._close()

    # --- steps -----------------------------------------------------------------------------

    def _started(self, program: str) -> int:
        line = self._line(_STARTED_S)
        word, _, rest = line.partition(" ")
        if word == "pid":
            return int(rest)
        self._close()
        raise EngineError(
            f"{program} cannot be run: {rest or 'its keeper did not start'}",
            hint=f"its whole output: {self._log}",
        )

    def _hear(self, wait_s: float) -> None:
        line = self._line(wait_s)
        if line.startswith("exit "):
            self._exit_code = int(line.removeprefix("exit "))
        elif self._keeper.poll() is not None and self._exit_code is None:
            self._exit_code = (
                -signal.SIGKILL
            )  # somebody killed the keeper; its children went with it
            self._close()

    def _line(self, wait_s: float) -> str:
        """What the keeper says, waiting at most so long; each of its words is one write."""
        assert self._keeper.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._keeper.stdout, selectors.EVENT_READ)
            if not ready.select(max(0.0, wait_s)):
                return ""
        return os.read(self._keeper.stdout.fileno(), 256).decode().strip()

    def _out_of_memory(self) -> OutOfMemory | None:
        """Whether the kernel killed one of its processes for memory; it need not be the first one."""
        if self.group is None or not self.group.oom_kills():
            return None
        return OutOfMemory(
            limit_bytes=self.group.limit_bytes, charged_peak_bytes=self.group.peak_bytes()
        )

    def _close(self) -> None:
        """The end of its standard input tells the keeper to kill whatever is left."""
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._keeper.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        if self.group is not None:
            self.group.remove()
            self.group = None
