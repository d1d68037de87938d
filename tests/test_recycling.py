"""An engine that has served its number of requests is replaced, and nothing is lost or out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import header, request, scripted

from memplan.clock import VirtualClock
from memplan.engines import Died, Engine, EngineEvent, SegmentClosed
from memplan.engines.scripted import ScriptedEngine
from memplan.errors import EngineError
from memplan.probes.scripted import ScriptedProbe
from memplan.recording import RunWriter, read_run
from memplan.records import EngineFacts, Recording, Request, Sample
from memplan.replay import StopFlag, replay
from memplan.stats.summarise import summarise
from memplan.units import MIB
from memplan.workload.ladder import Wave

START_S = 2.0


class Silent:
    """A watcher that stops the run after so many endings."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop = StopFlag()
        self._left = stop_after

    def engine_starting(self, wave: str) -> None: ...

    def wave_started(self, wave: Wave) -> None: ...

    def request_ended(self, request: Request) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.stop.set()

    def sampled(self, sample: Sample, in_flight: int) -> None: ...


class Floor:
    """Where engines stand: remembers what each was handed, and when it came and went."""

    def __init__(
        self, fails_at: int | None = None, dies_at: int | None = None, leaks_bytes: int = 0
    ) -> None:
        self.clock = VirtualClock()
        self.given: list[list[str]] = []
        self.stopped_s: list[float] = []
        self.started_s: list[float] = []
        self.fails_at = fails_at
        self.dies_at = dies_at
        self.leaks_bytes = leaks_bytes
        """At each step, for ever."""

    def open(self, number: int) -> Engine:
        deployment = scripted(max_requests=4)
        self.given.append([])
        return Standing(
            self, ScriptedEngine(deployment, clock=self.clock, epoch_s=0.0, number=number), number
        )


class Standing:
    """A scripted engine that takes two seconds to start."""

    def __init__(self, floor: Floor, inner: ScriptedEngine, number: int) -> None:
        self._floor = floor
        self._inner = inner
        self._number = number
        self._leaked_bytes = 0

    def start(self) -> EngineFacts:
        self._floor.clock.advance_to(self._floor.clock.now_s() + START_S)
        if self._number == self._floor.fails_at:
            raise EngineError("no memory for the weights", hint="buy some")
        self._floor.started_s.append(self._floor.clock.now_s())
        return self._inner.start()

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        self._floor.given[-1].append(request.request_id)
        self._inner.submit(request, prompt)

    def cancel(self, request_id: str) -> None:
        self._inner.cancel(request_id)

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        if self._number == self._floor.dies_at and self._floor.given[-1]:
            return (Died(reason="killed by SIGKILL"),)
        return tuple(map(self._leaking, self._inner.poll(timeout_s)))

    def _leaking(self, event: EngineEvent) -> EngineEvent:
        if not isinstance(event, SegmentClosed):
            return event
        self._leaked_bytes += self._floor.leaks_bytes if event.segment.kind == "step" else 0
        gauges = event.segment.gauges
        grown = {**gauges, "host.rss": gauges["host.rss"] + self._leaked_bytes}
        return SegmentClosed(segment=replace(event.segment, gauges=grown))

    def stop(self) -> tuple[EngineEvent, ...]:
        self._floor.stopped_s.append(self._floor.clock.now_s())
        return self._inner.stop()


def run(
    folder: Path,
    requests: Sequence[Request],
    floor: Floor,
    *,
    recycle_after: int | None,
    recycle_after_bytes: int | None = None,
    restarts: int = 0,
    watcher: Silent | None = None,
) -> Recording:
    writer, watcher = RunWriter(folder, header()), watcher or Silent()
    try:
        replay(
            [Wave(name="trace", fresh=False, requests=tuple(requests))],
            open_engine=floor.open,
            probes=[ScriptedProbe([{"host.rss": 1}])],
            writer=writer,
            clock=floor.clock,
            epoch_s=0.0,
            sample_period_s=0.01,
            stop=watcher.stop,
            watcher=watcher,
            restarts=restarts,
            recycle_after=recycle_after,
            recycle_after_bytes=recycle_after_bytes,
        )
    finally:
        writer.close()
    return read_run(folder)


def spaced(count: int, *, every_s: float) -> list[Request]:
    return [
        request(f"r{n}", arrival_s=every_s * n, input_tokens=64, output_tokens=2)
        for n in range(count)
    ]


def test_without_the_setting_one_engine_serves_all(tmp_path: Path) -> None:
    floor = Floor()
    read = run(tmp_path / "run", spaced(7, every_s=1.0), floor, recycle_after=None)
    assert len(floor.given) == 1
    fidelity = summarise(read).fidelity
    assert fidelity is not None
    assert (fidelity.recyclings, fidelity.recycling_s) == (0, 0.0)


def test_each_engine_serves_its_number_in_the_order_of_the_trace(tmp_path: Path) -> None:
    requests, floor = spaced(7, every_s=1.0), Floor()
    read = run(tmp_path / "run", requests, floor, recycle_after=3)
    names = [one.request_id for one in requests]
    assert floor.given == [names[:3], names[3:6], names[6:]]
    assert [read.outcomes[name].outcome for name in names] == ["completed"] * 7
    assert [facts.engine_start for facts in read.engines] == [0, 1, 2]
    assert read.findings == ()
    assert read.end is not None and read.end.reason == "finished"


