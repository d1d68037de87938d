"""The loop with a scripted engine on a virtual clock, with one that dies, and stopped midway."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from builders import (
    KV_BYTES_PER_TOKEN,
    completed,
    engine,
    flight,
    header,
    request,
    scripted,
    segment,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.clock import VirtualClock
from memplan.engines import (
    Died,
    Ended,
    Engine,
    EngineEvent,
    OutOfMemory,
    Planted,
    SegmentClosed,
)
from memplan.engines.scripted import ScriptedEngine
from memplan.errors import EngineError
from memplan.probes import Probe
from memplan.probes.scripted import ScriptedProbe
from memplan.recording import RunWriter, read_run
from memplan.records import (
    EngineFacts,
    PlantedSpike,
    Recording,
    Request,
    RequestRecord,
    Sample,
)
from memplan.replay import StopFlag, replay
from memplan.stats.summarise import summarise
from memplan.units import MIB
from memplan.workload.ladder import Wave
from memplan.workload.prompts import prompt_token_ids
from memplan.workload.retries import RetryPolicy

READING = {"host.rss": 15 * MIB}


@dataclass(slots=True)
class Log:
    """A watcher that remembers, and may stop the run after so many endings."""

    stop: StopFlag = field(default_factory=StopFlag)
    stop_after: int | None = None
    started: list[str] = field(default_factory=list)
    waves: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)

    def engine_starting(self, wave: str) -> None:
        self.started.append(wave)

    def wave_started(self, wave: Wave) -> None:
        self.waves.append(wave.name)

    def request_ended(self, request: Request) -> None:
        self.ended.append(request.request_id)
        if self.stop_after == len(self.ended):
            self.stop.set()

    def sampled(self, sample: Sample, in_flight: int) -> None:
        self.in_flight.append(in_flight)


class FakeEngine:
    """Answers polls from a list, each taking 0.1 s of the clock, and then has nothing to say."""

    def __init__(self, clock: VirtualClock, *answers: Sequence[EngineEvent]) -> None:
        self._clock = clock
        self._answers = list(answers)
        self.prompts: dict[str, list[int]] = {}
        self.last_words: tuple[EngineEvent, ...] = ()
        self.stops = 0

    def start(self) -> EngineFacts:
        return engine()

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        self.prompts[request.request_id] = list(prompt)

    def cancel(self, request_id: str) -> None: ...

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        self._clock.advance_to(self._clock.now_s() + 0.1)
        return tuple(self._answers.pop(0)) if self._answers else ()

    def stop(self) -> tuple[EngineEvent, ...]:
        self.stops += 1
        return self.last_words


def wave(*requests: Request, name: str = "trace", fresh: bool = False) -> Wave:
    return Wave(name=name, fresh=fresh, requests=requests)


def run(
    folder: Path,
    waves: Sequence[Wave],
    *,
    open_engine: Callable[[VirtualClock, int], Engine] | None = None,
    log: Log | None = None,
    sample_period_s: float = 0.01,
    restarts: int = 0,
    probe: Probe | None = None,
    clock: VirtualClock | None = None,
    retries: RetryPolicy | None = None,
    **engine_settings: object,
) -> Recording:
    clock, log = clock or VirtualClock(), log or Log()

    def open_scripted(clock: VirtualClock, number: int) -> Engine:
        deployment = scripted(**engine_settings)  # type: ignore[arg-type]
        return ScriptedEngine(deployment, clock=clock, epoch_s=0.0, number=number)

    opener = open_engine or open_scripted
    writer = RunWriter(folder, header())
    try:
        end = replay(
            waves,
            open_engine=lambda number: opener(clock, number),
            probes=[probe or ScriptedProbe([READING])],
            writer=writer,
            clock=clock,
            epoch_s=0.0,
            sample_period_s=sample_period_s,
            restarts=restarts,
            retries=retries,
            stop=log.stop,
            watcher=log,
        )
    finally:
        writer.close()
    read = read_run(folder)
    assert read.end == end
    return read


class SetClock(VirtualClock):
    """Beside a wall clock that is set an hour forward in the run's second second."""

    def wall_s(self) -> float | None:
        now_s = self.now_s()
        return 1_800_000_000.0 + now_s + (3600.0 if now_s > 1.0 else 0.0)


