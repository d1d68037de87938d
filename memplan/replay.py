"""The one loop: requests × engine × probes → recording.

A profile is a replay of a ladder, so both commands end here. The loop sends what is due, samples
what is due, writes down what the engine says, and never decides what a figure means.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from memplan import deaths
from memplan.clock import Clock
from memplan.engines import Died, Ended, Engine, Noted, Planted, SegmentClosed
from memplan.errors import EngineError
from memplan.probes import Probe
from memplan.procfs import ProcessMemory
from memplan.recording import RunWriter
from memplan.records import (
    EndReason,
    EngineFacts,
    Request,
    RequestRecord,
    RunEnd,
    Sample,
)
from memplan.wear import Limit, Wear
from memplan.workload.due import Due
from memplan.workload.ladder import Wave
from memplan.workload.prompts import prompt_token_ids
from memplan.workload.retries import RetryPolicy


class Watcher(Protocol):
    """Sees how far a run is; draws it or not."""

    def engine_starting(self, wave: str) -> None: ...

    def wave_started(self, wave: Wave) -> None: ...

    def request_ended(self, request: Request) -> None: ...

    def sampled(self, sample: Sample, in_flight: int) -> None: ...

    def scored(self, done: int, total: int) -> None:
        """Tokens of the text that answers are compared over, after the run."""
        ...


class StopFlag:
    """Set by the first Ctrl-C: the recording is ended properly, and in-flight requests are not
    waited for."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


def replay(
    waves: Sequence[Wave],
    *,
    open_engine: Callable[[int], Engine],
    probes: Sequence[Probe],
    writer: RunWriter,
    clock: Clock,
    epoch_s: float,
    sample_period_s: float,
    stop: StopFlag,
    watcher: Watcher,
    restarts: int = 0,
    recycle_after: int | None = None,
    recycle_after_bytes: int | None = None,
    retries: RetryPolicy | None = None,
) -> RunEnd:
    """Runs the waves in order and returns the end that was recorded.

    Within a wave requests are sent at their times, whatever the engine does (open loop), but for those
    that follow another (closed loop); the next wave starts when the last one has ended. ``open_engine``
    gets the number of the engine start. An engine that dies is started again ``restarts`` times at
    most; then the run ends. One in which ``recycle_after`` requests have ended, or which has grown by
    ``recycle_after_bytes``, gets no more; when it has none in flight it is stopped, and a fresh one goes
    on with the queue. What failed or was rejected is asked again as ``retries`` says.
    """
    writer.schedule([request for wave in waves for request in wave.requests])
    run = EngineRun(
        open_engine,
        probes,
        writer,
        clock,
        epoch_s,
        sample_period_s,
        stop,
        watcher,
        restarts,
        Wear(requests=recycle_after, grown_bytes=recycle_after_bytes),
        retries=retries,
    )
    try:
        for wave in waves:
            if not run.is_over:
                run.wave(wave)
    finally:
        run.stop_engine()
    return run.end()