def test_an_engine_that_leaks_is_replaced_when_it_has_grown_by_its_bytes(tmp_path: Path) -> None:
    # A request takes two steps, of a prompt and of a token: 2 MiB.
    floor = Floor(leaks_bytes=MIB)
    read = run(
        tmp_path / "run",
        spaced(7, every_s=1.0),
        floor,
        recycle_after=3,
        recycle_after_bytes=4 * MIB,
    )
    assert [len(given) for given in floor.given] == [2, 2, 2, 1]
    assert {one.outcome for one in read.outcomes.values()} == {"completed"}
    assert [facts.recycled_after for facts in read.engines] == [None, "bytes", "bytes", "bytes"]
    fidelity = summarise(read).fidelity
    assert fidelity is not None
    assert (fidelity.recyclings, fidelity.recycled_after) == (3, {"bytes": 3})


def test_no_engine_is_started_for_an_empty_queue(tmp_path: Path) -> None:
    floor = Floor()
    run(tmp_path / "run", spaced(6, every_s=1.0), floor, recycle_after=3)
    assert [len(given) for given in floor.given] == [3, 3]


def test_what_is_in_flight_ends_before_the_engine_goes_and_what_is_due_waits(
    tmp_path: Path,
) -> None:
    # Four are in flight at once and one ends early; what comes due meanwhile is for the next engine.
    short = request("short", input_tokens=64, output_tokens=1)
    long = [request(f"long{n}", input_tokens=64, output_tokens=30) for n in range(3)]
    due = request("due", arrival_s=0.3, input_tokens=64, output_tokens=1)
    floor = Floor()
    read = run(tmp_path / "run", [short, *long, due], floor, recycle_after=1)
    assert floor.given == [["short", "long0", "long1", "long2"], ["due"]]
    ends = [read.outcomes[one.request_id].end_s for one in long]
    assert all(end is not None and end <= floor.stopped_s[0] for end in ends)
    assert {one.outcome for one in read.outcomes.values()} == {"completed"}
    # The first start takes 2 s, then the wave begins: due is meant for 2.3 s.
    late = read.outcomes["due"]
    assert late.intended_s == pytest.approx(START_S + 0.3)
    assert late.sent_s is not None and late.sent_s >= floor.started_s[1]


def test_the_pause_is_in_the_latency_and_in_the_fidelity(tmp_path: Path) -> None:
    requests, floor = spaced(4, every_s=0.5), Floor()
    read = run(tmp_path / "run", requests, floor, recycle_after=2)
    third = read.outcomes["r2"]
    assert third.intended_s is not None and third.end_s is not None and third.sent_s is not None
    assert third.intended_s == pytest.approx(START_S + 1.0)
    assert third.sent_s == pytest.approx(floor.started_s[1])
    assert third.end_s - third.intended_s > START_S - 0.5
    fidelity = summarise(read).fidelity
    assert fidelity is not None
    assert fidelity.recyclings == 1
    assert fidelity.recycling_s == pytest.approx(START_S)
    assert [facts.recycled_s for facts in read.engines] == [None, pytest.approx(START_S)]
    assert fidelity.schedule_lag_s.peak == pytest.approx(third.sent_s - third.intended_s)


def test_a_wave_counts_on_what_its_engine_has_served_before(tmp_path: Path) -> None:
    clock = VirtualClock()
    given: list[int] = []

    def opened(number: int) -> Engine:
        given.append(number)
        return ScriptedEngine(scripted(), clock=clock, epoch_s=0.0, number=number)

    writer, watcher = RunWriter(tmp_path / "run", header()), Silent()
    waves = [
        Wave(name=name, fresh=fresh, requests=(request(f"{name}1"), request(f"{name}2")))
        for name, fresh in (("a", False), ("b", False), ("c", True))
    ]
    replay(
        waves, open_engine=opened, probes=[], writer=writer, clock=clock, epoch_s=0.0,
        sample_period_s=0.01, stop=watcher.stop, watcher=watcher, recycle_after=2,
    )  # fmt: skip
    writer.close()
    read = read_run(tmp_path / "run")
    # b is recycled for; c gets a fresh engine of its own, which is no recycling.
    assert given == [0, 1, 2]
    assert [facts.recycled_s is not None for facts in read.engines] == [False, True, False]


def test_an_engine_that_cannot_be_replaced_ends_the_run_in_words(tmp_path: Path) -> None:
    floor = Floor(fails_at=1)
    read = run(tmp_path / "run", spaced(4, every_s=1.0), floor, recycle_after=2, restarts=3)
    (found,) = read.findings
    assert found.code == "restart_failed"
    assert found.text == (
        "The engine that was recycled could not be started again: no memory for the weights."
    )
    outcomes = [read.outcomes[f"r{n}"].outcome for n in range(4)]
    assert outcomes == ["completed", "completed", "not_sent", "not_sent"]
    assert read.end is not None and read.end.reason == "engine_died"


def test_a_stop_while_the_engine_drains_starts_no_other(tmp_path: Path) -> None:
    floor, watcher = Floor(), Silent(stop_after=2)
    read = run(tmp_path / "run", spaced(5, every_s=1.0), floor, recycle_after=2, watcher=watcher)
    assert len(floor.given) == 1
    assert [one.outcome for one in read.outcomes.values()].count("not_sent") == 3
    assert read.end is not None and read.end.reason == "interrupted"


def test_a_death_after_a_recycling_is_a_death_and_its_successor_counts_from_zero(
    tmp_path: Path,
) -> None:
    floor = Floor(dies_at=1)
    read = run(tmp_path / "run", spaced(7, every_s=3.0), floor, recycle_after=2, restarts=1)
    assert floor.given == [["r0", "r1"], ["r2"], ["r3", "r4"], ["r5", "r6"]]
    assert read.outcomes["r2"].reason == "engine_died"
    assert [finding.code for finding in read.findings] == ["engine_died", "engine_restarted"]
    recycled = [facts.recycled_s is not None for facts in read.engines]
    assert recycled == [False, True, False, True]