def test_a_wall_clock_that_is_set_meanwhile_is_seen_in_the_runs_end(tmp_path: Path) -> None:
    early, late = request("early"), request("late", arrival_s=2.0)
    for name, requests, moved_s in (("still", [early], 0.0), ("set", [early, late], 3600.0)):
        end = run(tmp_path / name, [wave(*requests)], clock=SetClock()).end
        assert end is not None and end.wall_s is not None
        assert end.wall_s - end.ended_s == pytest.approx(moved_s, abs=1e-5)
    virtual = run(tmp_path / "virtual", [wave(early)]).end
    assert virtual is not None and virtual.wall_s is None


def test_requests_are_sent_at_their_times_whatever_the_engine_does(tmp_path: Path) -> None:
    # Each takes 0.1 s and the engine runs one at a time: they pile up, and are sent all the same.
    requests = [request(f"r{n}", arrival_s=0.03 * n, input_tokens=64) for n in range(6)]
    read = run(tmp_path / "run", [wave(*requests)], max_requests=1)
    for one in requests:
        record = read.outcomes[one.request_id]
        assert record.outcome == "completed"
        assert record.intended_s == one.arrival_s
        assert record.sent_s == pytest.approx(one.arrival_s)
    ends = [read.outcomes[one.request_id].end_s for one in requests]
    assert ends == pytest.approx([0.084 * n for n in range(1, 7)])
    assert max(s.waiting for s in read.segments) > 1


def test_a_run_says_how_it_ended_and_what_it_took(tmp_path: Path) -> None:
    read = run(tmp_path / "run", [wave(request(input_tokens=40, output_tokens=3))])
    assert read.end is not None
    assert read.end.reason == "finished"
    assert read.end.ended_s == pytest.approx(0.08)
    assert read.end.samples == len(read.samples)
    assert read.end.client_peak_bytes > 10 * MIB
    assert read.findings == ()


def test_the_recording_is_summarised_to_the_figures_of_the_script(tmp_path: Path) -> None:
    read = run(tmp_path / "run", [wave(request(input_tokens=40, output_tokens=3))])
    short = summarise(read).classes[0]
    assert short.cpu.attributed.peak == 40 * KV_BYTES_PER_TOKEN + 40 * 100
    assert short.cpu.co_resident.peak == 15 * MIB + 48 * KV_BYTES_PER_TOKEN + 40 * 100
    assert short.ttft_s.p50.value == pytest.approx(0.04)
    assert short.e2e_s.p50.value == pytest.approx(0.08)
    assert short.tpot_s.p50.value == pytest.approx(0.02)


def test_samples_are_a_period_apart_and_see_the_probes(tmp_path: Path) -> None:
    late = request("late", arrival_s=0.5)
    read = run(tmp_path / "run", [wave(request(), late)], sample_period_s=0.05)
    times = [sample.t_s for sample in read.samples]
    assert times[0] == 0.0
    gaps = [b - a for a, b in pairwise(times)]
    assert all(gap == pytest.approx(0.05) for gap in gaps[:-1])
    assert len(times) == 12
    assert gaps[-1] <= 0.05, "the last one is the wave's end"
    assert {sample.values["host.rss"] for sample in read.samples} == {15 * MIB}


class QuietOrNot:
    """Reads whether it was told that nothing is in flight."""

    def attach(self, facts: EngineFacts) -> None: ...

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        return {"quiet": int(is_quiet)}


def test_what_stalls_the_engine_is_read_only_when_a_wave_has_ended(tmp_path: Path) -> None:
    read = run(tmp_path / "run", [wave(request(), request("b"))], probe=QuietOrNot())
    told = [sample.values["quiet"] for sample in read.samples]
    assert len(told) > 2
    assert told == [0] * (len(told) - 1) + [1]


def test_a_run_that_is_stopped_with_requests_in_flight_has_no_quiet_moment(tmp_path: Path) -> None:
    requests = [request("a"), request("b", output_tokens=50)]
    log = Log(stop_after=1)
    read = run(tmp_path / "run", [wave(*requests)], log=log, probe=QuietOrNot())
    assert read.outcomes["b"].outcome == "unfinished"
    assert {sample.values["quiet"] for sample in read.samples} == {0}


