"""Our side of an embedded engine: starts its worker process, sends requests, reads what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.cgroups import Group, Place, make_group
from memplan.compiled import Compiled, cache_folder
from memplan.engines import Died, Ended, EngineEvent, OutOfMemory, Planted, SegmentClosed
from memplan.engines.admission import adapter_of, class_bytes_of, pace_of, priority_of
from memplan.engines.allocator.preload import allocator_environment
from memplan.engines.channel import Channel, ChannelClosedError, packed
from memplan.engines.endings import ending_text, killed_while_loading
from memplan.engines.native_cuts import find_library
from memplan.engines.planted import with_library
from memplan.engines.raw_segments import RawSegment, TensorNames, fields_of, unpacked_segments
from memplan.engines.witnessed import (
    weight_files_state,
    with_charges,
    with_proportional,
    with_weight_files,
)
from memplan.errors import EngineError, MachineError
from memplan.records import (
    CUDA_SNAPSHOT,
    EngineFacts,
    InFlight,
    PlantedSpike,
    Request,
    RequestRecord,
    Segment,
    Slice,
)
from memplan.specs import Deployment

_STOP_S = 20.0


class EmbeddedEngine:
    """The torch engine or the ballast engine, in a worker process of its own."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        epoch_s: float,
        number: int,
        log: Path,
        above: Place | None = None,
    ) -> None:
        self._above = above
        self._deployment = deployment
        self._epoch_s = epoch_s
        self._number = number
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._group: Group | None = None
        self._backlog: list[EngineEvent] = []
        self._said = WorkerWords(engine_start=number)

    def start(self) -> EngineFacts:
        config = self._config()
        files_state = weight_files_state(self._weight_files(config))
        group_text = self._open_group()
        ours, theirs = Channel.pair()
        command = [sys.executable, "-m", "memplan.engines.worker", str(theirs.fileno())]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._group.joining(command) if self._group else command,
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
            facts = self._await_ready(ours)
            group_text = self._joined(group_text)
            facts = replace(facts, settings={**facts.settings, "cgroup": group_text})
            facts = with_proportional(with_weight_files(facts, files_state))
            return facts if self._group is None else with_charges(facts, self._group)
        except ChannelClosedError as error:
            words, killed = self._last_words(), self._out_of_memory()
            if killed is not None and killed.limit_bytes is not None:
                raise killed_while_loading(self._deployment.engine, killed) from error
            raise EngineError(
                f"the {self._deployment.engine} engine stopped while it was starting ({words})",
                hint=f"its whole output: {self._log}",
            ) from error
        except BaseException:
            self._kill()
            raise

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        message = {
            "type": "submit",
            "request_id": request.request_id,
            "prompt": packed(prompt),
            "output_tokens": request.output_tokens,
            "class_name": request.class_name,
            "priority": priority_of(request.labels),
            "adapter": adapter_of(request, self._deployment),
            "pace": pace_of(request, time.monotonic() - self._epoch_s),
        }
        self._post(message)

    def cancel(self, request_id: str) -> None:
        self._post({"type": "cancel", "request_id": request_id})

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        if not self._backlog:
            self._receive(timeout_s)
        events, self._backlog = tuple(self._backlog), []
        return events

    def stop(self) -> tuple[EngineEvent, ...]:
        if self._channel is None or self._process is None:
            self._remove_group()
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

    def _post(self, message: dict[str, Any]) -> None:
        try:
            self._opened().post(message)
        except ChannelClosedError:
            return  # the next poll says that the engine died

    def _open_group(self) -> str:
        """A control group if there can be one; says which, or why not. A limit cannot go without."""
        limit_bytes = self._deployment.settings.memory_limit_bytes
        try:
            self._group = make_group(limit_bytes, above=self._above)
        except MachineError as error:
            if limit_bytes is not None:
                raise
            return f"none: {error.message}"
        return self._group.text()

    def _joined(self, group_text: str) -> str:
        """``group_text``, unless the engine could not join its group."""
        assert self._process is not None
        if self._group is None or self._process.pid in self._group.pids():
            return group_text
        limit_bytes = self._group.limit_bytes
        self._remove_group()
        text = "the engine process may not join its control group"
        if limit_bytes is not None:
            raise MachineError(text, hint="run as root, or leave the memory limit out")
        return f"none: {text}"

    def _out_of_memory(self) -> OutOfMemory | None:
        """Whether the process, now ended, was killed by the kernel for memory."""
        assert self._process is not None
        killed = self._process.returncode == -signal.SIGKILL
        if self._group is None or not killed or not self._group.oom_kills():
            return None
        return OutOfMemory(
            limit_bytes=self._group.limit_bytes, charged_peak_bytes=self._group.peak_bytes()
        )

    def _remove_group(self) -> None:
        if self._group is not None:
            self._group.remove()
            self._group = None

    def _config(self) -> dict[str, Any]:
        resolved = self._deployment.resolved()
        settings: Any = resolved["settings"]
        self_test: Any = resolved.get("self_test")
        snapshot = str(self._log.parent / CUDA_SNAPSHOT) if settings["cuda_snapshot"] else None
        config: dict[str, Any] = {
            "engine": self._deployment.engine,
            "settings": {
                **settings,
                "cuda_snapshot": snapshot,
                "offload_file": self._offload_file(),
            },
            "class_bytes": class_bytes_of(self._deployment),
            "script": resolved.get("script"),
            "self_test": with_library(self_test),
            "epoch_s": self._epoch_s,
            "engine_start": self._number,
            "segment_library": _told(find_library(cache_folder())),
        }
        if self._deployment.engine == "torch":
            from memplan.engines.torch.lazy_files import lazy_files
            from memplan.engines.torch.prepare import prepared_folder

            config["settings"] |= lazy_files(self._deployment)
            config["model_folder"] = str(prepared_folder(self._deployment))
        return config

    def _offload_file(self) -> str:
        """Beside the log: the file has no name any more once the engine has opened it."""
        return str(self._log.parent / f"offload-{self._number}")

    def _weight_files(self, config: Mapping[str, Any]) -> tuple[Path, ...]:
        """None for engines that load no model."""
        if "model_folder" not in config:
            return ()
        from memplan.engines.torch.prepare import weight_files

        return weight_files(Path(config["model_folder"]))

    def _environment(self) -> dict[str, str]:
        settings = self._deployment.settings
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
        env = allocator_environment(settings)
        # The hook goes in front, and asks the allocator behind it how large a tensor's memory is.
        hook = self._tensor_hook(env) if self._deployment.engine == "torch" else {}
        return {**os.environ, **quiet, **threads, **env, **hook}

    def _tensor_hook(self, env: Mapping[str, str]) -> dict[str, str]:
        from memplan.engines.torch.live_tensors import REASON, find_hook

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
                        self._backlog += self._said.events(message)

    def _receive(self, timeout_s: float) -> None:
        try:
            for message in self._opened().receive(timeout_s):
                self._backlog += self._said.events(message)
        except ChannelClosedError:
            if not any(isinstance(event, Died) for event in self._backlog):
                reason = self._last_words()
                self._backlog.append(Died(reason=reason, out_of_memory=self._out_of_memory()))

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
        return ending_text(code, self._log.read_text(errors="replace"))

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
        self._remove_group()