class EngineRun:
    """One engine after another under its requests, and the writer that keeps what they say."""

    def __init__(
        self,
        open_engine: Callable[[int], Engine],
        probes: Sequence[Probe],
        writer: RunWriter,
        clock: Clock,
        epoch_s: float,
        sample_period_s: float,
        stop: StopFlag,
        watcher: Watcher,
        restarts: int,
        wear: Wear,
        heard: Callable[[RequestRecord], None] = lambda _: None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """``heard`` is told what became of each request that an engine was given."""
        self._heard = heard
        self._retries = retries
        self._open_engine = open_engine
        self._probes = probes
        self._writer = writer
        self._clock = clock
        self._epoch_s = epoch_s
        self._sample_period_s = sample_period_s
        self._stop = stop
        self._watcher = watcher
        self._engine: Engine | None = None
        self.facts: EngineFacts | None = None
        self._engine_starts = 0
        self.outstanding: dict[str, tuple[Request, RequestRecord]] = {}
        self._due = Due((), 0.0)
        self._cancels: list[tuple[float, str]] = []
        """A heap of when the users of outstanding requests give up."""
        self._next_sample_s = 0.0
        self.is_dead = False
        """The engine is, and was not started again."""
        self._restarts_left = restarts
        self._wear = wear
        self._cpu_began_s = time.process_time()
        self._wall_ahead_s = self._wall_ahead()
        """Of the run's own clock. It must be the same at the end."""

    @property
    def is_over(self) -> bool:
        return self._stop.is_set or (self.is_dead and not self._restarts_left)

    def wave(self, wave: Wave) -> None:
        if self.is_dead:
            self._restart_engine(wave, intended_s=())
        elif self._engine is None or wave.fresh:
            self.start_engine(wave)
        self._watcher.wave_started(wave)
        began_s = self._now_s()
        pending = self._due = Due(wave.requests, began_s)
        ready: tuple[str, list[int]] | None = None
        while (pending or self.outstanding) and not self.is_over:
            if self.is_dead:
                self._restart_engine(wave, pending.times_s)
                continue
            if self._wear.reached and not self.outstanding:
                self._recycle_engine(wave)
                continue
            engine = self.opened()
            now_s = self._now_s()
            may_send = not self._wear.reached
            while may_send and pending and pending.next_s <= now_s:
                request, due_s = pending.pop()
                prompt = self._prompt(request, ready)
                self.send(engine, request, prompt, due_s)
                now_s = self._now_s()
            if pending and (ready is None or ready[0] != pending.next.request_id):
                # Made before it is due, so that making it delays nothing.
                ready = pending.next.request_id, self._prompt(pending.next, None)
            self.sample_if_due(now_s)
            due_s = min(self._next_sample_s, self.cancel_due(engine, now_s))
            if may_send and pending:
                due_s = min(due_s, pending.next_s)
            self.take(engine.poll(max(0.0, due_s - self._now_s())))
        if not self.is_dead:
            # Marks of the whole life go with the engine.
            self._sample(is_quiet=not self.outstanding)

    def stop_engine(self) -> None:
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        self.take(engine.stop())
        for _, record in self.outstanding.values():
            self._writer.request(replace(record, outcome="unfinished", reason="run_ended"))
        self.outstanding.clear()

    def end(self) -> RunEnd:
        reason: EndReason = "finished"
        if self.is_dead:
            reason = "engine_died"
        elif self._stop.is_set:
            reason = "interrupted"
        with ProcessMemory("self") as own:
            client_peak_bytes = own.read()["host.hwm"]
        self._writer.flush_samples()
        end = RunEnd(
            reason=reason,
            ended_s=self._now_s(),
            client_cpu_s=time.process_time() - self._cpu_began_s,
            client_peak_bytes=client_peak_bytes,
            samples=self._writer.sample_count,
            wall_s=self._wall_s(),
        )
        self._writer.end(end)
        return end

    # --- steps -----------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._clock.now_s() - self._epoch_s

    def _wall_ahead(self) -> float | None:
        wall_s = self._clock.wall_s()
        return None if wall_s is None else wall_s - self._now_s()

    def _wall_s(self) -> float | None:
        """The run's duration by the wall clock."""
        wall_s = self._clock.wall_s()
        if wall_s is None or self._wall_ahead_s is None:
            return None
        return wall_s - self._wall_ahead_s

    def start_engine(self, wave: Wave, *, recycled_after: Limit | None = None) -> None:
        began_s = self._now_s()
        self.stop_engine()
        self._watcher.engine_starting(wave.name)
        self._engine = self._open_engine(self._engine_starts)
        self._engine_starts += 1
        self.facts = self._engine.start()
        if recycled_after is not None:
            self.facts = replace(
                self.facts, recycled_s=self._now_s() - began_s, recycled_after=recycled_after
            )
        self._wear.engine_started(self.facts)
        self._writer.engine(self.facts)
        for probe in self._probes:
            probe.attach(self.facts)

    def opened(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _prompt(self, request: Request, ready: tuple[str, list[int]] | None) -> list[int]:
        """Taken where it is ``ready``: (id, tokens)."""
        if ready is not None and ready[0] == request.request_id:
            return ready[1]
        assert self.facts is not None
        return prompt_token_ids(request, vocab_tokens=self.facts.vocab_tokens)

    def _restart_engine(self, wave: Wave, intended_s: Sequence[float]) -> None:
        """A new engine for a dead one, with the times of what is still to be sent.

        If it does not start, the run ends as the death left it.
        """
        self._restarts_left -= 1
        try:
            self.start_engine(wave)
        except EngineError as error:
            self._not_started_again("died", error)
            return
        self.is_dead = False
        late = sum(at_s <= self._now_s() for at_s in intended_s)
        self._writer.finding(deaths.restarted(late))

    def _recycle_engine(self, wave: Wave) -> None:
        """A fresh engine for one that has served its time; nothing is in flight."""
        self._sample(is_quiet=True)  # marks of the whole life go with the engine
        try:
            self.start_engine(wave, recycled_after=self._wear.reached)
        except EngineError as error:
            self.is_dead = True
            self._not_started_again("was recycled", error)

    def _not_started_again(self, fate: str, error: EngineError) -> None:
        self._restarts_left = 0
        self._writer.finding(deaths.not_started_again(fate, error))

    def send(self, engine: Engine, request: Request, prompt: list[int], intended_s: float) -> None:
        record = RequestRecord(
            request_id=request.request_id,
            outcome="unfinished",
            intended_s=intended_s,
            sent_s=self._now_s(),
        )
        self.outstanding[request.request_id] = (request, record)
        engine.submit(request, prompt)
        if request.cancel_after_s is not None:
            heapq.heappush(self._cancels, (intended_s + request.cancel_after_s, request.request_id))

    def cancel_due(self, engine: Engine, now_s: float) -> float:
        """Tells the engine of users who have given up; returns when the next one does."""
        while self._cancels and self._cancels[0][0] <= now_s:
            _, request_id = heapq.heappop(self._cancels)
            if request_id in self.outstanding:
                engine.cancel(request_id)
        return self._cancels[0][0] if self._cancels else math.inf

    def sample_if_due(self, now_s: float) -> None:
        if now_s < self._next_sample_s:
            return
        self._sample()
        # From now, not from the last due time: a late sampler does not burst to catch up.
        self._next_sample_s = now_s + self._sample_period_s

    def _sample(self, *, is_quiet: bool = False) -> None:
        values: dict[str, int] = {}
        for probe in self._probes:
            values |= probe.read(is_quiet=is_quiet)
        sample = Sample(t_s=self._now_s(), values=values)
        self._writer.sample(sample)
        self._watcher.sampled(sample, len(self.outstanding))

    def take(self, events: Sequence[object]) -> None:
        for event in events:
            match event:
                case SegmentClosed(segment=segment):
                    self._writer.segment(segment)
                    self._wear.segment_closed(segment)
                case Ended(record=record):
                    self._ended(record)
                case Planted(spike=spike):
                    self._writer.planted(spike)
                case Noted(finding=finding):
                    self._writer.finding(finding)
                case Died():
                    self._died(event)

    def _ended(self, record: RequestRecord) -> None:
        self._wear.request_ended()
        request, sent = self.outstanding.pop(record.request_id)
        whole = replace(record, intended_s=sent.intended_s, sent_s=sent.sent_s)
        self._writer.request(whole)
        self._heard(whole)
        if not self._asks_again(request, whole):
            self._watcher.request_ended(request)

    def _asks_again(self, request: Request, record: RequestRecord) -> bool:
        """Whether its client does; else those that follow it may come."""
        end_s = self._now_s() if record.end_s is None else record.end_s
        asked = self._retries.again(request, record) if self._retries is not None else None
        if asked is None:
            self._due.ended(request.request_id, end_s)
            return False
        again, wait_s = asked
        self._writer.scheduled(again)
        self._due.asked_again(again, end_s + wait_s, instead_of=request.request_id)
        return True

    def _died(self, death: Died) -> None:
        self.is_dead = True
        self._sample()
        now_s = self._now_s()
        word = "oom_killed" if death.out_of_memory else "engine_died"
        lost = list(self.outstanding)
        for request, record in self.outstanding.values():
            failed = replace(record, outcome="failed", reason=word, end_s=now_s)
            self._writer.request(failed)
            self._heard(failed)
            self._asks_again(request, failed)
        self.outstanding.clear()
        self._writer.finding(
            deaths.out_of_memory(death.out_of_memory, now_s, lost)
            if death.out_of_memory
            else deaths.died(death.reason, now_s, is_last=self.is_over)
        )