def test_the_next_wave_waits_for_the_last_one(tmp_path: Path) -> None:
    first = request("a", wave="one", input_tokens=200)
    second = request("b", wave="two", arrival_s=0.1)
    log = Log()
    read = run(tmp_path / "run", [wave(first, name="one"), wave(second, name="two")], log=log)
    assert (log.waves, log.started, log.ended) == (["one", "two"], ["one"], ["a", "b"])
    ended_s = read.outcomes["a"].end_s
    assert ended_s is not None
    assert read.outcomes["b"].intended_s == pytest.approx(ended_s + 0.1)
    assert [r.request_id for r in read.requests] == ["a", "b"]


def test_a_fresh_wave_has_an_engine_of_its_own(tmp_path: Path) -> None:
    waves = [wave(request(name), name=name, fresh=True) for name in ("a", "b")]
    log = Log()
    read = run(tmp_path / "run", waves, log=log)
    assert log.started == ["a", "b"]
    assert [facts.engine_start for facts in read.engines] == [0, 1]
    by_request = {f.request_id: s.engine_start for s in read.segments for f in s.in_flight}
    assert by_request == {"a": 0, "b": 1}


def test_every_prompt_is_the_requests_own_and_the_same_in_every_run(tmp_path: Path) -> None:
    requests = [request("a", input_tokens=20), request("b", input_tokens=30)]
    fakes: list[FakeEngine] = []

    def opened(clock: VirtualClock, _: int) -> FakeEngine:
        fakes.append(FakeEngine(clock, [Ended(record=completed(r)) for r in requests]))
        return fakes[-1]

    run(tmp_path / "run", [wave(*requests)], open_engine=opened)
    wanted = {r.request_id: prompt_token_ids(r, vocab_tokens=100) for r in requests}
    assert fakes[0].prompts == wanted
    assert fakes[0].stops == 1


def test_a_request_that_can_never_run_is_rejected_and_the_run_goes_on(tmp_path: Path) -> None:
    requests = [request("huge", input_tokens=999, output_tokens=9), request("ok", arrival_s=0.1)]
    read = run(tmp_path / "run", [wave(*requests)])
    huge = read.outcomes["huge"]
    assert (huge.outcome, huge.reason, huge.sent_s) == ("rejected", "exceeds_context", 0.0)
    assert read.outcomes["ok"].outcome == "completed"


def test_what_the_engine_says_is_written_down(tmp_path: Path) -> None:
    spike = PlantedSpike(spike_bytes=5, began_s=0.0, resident_s=0.1, gone_s=0.2)
    step = segment(in_flight=(flight(),))
    last = segment("idle", start_s=0.1, end_s=0.3)
    record = completed(request(), intended_s=None, sent_s=None)

    def opened(clock: VirtualClock, _: int) -> FakeEngine:
        fake = FakeEngine(
            clock,
            [],
            [SegmentClosed(segment=step), Planted(spike=spike), Ended(record=record)],
        )
        fake.last_words = (SegmentClosed(segment=last),)
        return fake

    read = run(tmp_path / "run", [wave(request())], open_engine=opened)
    assert read.segments == (step, last)
    assert read.planted == (spike,)
    # Sending is the loop's to know, not the engine's.
    assert (read.outcomes["a"].intended_s, read.outcomes["a"].sent_s) == (0.0, 0.0)


def test_an_engine_that_dies_fails_what_was_in_flight_and_ends_the_run(tmp_path: Path) -> None:
    requests = [request("done"), request("lost"), request("later", arrival_s=9.0)]
    fakes: list[FakeEngine] = []

    def opened(clock: VirtualClock, _: int) -> FakeEngine:
        fakes.append(
            FakeEngine(
                clock,
                [Ended(record=completed(requests[0]))],
                [SegmentClosed(segment=segment()), Died(reason="killed by SIGKILL")],
            )
        )
        return fakes[-1]

    second = request("next", wave="two")
    waves = [wave(*requests), wave(second, name="two", fresh=True)]
    read = run(tmp_path / "run", waves, open_engine=opened)
    outcomes = {i: (o.outcome, o.reason) for i, o in read.outcomes.items()}
    assert outcomes == {
        "done": ("completed", None),
        "lost": ("failed", "engine_died"),
        "later": ("not_sent", None),
        "next": ("not_sent", None),
    }
    assert read.outcomes["lost"].end_s == pytest.approx(0.2)
    assert read.end is not None and read.end.reason == "engine_died"
    (finding,) = read.findings
    assert finding.code == "engine_died"
    assert "killed by SIGKILL" in finding.text
    assert len(read.segments) == 1
    assert (len(fakes), fakes[0].stops) == (1, 1)