def _told(library: Compiled) -> dict[str, str | None]:
    """For the worker; the compiler runs here, not in the engine."""
    return {"path": str(library.path) if library.path else None, "reason": library.reason}


def segment_of(fields: Mapping[str, Any]) -> Segment:
    """What a meter told of a segment."""
    flights = [
        InFlight(
            request_id=request_id, kv_used_bytes=used, kv_reserved_bytes=reserved, tokens=tokens
        )
        for request_id, used, reserved, tokens in fields["in_flight"]
    ]
    slices = [Slice(end_s=end_s, peak_bytes=peak_bytes) for end_s, peak_bytes in fields["slices"]]
    return Segment(**{**fields, "in_flight": tuple(flights), "slices": tuple(slices)})


class WorkerWords:
    """What a worker says, understood."""

    def __init__(self, *, engine_start: int) -> None:
        self._engine_start = engine_start
        self._tensor_names: TensorNames | None = None

    def events(self, message: dict[str, Any]) -> list[EngineEvent]:
        """Of one message, in order."""
        match message["type"]:
            case "tensor_names":
                names = message["names"]
                self._tensor_names = TensorNames(*names) if names is not None else None
                return []
            case "segments":
                return [
                    SegmentClosed(segment=segment_of(self._fields_of(raw)))
                    for raw in unpacked_segments(message["packed"])
                ]
            case "ended":
                return [Ended(record=RequestRecord(**message["record"]))]
            case "fault":
                return [Died(reason=message["text"])]
            case "planted":
                return [Planted(spike=PlantedSpike(**_without_type(message)))]
            case other:
                raise EngineError(f"the worker said {other!r}", hint="please report this")

    def _fields_of(self, raw: RawSegment) -> dict[str, Any]:
        return fields_of(raw, self._tensor_names, engine_start=self._engine_start)


def _without_type(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "type"}


def _facts(fields: dict[str, Any]) -> EngineFacts:
    return EngineFacts(**{**fields, "pids": tuple(fields["pids"])})
