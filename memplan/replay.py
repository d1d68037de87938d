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
from memplan.engines import Died, Ended, Engine, OutOfMemory, Planted, SegmentClosed
from memplan.errors import EngineError
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
from memplan.units import bytes_text
from memplan.workload.ladder import Wave
from memplan.workload.prompts import prompt_token_ids

# Lost requests that a finding names; requests.jsonl has them all.
_TOLD = 5


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
    restarts: int = 0,
) -> RunEnd:
    """Runs the waves in order and returns the end that was recorded.

    Within a wave requests are sent at their times, whatever the engine does (open loop); the next
    wave starts when the last one has ended. ``open_engine`` gets the number of the engine start.
    An engine that dies is started again ``restarts`` times at most; then the run ends.
    """
    writer.schedule([request for wave in waves for request in wave.requests])
    run = _Run(
        open_engine, probes, writer, clock, epoch_s, sample_period_s, stop, watcher, restarts
    )
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
        restarts: int,
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
        self._is_dead = False
        """The engine is, and was not started again."""
        self._restarts_left = restarts
        self._cpu_began_s = time.process_time()

    @property
    def is_over(self) -> bool:
        return self._stop.is_set or (self._is_dead and not self._restarts_left)

    def wave(self, wave: Wave) -> None:
        if self._is_dead:
            self._restart_engine(wave, intended_s=())
        elif self._engine is None or wave.fresh:
            self._start_engine(wave)
        self._watcher.wave_started(wave)
        began_s = self._now_s()
        pending = deque(wave.requests)
        prompt = self._prompt(pending)
        while (pending or self._outstanding) and not self.is_over:
            if self._is_dead:
                self._restart_engine(wave, [began_s + one.arrival_s for one in pending])
                continue
            engine = self._opened()
            now_s = self._now_s()
            while pending and began_s + pending[0].arrival_s <= now_s:
                request = pending.popleft()
                self._send(engine, request, prompt, began_s + request.arrival_s)
                prompt = self._prompt(pending)
                now_s = self._now_s()
            self._sample_if_due(now_s)
            due_s = self._next_sample_s
            if pending:
                due_s = min(due_s, began_s + pending[0].arrival_s)
            self._take(engine.poll(max(0.0, due_s - self._now_s())))
        if not self._is_dead:
            self._sample()  # marks of the whole life go with the engine

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
        if self._is_dead:
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

    def _opened(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _prompt(self, pending: deque[Request]) -> list[int]:
        """The next prompt, made before it is due, so that making it delays nothing."""
        assert self._facts is not None
        vocab_tokens = self._facts.vocab_tokens
        return prompt_token_ids(pending[0], vocab_tokens=vocab_tokens) if pending else []

    def _restart_engine(self, wave: Wave, intended_s: Sequence[float]) -> None:
        """A new engine for a dead one, with the times of what is still to be sent.

        If it does not start, the run ends as the death left it.
        """
        self._restarts_left -= 1
        try:
            self._start_engine(wave)
        except EngineError as error:
            self._restarts_left = 0
            self._writer.finding(
                Finding(
                    code="restart_failed",
                    text=f"The engine that died could not be started again: {error.message}.",
                    hint=error.hint,
                )
            )
            return
        self._is_dead = False
        late = sum(at_s <= self._now_s() for at_s in intended_s)
        self._writer.finding(
            Finding(
                code="engine_restarted",
                text=f"The engine was started again after its death. {late} requests came due "
                "while there was none and are sent late; its caches began empty.",
                hint="Replay without deaths for a measurement that counts.",
            )
        )

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
        self._sample()
        # From now, not from the last due time: a late sampler does not burst to catch up.
        self._next_sample_s = now_s + self._sample_period_s

    def _sample(self) -> None:
        values: dict[str, int] = {}
        for probe in self._probes:
            values |= probe.read()
        sample = Sample(t_s=self._now_s(), values=values)
        self._writer.sample(sample)
        self._watcher.sampled(sample, len(self._outstanding))

    def _take(self, events: Sequence[object]) -> None:
        for event in events:
            match event:
                case SegmentClosed(segment=segment):
                    self._writer.segment(segment)
                case Ended(record=record):
                    self._ended(record)
                case Planted(spike=spike):
                    self._writer.planted(spike)
                case Died():
                    self._died(event)

    def _ended(self, record: RequestRecord) -> None:
        request, sent = self._outstanding.pop(record.request_id)
        self._writer.request(replace(record, intended_s=sent.intended_s, sent_s=sent.sent_s))
        self._watcher.request_ended(request)

    def _died(self, death: Died) -> None:
        self._is_dead = True
        self._sample()
        now_s = self._now_s()
        word = "oom_killed" if death.out_of_memory else "engine_died"
        lost = list(self._outstanding)
        for _, record in self._outstanding.values():
            failed = replace(record, outcome="failed", reason=word, end_s=now_s)
            self._writer.request(failed)
        self._outstanding.clear()
        self._writer.finding(
            _oom_finding(death.out_of_memory, now_s, lost)
            if death.out_of_memory
            else _death_finding(death.reason, now_s, is_last=self.is_over)
        )


def _death_finding(reason: str, now_s: float, *, is_last: bool) -> Finding:
    rest = " and those after them were not sent" if is_last else ""
    return Finding(
        code="engine_died",
        text=f"The engine was gone after {now_s:.1f} s ({reason}); requests in flight failed{rest}.",
        hint="If the kernel killed it, lower max_requests or max_kv_tokens; its own "
        "output is in engine.log of the run folder.",
    )


def _oom_finding(killed: OutOfMemory, now_s: float, lost: Sequence[str]) -> Finding:
    limit = (
        "not by a limit of its own"
        if killed.limit_bytes is None
        else f"at its limit of {bytes_text(killed.limit_bytes)}"
    )
    told = ", ".join(lost[:_TOLD]) + (", …" if len(lost) > _TOLD else "")
    return Finding(
        code="oom_killed",
        text=f"The kernel killed the engine for memory after {now_s:.1f} s, {limit}; "
        f"{bytes_text(killed.charged_peak_bytes)} were charged at the peak. It took {len(lost)} "
        f"requests with it{': ' if told else ''}{told}.",
        hint="Raise the memory limit, or lower max_requests or max_kv_tokens.",
    )