def test_an_engine_killed_for_memory_says_so_of_its_requests(tmp_path: Path) -> None:
    killed = OutOfMemory(limit_bytes=512 * MIB, charged_peak_bytes=511 * MIB)
    death = Died(reason="killed by SIGKILL", out_of_memory=killed)
    requests = [request(f"r{n}") for n in range(7)]
    read = run(
        tmp_path / "run",
        [wave(*requests)],
        open_engine=lambda clock, _: FakeEngine(clock, [death]),
    )
    assert {(o.outcome, o.reason) for o in read.outcomes.values()} == {("failed", "oom_killed")}
    assert read.end is not None and read.end.reason == "engine_died"
    (finding,) = read.findings
    assert finding.code == "oom_killed"
    assert "its limit of 512.0 MiB; 511.0 MiB were charged" in finding.text
    assert "7 requests with it: r0, r1, r2, r3, r4, …" in finding.text


def dying(of: Sequence[Request]) -> Callable[[VirtualClock, int], Engine]:
    """The first engine dies after 0.1 s; the next take 0.3 s to start and complete ``of``."""

    class Slow(FakeEngine):
        def start(self) -> EngineFacts:
            self._clock.advance_to(self._clock.now_s() + 0.3)
            return engine(engine_start=1, ready_s=self._clock.now_s())

    def opened(clock: VirtualClock, number: int) -> Engine:
        if number == 0:
            return FakeEngine(clock, [Died(reason="killed by SIGKILL")])
        return Slow(clock, [Ended(record=completed(one)) for one in of])

    return opened


def test_a_restarted_engine_gets_what_came_due_meanwhile_late(tmp_path: Path) -> None:
    lost = request("lost")
    late = [request("late", arrival_s=0.2), request("later", arrival_s=0.35)]
    waves = [wave(lost, *late)]
    read = run(tmp_path / "run", waves, open_engine=dying(late), restarts=1)
    assert read.outcomes["lost"].reason == "engine_died"
    for one in late:
        record = read.outcomes[one.request_id]
        assert (record.outcome, record.intended_s) == ("completed", one.arrival_s)
        assert record.sent_s == pytest.approx(0.4)
    assert [finding.code for finding in read.findings] == ["engine_died", "engine_restarted"]
    assert "not sent" not in read.findings[0].text
    assert "2 requests came due" in read.findings[1].text
    assert read.end is not None and read.end.reason == "finished"
    assert [facts.engine_start for facts in read.engines] == [0, 1]


def test_what_a_dead_engine_took_with_it_is_asked_again_of_the_next(tmp_path: Path) -> None:
    def opened(clock: VirtualClock, number: int) -> Engine:
        if number == 0:
            return FakeEngine(clock, [Died(reason="exit code 1")])
        done = [Ended(record=RequestRecord(request_id=f"{n}~2", outcome="completed")) for n in "ab"]
        return FakeEngine(clock, *([] for _ in range(20)), done)

    read = run(
        tmp_path / "run",
        [wave(request("a"), request("b"))],
        open_engine=opened,
        restarts=1,
        retries=RetryPolicy(most=1, after_s=1.0),
    )
    ended = {name: (one.outcome, one.reason) for name, one in read.outcomes.items()}
    assert ended == {
        "a": ("failed", "engine_died"),
        "b": ("failed", "engine_died"),
        "a~2": ("completed", None),
        "b~2": ("completed", None),
    }
    again, died = read.outcomes["a~2"], read.outcomes["a"]
    assert again.intended_s is not None and died.end_s is not None
    assert again.intended_s == pytest.approx(died.end_s + 1)


def test_an_engine_that_dies_more_often_than_it_may_be_restarted_ends_the_run(
    tmp_path: Path,
) -> None:
    requests = [request(f"r{n}", arrival_s=0.1 * n) for n in range(9)]
    read = run(
        tmp_path / "run",
        [wave(*requests)],
        open_engine=lambda clock, _: FakeEngine(clock, [Died(reason="exit code 1")]),
        restarts=3,
    )
    found = [finding.code for finding in read.findings]
    assert (found.count("engine_died"), found.count("engine_restarted")) == (4, 3)
    assert "not sent" in read.findings[-1].text
    assert read.end is not None and read.end.reason == "engine_died"


