"""Drives a server over HTTP and measures it from outside; to a replay it is an engine like any other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from memplan.cgroups import Place
from memplan.engines import Died, Ended, EngineEvent, Noted, SegmentClosed
from memplan.engines.allocator.preload import allocator_environment
from memplan.engines.servers import start_up
from memplan.engines.servers.child import Child
from memplan.engines.servers.client import HttpClient
from memplan.engines.servers.described import Server, ServerFacts
from memplan.engines.servers.flight import CANCELLED, Flight, Kv
from memplan.engines.servers.outside_meter import OutsideMeter
from memplan.engines.servers.reply import Reply
from memplan.engines.witnessed import weight_files_state, with_charges
from memplan.errors import EngineError
from memplan.records import EngineFacts, Finding, Request
from memplan.specs import Deployment

_GAUGES_EVERY_S = 0.5
_DEATH_IS_KNOWN_S = 0.5
_TICK_S = 0.05
_LOOK_EVERY_S = 0.02
_IDLE_SEGMENT_S = 1.0
_OWN_FILES = 128
_MOST_CONNECTIONS = 25_000
"""To one address and port there are about 28,000 local ports (ip_local_port_range)."""


class ServerEngine:
    """``server`` says what kind it is; one that memplan starts is a Child, an endpoint is not."""

    def __init__(
        self,
        deployment: Deployment,
        server: Server,
        *,
        epoch_s: float,
        number: int,
        log: Path,
        above: Place | None,
    ) -> None:
        assert deployment.server is not None
        self._deployment = deployment
        self._spec = deployment.server
        self._server = server
        self._epoch_s = epoch_s
        self._number = number
        self._log = log
        self._above = above
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._child: Child | None = None
        self._client: HttpClient | None = None
        self._meter: OutsideMeter | None = None
        self._kv = Kv(bytes_per_token=0, block_tokens=1)
        self._slots = deployment.settings.max_requests
        self._running: dict[str, Flight] = {}
        """As many as the server has slots, in the order in which they came; the rest waits."""
        self._waiting: deque[Flight] = deque()
        self._touched: dict[str, Flight] = {}
        """Those that ran in the open segment."""
        self._doubtful: list[Flight] = []
        self._gauges: dict[str, int] = {}
        self._gauges_due_s = self._look_due_s = 0.0
        self._opened_s = 0.0
        self._backlog: list[EngineEvent] = []
        self._is_dead = False
        self._has_noted: set[str] = set()

    def start(self) -> EngineFacts:
        self._most_connections = _allow_many_connections()
        try:
            if self._deployment.engine == "endpoint":
                assert self._spec.url is not None
                return self._ready(self._spec.url, began_s=time.monotonic())
            return self._launched()
        except BaseException:
            self._end()
            raise

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        assert self._client is not None
        self._cut()
        flight = self._flight(request, len(prompt), self._over)
        self._waiting.append(flight)
        self._admit()
        body = json.dumps(self._server.body(request, prompt)).encode()
        self._client.post(self._server.path, body, flight)

    def cancel(self, request_id: str) -> None:
        """Its connection is closed, as a client's is whose user has gone."""
        flights = (*self._running.values(), *self._waiting)
        for flight in [one for one in flights if one.request.request_id == request_id]:
            self._give_up(flight, CANCELLED, self._now_s())

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        deadline_s = time.monotonic() + max(0.0, timeout_s)
        while True:
            self._run_loop(min(_TICK_S, deadline_s - time.monotonic()))
            self._tick()
            if self._backlog or time.monotonic() >= deadline_s:
                break
        events, self._backlog = tuple(self._backlog), []
        return events

    def stop(self) -> tuple[EngineEvent, ...]:
        if self._client is not None and self._client.most_waiting:
            self._note(
                "connections_exhausted",
                f"Up to {self._client.most_waiting:,} requests waited for a connection: this machine "
                f"allows memplan {self._most_connections:,}. They were sent late, and their latency "
                "includes it.",
                "Raise the limit of open files (ulimit -n), or replay with --dilation.",
            )
        self._cut(is_last=True)
        self._end()
        events = tuple(one for one in self._backlog if not isinstance(one, Died))
        self._backlog = []
        return events

    # --- start-up --------------------------------------------------------------------------

    def _launched(self) -> EngineFacts:
        """Another port where somebody else was quicker to take the free one."""
        for last in (False, True):
            began_s, port = time.monotonic(), _free_port()
            files_state = weight_files_state(self._server.weight_files())
            self._child = Child(
                self._server.command(port),
                env={
                    **allocator_environment(self._deployment.settings),
                    **self._server.environment(),
                },
                log=self._log,
                limit_bytes=self._deployment.settings.memory_limit_bytes,
                above=self._above,
            )
            try:
                facts = self._ready(f"http://127.0.0.1:{port}", began_s=began_s)
            except EngineError:
                if last or not start_up.is_port_taken(self._child.printed()):
                    raise
                if self._client is not None:
                    self._client.close()
                self._child.kill()
                continue
            return replace(facts, start={**facts.start, **files_state})
        raise AssertionError("one of two tries returned or raised")

    def _ready(self, url: str, *, began_s: float) -> EngineFacts:
        headers = start_up.headers_of(self._spec)
        self._client = HttpClient(
            url, loop=self._loop, headers=headers, most_connections=self._most_connections
        )
        talk = start_up.Talk(
            self._client,
            self._server,
            child=self._child,
            run_loop=self._run_loop,
            deployment=self._deployment,
        )
        answers = talk.await_ready()
        printed = self._child.printed() if self._child else ""
        try:
            described = self._server.facts(answers, printed)
        except (KeyError, ValueError, TypeError) as error:
            raise EngineError(
                f"the {self._deployment.engine} engine says of itself what memplan cannot read "
                f"({type(error).__name__}: {error})",
                hint=f"its version may be too new or too old; its whole output: {self._log}",
            ) from error
        load_s = time.monotonic() - began_s
        pids = self._pids()
        loaded = start_up.read_marks(pids)
        self._kv = Kv(
            bytes_per_token=described.kv_bytes_per_token, block_tokens=described.kv_block_tokens
        )
        self._slots = described.max_requests
        talk.prove(self._flight, described)
        return self._facts(described, pids, loaded, load_s)

    def _pids(self) -> tuple[int, ...]:
        return (self._child.pid,) if self._child else tuple(self._spec.memory.pids)

    def _facts(
        self,
        described: ServerFacts,
        pids: tuple[int, ...],
        loaded: Mapping[str, int],
        load_s: float,
    ) -> EngineFacts:
        settings = dict(described.settings)
        idle: dict[str, int] = {}
        if pids:
            self._meter = start_up.open_meter(pids, epoch_s=self._epoch_s, number=self._number)
            segment = self._meter.close("warmup")
            self._backlog.append(SegmentClosed(segment=segment))
            everyone = self._meter.all_pids()
            idle = {
                **segment.gauges,
                **start_up.weights_resident(everyone, described),
                **start_up.proportional_of(everyone),
            }
            settings["segment_peaks"] = (
                "exact" if self._meter.is_exact else "sampled at segment ends"
            )
            settings["segments_closed"] = "from outside, at requests' ends and every 50 ms"
        if described.kv_pool_bytes:
            idle["engine.kv_pool"] = described.kv_pool_bytes
        settings["cgroup"] = (
            self._child.group_text if self._child else "none: not started by memplan"
        )
        self._opened_s = self._now_s()
        facts = EngineFacts(
            engine=self._deployment.engine,
            version=described.version,
            engine_start=self._number,
            ready_s=self._now_s(),
            pids=pids,
            device=described.device,
            vocab_tokens=described.vocab_tokens,
            context_tokens=described.context_tokens,
            max_requests=described.max_requests,
            kv_kind="reserved",
            kv_bytes_per_token=described.kv_bytes_per_token,
            kv_pool_tokens=described.kv_pool_tokens,
            kv_block_tokens=described.kv_block_tokens,
            weights_bytes=described.weights_bytes,
            weights_mapped_bytes=sum(p.stat().st_size for p in described.mapped_files),
            start={},
            loaded={k: v for k, v in loaded.items() if k != "host.hwm"},
            load_peak={k: v for k, v in loaded.items() if k == "host.hwm"},
            idle=idle,
            load_s=load_s,
            settings=settings,
            predicted=described.predicted,
        )
        group = self._child.group if self._child else None
        return facts if group is None else with_charges(facts, group)

    # --- serving ---------------------------------------------------------------------------

    def _flight(
        self, request: Request, prompt_tokens: int, ended: Callable[[Flight], None]
    ) -> Flight:
        reply = Reply(
            api=self._server.api,
            asked_tokens=request.output_tokens,
            sent_tokens=prompt_tokens if self._server.sends_tokens else None,
        )
        return Flight(request, reply, now_s=self._now_s, heard=self._heard, ended=ended)

    def _heard(self, flight: Flight) -> None:
        self._cut()

    def _over(self, flight: Flight) -> None:
        if flight.is_doubtful and self._child is not None:
            self._leave(flight)
            self._doubtful.append(flight)
        else:
            self._end_flight(flight)
        self._wake.set()

    def _end_flight(self, flight: Flight) -> None:
        self._cut()
        self._leave(flight)
        self._backlog.append(Ended(record=flight.record()))
        if flight.verdict.outcome == "completed" and not flight.reply.has_usage:
            self._note(
                "usage_missing",
                "The server told no token counts: output tokens are events with text, at least one "
                "token each, and input tokens what was sent.",
                "Ask for them with a server that knows stream_options.include_usage.",
            )

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            flight = self._waiting.popleft()
            flight.admitted_s = self._now_s()
            self._running[flight.request.request_id] = flight
            if self._meter is not None:
                self._touched[flight.request.request_id] = flight

    def _leave(self, flight: Flight) -> None:
        if self._running.pop(flight.request.request_id, None) is not None:
            self._admit()
        elif flight in self._waiting:  # answered out of order, or given up
            self._waiting.remove(flight)

    def _cut(self, *, is_last: bool = False) -> None:
        """Ends the open segment with those that ran in it, unless it has just begun."""
        if self._meter is None or (self._meter.is_young and not is_last):
            return
        touched, self._touched = self._touched, dict(self._running)
        told = [flight.told(self._kv) for flight in touched.values()]
        gauges = {
            **self._gauges,
            "engine.kv_blocks": sum(part.kv_used_bytes for part, _, _ in told),
        }
        try:
            segment = self._meter.close(
                "step" if told else "idle",
                in_flight=tuple(part for part, _, _ in told),
                prefill_tokens=sum(read for _, read, _ in told),
                decode_tokens=sum(decoded for _, _, decoded in told),
                waiting=len(self._waiting),
                engine=gauges,
            )
        except ProcessLookupError:  # it has just died, and the next poll will say so
            self._meter = None
            return
        self._opened_s = segment.end_s
        self._backlog.append(SegmentClosed(segment=segment))

    def _tick(self) -> None:
        now_s = self._now_s()
        if self._meter is not None and self._meter.is_due:
            if self._touched or now_s - self._opened_s >= _IDLE_SEGMENT_S:
                self._cut()
            else:
                with contextlib.suppress(ProcessLookupError):
                    self._meter.slice()
        self._ask_gauges(now_s)
        if now_s >= self._look_due_s:  # a thousand polls a second need not all look
            self._look_due_s = now_s + _LOOK_EVERY_S
            self._give_up_late(now_s)
            self._look_whether_dead(now_s)

    def _give_up_late(self, now_s: float) -> None:
        for flight in [*self._running.values(), *self._waiting]:
            spoke_s = flight.reply.last_token_s
            if now_s - flight.sent_s > self._spec.request_timeout_s:
                word = "timed_out"
            elif spoke_s is not None and now_s - spoke_s > self._spec.stall_timeout_s:
                word = "stalled"
            else:
                continue
            self._give_up(flight, word, now_s)

    def _give_up(self, flight: Flight, word: str, now_s: float) -> None:
        assert self._client is not None
        self._client.abandon(flight)
        flight.fault, flight.end_s = word, now_s
        self._end_flight(flight)

    def _ask_gauges(self, now_s: float) -> None:
        if now_s < self._gauges_due_s or self._client is None or self._is_dead:
            return
        self._gauges_due_s = now_s + _GAUGES_EVERY_S
        for path in self._server.gauge_paths:
            asked = start_up.Asked(partial(self._take_gauges, path))
            self._client.get(path, asked)

    def _take_gauges(self, path: str, answer: bytes | None) -> None:
        if answer is not None:
            self._gauges |= self._server.gauges_of(path, answer)

    def _look_whether_dead(self, now_s: float) -> None:
        if self._child is not None and not self._is_dead and self._child.exit_code is not None:
            self._is_dead = True
            self._doubtful.clear()  # they went with it
            self._running.clear()
            self._waiting.clear()
            self._backlog.append(self._child.death())
        due = [f for f in self._doubtful if now_s - (f.end_s or 0.0) > _DEATH_IS_KNOWN_S]
        for flight in due:
            self._doubtful.remove(flight)
            self._end_flight(flight)

    def _note(self, code: str, text: str, hint: str) -> None:
        if code not in self._has_noted:
            self._has_noted.add(code)
            self._backlog.append(Noted(finding=Finding(code=code, text=text, hint=hint)))

    def _run_loop(self, seconds: float) -> None:
        """Until something happened, at most so long."""
        self._wake.clear()
        timer = self._loop.call_later(max(0.0, seconds), self._wake.set)
        self._loop.run_until_complete(self._wake.wait())
        timer.cancel()

    def _end(self) -> None:
        """Connections first: a server that is asked to end waits for its streams."""
        if self._client is not None:
            self._client.close()
            self._client = None
            if not self._loop.is_closed():
                self._run_loop(0.01)
        if self._child is not None:
            self._child.stop()
            self._child = None
        self._loop.close()

    def _now_s(self) -> float:
        return time.monotonic() - self._epoch_s


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _allow_many_connections() -> int:
    """As many as the system lets us have; memplan's own files need some, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(16, min(soft - _OWN_FILES, _MOST_CONNECTIONS))
