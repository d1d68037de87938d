"""A server that was started, or is there, until it is known to answer; and what it holds then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from memplan.engines.endings import killed_while_loading
from memplan.engines.servers.child import Child
from memplan.engines.servers.client import HttpClient
from memplan.engines.servers.described import Server, ServerFacts
from memplan.engines.servers.flight import Flight
from memplan.engines.servers.outside_meter import OutsideMeter
from memplan.errors import EngineError, MachineError
from memplan.process_tree import family_of
from memplan.procfs import ProcessMemory, mapped_resident_bytes, proportional_bytes
from memplan.records import Request
from memplan.specs import Deployment
from memplan.specs.server import ServerSpec

_LOOK_EVERY_S = 0.05
_PROOF_TOKENS = 16
_PROOF_OUTPUT = 2
_PORT_TAKEN = re.compile(
    r"address already in use|couldn't bind|failed to bind|bind\(\)", re.IGNORECASE
)

FlightMaker = Callable[[Request, int, Callable[[Flight], None]], Flight]


class Asked:
    """An Exchange for one small answer; ``told`` gets it, or None where no status 200 came."""

    def __init__(self, told: Callable[[bytes | None], None]) -> None:
        self._told = told
        self.status: int | None = None
        self.answer = b""
        self.is_over = False

    def head(self, status: int, content_type: str) -> None:
        self.status = status

    def body(self, piece: bytes) -> None:
        self.answer += piece

    def over(self, fault: str | None) -> None:
        self.is_over = True
        is_whole = self.status == 200 and (fault is None or bool(self.answer))
        self._told(self.answer if is_whole else None)


class Talk:
    """The conversation before serving. Raises EngineError, saying what is wrong and what to do."""

    def __init__(
        self,
        client: HttpClient,
        server: Server,
        *,
        child: Child | None,
        run_loop: Callable[[float], None],
        deployment: Deployment,
    ) -> None:
        assert deployment.server is not None
        self._client = client
        self._server = server
        self._child = child
        self._run_loop = run_loop
        self._deployment = deployment
        self._spec = deployment.server

    def await_ready(self) -> Mapping[str, bytes]:
        """Until it takes requests; what it says on its gauge paths then, where it says anything."""
        patience_s = self._spec.start_timeout_s if self._child else 10.0
        deadline_s = time.monotonic() + patience_s
        while True:
            asked = self._ask(self._server.ready_path)
            if asked.status == 200:
                break
            if self._child is None and asked.status is not None:
                self._check_endpoint(asked.status)
                break
            self._check_alive()
            if time.monotonic() > deadline_s:
                raise self._never_ready(asked, patience_s)
            time.sleep(_LOOK_EVERY_S)
        if self._child is None and asked.status == 200:
            self._check_model(asked.answer)
        answers = {path: self._ask(path) for path in self._server.gauge_paths}
        return {path: one.answer for path, one in answers.items() if one.status == 200}

    def prove(self, flight_of: FlightMaker, described: ServerFacts) -> None:
        """A small request, twice: a server that says it is healthy need not be able to answer, and the
        first real one shall not pay for what is made on first use."""
        tokens = max(1, min(_PROOF_TOKENS, described.context_tokens - _PROOF_OUTPUT - 1))
        for number in (1, 2):
            over: list[Flight] = []
            request = Request(
                request_id=f"warmup-{number}", wave="", arrival_s=0.0, class_name="",
                input_tokens=tokens, output_tokens=_PROOF_OUTPUT,
            )  # fmt: skip
            ids = [
                1 + (number * 7919 + i * 31) % max(1, described.vocab_tokens - 1)
                for i in range(tokens)
            ]
            flight = flight_of(request, tokens, over.append)
            body = json.dumps(self._server.body(request, ids)).encode()
            self._client.post(self._server.path, body, flight)
            deadline_s = time.monotonic() + self._spec.request_timeout_s
            while not over and time.monotonic() < deadline_s:
                self._run_loop(_LOOK_EVERY_S)
                self._check_alive()
            verdict = flight.verdict if over else None
            if verdict is None or verdict.outcome != "completed":
                raise self._cannot_answer(verdict.reason if verdict else "timed_out")

    # --- steps -----------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"the {self._deployment.engine} engine"

    def _ask(self, path: str) -> Asked:
        asked = Asked(lambda _: None)
        self._client.get(path, asked)
        deadline_s = time.monotonic() + 10.0
        while not asked.is_over and time.monotonic() < deadline_s:
            self._run_loop(_LOOK_EVERY_S)
            if self._child is not None and self._child.exit_code is not None:
                break
        if not asked.is_over:
            self._client.abandon(asked)
        return asked

    def _check_alive(self) -> None:
        if self._child is None or self._child.exit_code is None:
            return
        death = self._child.death()
        killed = death.out_of_memory
        if killed is not None and killed.limit_bytes is not None:
            raise killed_while_loading(self._deployment.engine, killed)
        raise EngineError(
            f"{self._name} stopped while it was starting ({death.reason}){_why(self._child.printed())}",
            hint="its whole output is in engine.log of the run folder",
        )

    def _never_ready(self, asked: Asked, patience_s: float) -> EngineError:
        if self._child is None:
            return EngineError(
                f"{self._spec.url}: nothing answers there",
                hint="start the server, or correct server.url in model.yaml",
            )
        said = f"status {asked.status}" if asked.status else "no answer"
        return EngineError(
            f"{self._name} was not ready after {patience_s:g} s (its {self._server.ready_path}: {said})",
            hint="give it longer: server: {start_timeout: 30min}; its output is in engine.log",
        )

    def _check_endpoint(self, status: int) -> None:
        if status in (401, 403):
            raise EngineError(
                f"{self._spec.url}: refuses us (status {status}): the API key is wrong, or missing",
                hint="server: {api_key_env: NAME}, the environment variable that holds the key",
            )

    def _check_model(self, answer: bytes) -> None:
        """Where the server lists its models, ours must be one of them."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            names = [str(one["id"]) for one in json.loads(answer)["data"]]
            wanted = self._spec.model
            if wanted is not None and names and wanted not in names:
                raise EngineError(
                    f'{self._spec.url}: has no model "{wanted}", but {", ".join(names[:8])}',
                    hint="correct server.model in model.yaml",
                )

    def _cannot_answer(self, reason: str | None) -> EngineError:
        words = {
            "not_found": "has no such path or model (404)",
            "wrong_api_key": "refuses the API key",
            "connection_refused": "does not answer",
            "timed_out": "did not answer in time",
            "not_a_stream": "does not stream its answer",
        }
        hints = {
            "not_found": "server.url ends where /completions begins, mostly in /v1; see server.model",
            "wrong_api_key": "server: {api_key_env: NAME}, the environment variable with the key",
        }
        return EngineError(
            f"{self._name} {words.get(reason or '', f'failed its first request: {reason}')}",
            hint=hints.get(reason or "", "docs/server-engines.md, Outcomes, says what that means"),
        )


