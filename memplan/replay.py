"""The one loop: requests × engine × probes → recording.

A profile is a replay of a ladder, so both commands end here. The loop sends what is due, samples
what is due, writes down what the engine says, and never decides what a figure means.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from memplan.clock import Clock
from memplan.engines import Died, Ended, Engine, Planted, SegmentClosed
from memplan.probes import Probe
from memplan.procfs import ProcessMemory
from memplan.recording import RunWriter
from memplan.records import (
    EndReason,
    EngineFacts,
    Finding,
    Request,
    RequestRecord,
    RunEnd,
    Sample,
)
from memplan.workload.ladder import Wave
from memplan.workload.prompts import prompt_token_ids


class Watcher(Protocol):
    """Sees how far a run is; draws it or not."""

    def engine_starting(self, wave: str) -> None: ...

    def wave_started(self, wave: Wave) -> None: ...

    def request_ended(self, request: Request) -> None: ...

    def sampled(self, sample: Sample, in_flight: int) -> None: ...


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
) -> RunEnd:
    """Runs the waves in order and returns the end that was recorded.

    Within a wave requests are sent at their times, whatever the engine does (open loop); the next
    wave starts when the last one has ended. ``open_engine`` gets the number of the engine start.
    """
    writer.schedule([request for wave in waves for request in wave.requests])
    run = _Run(open_engine, probes, writer, clock, epoch_s, sample_period_s, stop, watcher)
    try:
        for wave in waves:
            if not run.is_over:
                run.wave(wave)
    finally:
        run.stop_engine()
    return run.end()


class _Run:
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
    ) -> None:
        self._open_engine = open_engine
        self._probes = probes
        self._writer = writer
        self._clock = clock
        self._epoch_s = epoch_s
        self._sample_period_s = sample_period_s
        self._stop = stop
        self._watcher = watcher
        self._engine: Engine | None = None
        self._facts: EngineFacts | None = None
        self._engine_starts = 0
        self._outstanding: dict[str, tuple[Request, RequestRecord]] = {}
        self._next_sample_s = 0.0
        self._has_died = False
        self._cpu_began_s = time.process_time()

    @property
    def is_over(self) -> bool:
        return self._has_died or self._stop.is_set

    def wave(self, wave: Wave) -> None:
        if self._engine is None or wave.fresh:
            self._start_engine(wave)
        engine, facts = self._engine, self._facts
        assert engine is not None and facts is not None
        self._watcher.wave_started(wave)
        began_s = self._now_s()
        pending = deque(wave.requests)
        prompt = _prompt(pending, facts)
        while (pending or self._outstanding) and not self.is_over:
            now_s = self._now_s()
            while pending and began_s + pending[0].arrival_s <= now_s:
                request = pending.popleft()
                self._send(engine, request, prompt, began_s + request.arrival_s)
                prompt = _prompt(pending, facts)
                now_s = self._now_s()
            self._sample_if_due(now_s)
            due_s = self._next_sample_s
            if pending:
                due_s = min(due_s, began_s + pending[0].arrival_s)
            self._take(engine.poll(max(0.0, due_s - self._now_s())))

    def stop_engine(self) -> None:
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        self._take(engine.stop())
        for _, record in self._outstanding.values():
            self._writer.request(replace(record, outcome="unfinished", reason="run_ended"))
        self._outstanding.clear()

    def end(self) -> RunEnd:
        reason: EndReason = "finished"
        if self._has_died:
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
        )
        self._writer.end(end)
        return end

    # --- steps -----------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._clock.now_s() - self._epoch_s

    def _start_engine(self, wave: Wave) -> None:
        self.stop_engine()
        self._watcher.engine_starting(wave.name)
        self._engine = self._open_engine(self._engine_starts)
        self._engine_starts += 1
        self._facts = self._engine.start()
        self._writer.engine(self._facts)
        for probe in self._probes:
            probe.attach(self._facts)

    def _send(self, engine: Engine, request: Request, prompt: list[int], intended_s: float) -> None:
        record = RequestRecord(
            request_id=request.request_id,
            outcome="unfinished",
            intended_s=intended_s,
            sent_s=self._now_s(),
        )
        self._outstanding[request.request_id] = (request, record)
        engine.submit(request, prompt)

    def _sample_if_due(self, now_s: float) -> None:
        if now_s < self._next_sample_s:
            return
        values: dict[str, int] = {}
        for probe in self._probes:
            values |= probe.read()
        sample = Sample(t_s=self._now_s(), values=values)
        self._writer.sample(sample)
        self._watcher.sampled(sample, len(self._outstanding))
        # From now, not from the last due time: a late sampler does not burst to catch up.
        self._next_sample_s = now_s + self._sample_period_s

    def _take(self, events: Sequence[object]) -> None:
        for event in events:
            match event:
                case SegmentClosed(segment=segment):
                    self._writer.segment(segment)
                case Ended(record=record):
                    self._ended(record)
                case Planted(spike=spike):
                    self._writer.planted(spike)
                case Died(reason=reason):
                    self._died(reason)

    def _ended(self, record: RequestRecord) -> None:
        request, sent = self._outstanding.pop(record.request_id)
        self._writer.request(replace(record, intended_s=sent.intended_s, sent_s=sent.sent_s))
        self._watcher.request_ended(request)

    def _died(self, reason: str) -> None:
        self._has_died = True
        now_s = self._now_s()
        for _, record in self._outstanding.values():
            failed = replace(record, outcome="failed", reason="engine_died", end_s=now_s)
            self._writer.request(failed)
        self._outstanding.clear()
        self._writer.finding(
            Finding(
                code="engine_died",
                text=f"The engine was gone after {now_s:.1f} s ({reason}); requests in flight "
                "failed and those after them were not sent.",
                hint="If the kernel killed it, lower max_requests or max_kv_tokens; its own "
                "output is in engine.log of the run folder.",
            )
        )


def _prompt(pending: deque[Request], facts: EngineFacts) -> list[int]:
    """The next prompt, made before it is due, so that making it delays nothing."""
    return prompt_token_ids(pending[0], vocab_tokens=facts.vocab_tokens) if pending else []
