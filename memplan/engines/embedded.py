"""Our side of an embedded engine: starts its worker process, sends requests, reads what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.engines import Died, Ended, EngineEvent, Planted, SegmentClosed
from memplan.engines.channel import Channel, ChannelClosedError
from memplan.errors import EngineError
from memplan.records import (
    EngineFacts,
    InFlight,
    PlantedSpike,
    Request,
    RequestRecord,
    Segment,
)
from memplan.specs import Deployment

_STOP_S = 20.0


class EmbeddedEngine:
    """The torch engine or the ballast engine, in a worker process of its own."""

    def __init__(self, deployment: Deployment, *, epoch_s: float, number: int, log: Path) -> None:
        self._deployment = deployment
        self._epoch_s = epoch_s
        self._number = number
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._backlog: list[EngineEvent] = []

    def start(self) -> EngineFacts:
        config = self._config()
        ours, theirs = Channel.pair()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "memplan.engines.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is memplan's to handle
            )
        theirs.close()
        self._channel = ours
        try:
            ours.send(config)
            return self._await_ready(ours)
        except ChannelClosedError as error:
            raise EngineError(
                f"the {self._deployment.engine} engine stopped while it was starting "
                f"({self._last_words()})",
                hint=f"its whole output: {self._log}",
            ) from error
        except BaseException:
            self._kill()
            raise

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        message = {
            "type": "submit",
            "request_id": request.request_id,
            "prompt": list(prompt),
            "output_tokens": request.output_tokens,
        }
        try:
            self._opened().post(message)
        except ChannelClosedError:
            return  # the next poll says that the engine died

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        if not self._backlog:
            self._receive(timeout_s)
        events, self._backlog = tuple(self._backlog), []
        return events

    def stop(self) -> tuple[EngineEvent, ...]:
        if self._channel is None or self._process is None:
            return ()
        deadline_s = time.monotonic() + _STOP_S
        with contextlib.suppress(ChannelClosedError):
            self._channel.post({"type": "stop"})  # a busy worker cannot hold us up
        while time.monotonic() < deadline_s:
            self._receive(0.5)
            if any(isinstance(event, Died) for event in self._backlog):
                break
        events = tuple(e for e in self._backlog if not isinstance(e, Died))
        self._kill()
        return events

    # --- steps -----------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        resolved = self._deployment.resolved()
        config: dict[str, Any] = {
            "engine": self._deployment.engine,
            "settings": resolved["settings"],
            "script": resolved.get("script"),
            "self_test": resolved.get("self_test"),
            "epoch_s": self._epoch_s,
            "engine_start": self._number,
        }
        if self._deployment.engine == "torch":
            from memplan.engines.torch.prepare import prepared_folder

            config["model_folder"] = str(prepared_folder(self._deployment))
        return config

    def _environment(self) -> dict[str, str]:
        settings = self._deployment.settings
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
        hook = self._tensor_hook(settings.env) if self._deployment.engine == "torch" else {}
        return {**os.environ, **quiet, **threads, **settings.env, **hook}

    def _tensor_hook(self, env: Mapping[str, str]) -> dict[str, str]:
        from memplan.engines.torch.live_tensors import REASON, find_hook
        from memplan.engines.torch.prepare import cache_folder

        hook = find_hook(cache_folder())
        if hook.library is None:
            return {REASON: hook.reason}
        theirs = env.get("LD_PRELOAD", os.environ.get("LD_PRELOAD", ""))
        return {"LD_PRELOAD": " ".join(filter(None, [str(hook.library), theirs]))}

    def _await_ready(self, channel: Channel) -> EngineFacts:
        while True:
            for message in channel.receive(None):
                match message["type"]:
                    case "ready":
                        return _facts(message["facts"])
                    case "fault":
                        raise EngineError(
                            f"the {self._deployment.engine} engine could not start: "
                            f"{message['text']}",
                            hint=f"its whole output: {self._log}",
                        )
                    case _:
                        self._backlog.append(_event(message))

    def _receive(self, timeout_s: float) -> None:
        try:
            self._backlog += [_event(m) for m in self._opened().receive(timeout_s)]
        except ChannelClosedError:
            if not any(isinstance(event, Died) for event in self._backlog):
                self._backlog.append(Died(reason=self._last_words()))

    def _opened(self) -> Channel:
        assert self._channel is not None, "start() comes first"
        return self._channel

    def _last_words(self) -> str:
        """How the worker ended, in words: its signal, or the last line that it printed."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            return "its channel closed while the process lives on"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = self._log.read_text(errors="replace").strip().splitlines() if code else []
        return f"exit code {code}" + (f": {lines[-1][:200]}" if lines else "")

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            try:
                self._process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _event(message: dict[str, Any]) -> EngineEvent:
    match message["type"]:
        case "segment":
            fields = message["segment"]
            flights = [
                InFlight(request_id=r, kv_used_bytes=u, kv_reserved_bytes=v, tokens=t)
                for r, u, v, t in fields["in_flight"]
            ]
            return SegmentClosed(segment=Segment(**{**fields, "in_flight": tuple(flights)}))
        case "ended":
            return Ended(record=RequestRecord(**message["record"]))
        case "fault":
            return Died(reason=message["text"])
        case "planted":
            del message["type"]
            return Planted(spike=PlantedSpike(**message))
        case other:
            raise EngineError(f"the worker said {other!r}", hint="please report this")


def _facts(fields: dict[str, Any]) -> EngineFacts:
    return EngineFacts(**{**fields, "pids": tuple(fields["pids"])})