def headers_of(spec: ServerSpec) -> Mapping[str, str]:
    key = os.environ.get(spec.api_key_env or "", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_port_taken(printed: str) -> bool:
    return _PORT_TAKEN.search(printed) is not None


def read_marks(pids: Sequence[int]) -> dict[str, int]:
    """Sums over the trees of ``pids`` before any mark is set back: ``host.hwm`` is that of loading."""
    total: dict[str, int] = {}
    for pid in (one for root in pids for one in family_of(root)):
        with contextlib.suppress(OSError), ProcessMemory(pid) as memory:
            for name, size in memory.read().items():
                total[name] = total.get(name, 0) + size
    return total


def open_meter(pids: Sequence[int], *, epoch_s: float, number: int) -> OutsideMeter:
    """Raises MachineError where a process is gone or may not be read."""
    try:
        return OutsideMeter(pids, epoch_s=epoch_s, engine_start=number)
    except ProcessLookupError as error:
        raise MachineError(
            f"server.memory.pids: {', '.join(map(str, pids))}: no such process",
            hint="name the server's main process: pgrep -f",
        ) from error
    except PermissionError as error:
        raise MachineError(
            f"server.memory.pids: {', '.join(map(str, pids))}: belongs to another user",
            hint="run memplan as that user or as root, or read its control group or Prometheus",
        ) from error


def weights_resident(pids: Sequence[int], described: ServerFacts) -> dict[str, int]:
    """Of a server at rest: pages of its mapped weight files, and what it said it copied beside them."""
    mapped = sum(mapped_resident_bytes(pid, described.mapped_files) for pid in pids)
    # Replicas, and processes of one server, map the same pages.
    mapped = min(mapped, sum(path.stat().st_size for path in described.mapped_files))
    heap = sum(
        size
        for name, size in described.predicted.items()
        if name.startswith("model ") and "_Mapped" not in name and "CUDA" not in name
    )
    if not described.mapped_files and not heap and described.device == "cpu":
        heap = described.weights_bytes
    return {
        "engine.weights_resident": mapped + heap,
        "engine.weights_resident_mapped": mapped,
        "engine.weights_resident_heap": heap,
    }


def proportional_of(pids: Sequence[int]) -> dict[str, int]:
    """Of all processes of a server at rest: pages that they share count once. ``host.pss_file`` is the
    part of it that maps files."""
    sums: dict[str, int] = {}
    for name, part in (("host.pss", "Pss"), ("host.pss_file", "Pss_File")):
        with contextlib.suppress(ProcessLookupError):
            parts = [proportional_bytes(pid, part) for pid in pids]
            if parts and None not in parts:
                sums[name] = sum(one or 0 for one in parts)
    return sums


def _why(printed: str) -> str:
    """The line in which a server said what it did not like, if it is not the last one."""
    lines = [
        one.strip() for one in printed.splitlines() if re.search(r"\berror\b", one, re.IGNORECASE)
    ]
    return f": {lines[0][:200]}" if lines else ""