def test_an_engine_that_does_not_start_again_ends_the_run_as_the_death_left_it(
    tmp_path: Path,
) -> None:
    class Unwilling(FakeEngine):
        def start(self) -> EngineFacts:
            raise EngineError("no memory for the weights", hint="buy some")

    def opened(clock: VirtualClock, number: int) -> Engine:
        return Unwilling(clock) if number else FakeEngine(clock, [Died(reason="exit code 1")])

    waves = [wave(request(), request("later", arrival_s=5.0))]
    read = run(tmp_path / "run", waves, open_engine=opened, restarts=3)
    assert [finding.code for finding in read.findings] == ["engine_died", "restart_failed"]
    assert "no memory for the weights" in read.findings[1].text
    assert read.outcomes["later"].outcome == "not_sent"
    assert read.end is not None and read.end.reason == "engine_died"


def test_an_engine_that_cannot_start_is_stopped_and_leaves_a_readable_run(tmp_path: Path) -> None:
    fakes: list[FakeEngine] = []

    class Unwilling(FakeEngine):
        def start(self) -> EngineFacts:
            raise EngineError("no memory for the weights", hint="buy some")

    def opened(clock: VirtualClock, _: int) -> Engine:
        fakes.append(Unwilling(clock))
        return fakes[-1]

    with pytest.raises(EngineError, match="no memory for the weights"):
        run(tmp_path / "run", [wave(request())], open_engine=opened)
    read = read_run(tmp_path / "run")
    assert read.outcomes["a"].outcome == "not_sent"
    assert [finding.code for finding in read.findings] == ["run_cut_off"]
    assert fakes[0].stops == 1


def test_a_stop_midway_ends_the_recording_properly(tmp_path: Path) -> None:
    requests = [
        request("quick", input_tokens=10),
        request("slow", input_tokens=60, output_tokens=50),
        request("later", arrival_s=5.0),
    ]
    log = Log(stop_after=1)
    waves = [wave(*requests), wave(request("next", wave="two"), name="two")]
    read = run(tmp_path / "run", waves, log=log)
    assert log.ended == ["quick"]
    outcomes = {i: (o.outcome, o.reason) for i, o in read.outcomes.items()}
    assert outcomes == {
        "quick": ("completed", None),
        "slow": ("unfinished", "run_ended"),
        "later": ("not_sent", None),
        "next": ("not_sent", None),
    }
    assert read.end is not None and read.end.reason == "interrupted"
    assert read.outcomes["slow"].sent_s == 0.0
    assert "interrupted" in {finding.code for finding in summarise(read).findings}


def test_a_stop_before_the_first_request_sends_nothing(tmp_path: Path) -> None:
    log = Log()
    log.stop.set()
    read = run(tmp_path / "run", [wave(request())], log=log)
    assert (log.started, read.engines) == ([], ())
    assert read.outcomes["a"].outcome == "not_sent"
    assert read.end is not None and read.end.reason == "interrupted"


traces = st.lists(
    st.tuples(st.floats(0, 0.3), st.integers(1, 700), st.integers(1, 30)), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(traces)
def test_every_request_of_any_trace_has_an_ending_with_its_tokens(
    tmp_path_factory: pytest.TempPathFactory, trace: list[tuple[float, int, int]]
) -> None:
    requests = [
        request(f"r{n}", arrival_s=arrival_s, input_tokens=prompt, output_tokens=output)
        for n, (arrival_s, prompt, output) in enumerate(sorted(trace))
    ]
    log = Log()
    read = run(tmp_path_factory.mktemp("any") / "run", [wave(*requests)], log=log)
    for one in requests:
        record = read.outcomes[one.request_id]
        assert record.outcome == "completed"
        ran = (record.input_tokens_run, record.output_tokens_run)
        assert ran == (one.input_tokens, one.output_tokens)
        times = (
            record.intended_s,
            record.sent_s,
            record.admitted_s,
            record.first_token_s,
            record.end_s,
        )
        known = [t for t in times if t is not None]
        assert len(known) == 5
        assert all(a <= b + 1e-9 for a, b in pairwise(known))
    assert sorted(log.ended) == sorted(read.outcomes)
    assert max(log.in_flight) <= len(requests)
