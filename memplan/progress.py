"""How far a run is, on stderr: a bar with an ETA at a terminal, one line a stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from memplan.clock import Clock
from memplan.records import Request, Sample
from memplan.units import bytes_text, seconds_text
from memplan.workload.ladder import Wave

# Decoding a token costs about as much as reading this many prompt tokens; it only shapes the ETA.
_OUTPUT_WEIGHT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The variants after this one."""

    work: int
    pace_s: float | None
    """Seconds that one piece of work took in the variants before; None in the first."""


class ProfileProgress:
    """Which variant of how many runs, and when all will have, by the pace of those that did."""

    def __init__(self, labels: Sequence[str], works: Sequence[int], clock: Clock) -> None:
        self._console = Console(stderr=True)
        self._labels, self._works = labels, works
        self._clock = clock
        self._number = 0
        self._measured_work = 0
        self._measured_s = 0.0
        self._began_s = 0.0

    def kept(self) -> None:
        """The next one was measured before."""
        self._say("kept: it is finished, and nothing about it has changed")
        self._number += 1

    def begin(self, why: str) -> Rest:
        """The next one is to be measured; ``why`` it is so again, or empty."""
        own, rest = self._works[self._number], sum(self._works[self._number + 1 :])
        pace_s = self._measured_s / self._measured_work if self._measured_work else None
        again = f"measured again: {why}" if why else "measuring"
        left = (
            f"; about {seconds_text((own + rest) * pace_s)} for all that is left" if pace_s else ""
        )
        self._say(f"{again}{left}")
        self._began_s = self._clock.now_s()
        return Rest(work=rest, pace_s=pace_s)

    def end(self) -> None:
        self._measured_s += self._clock.now_s() - self._began_s
        self._measured_work += self._works[self._number]
        self._number += 1

    def _say(self, text: str) -> None:
        place = f"variant {self._number + 1} of {len(self._labels)}"
        self._console.print(f"{self._labels[self._number]} ({place}): {text}", highlight=False)


@contextmanager
def reading_progress(path: Path) -> Iterator[Callable[[int], None]]:
    """How much of a file is read: gives the function that hears of bytes. A packed file's size says
    nothing of what it holds, so it shows no ETA."""
    console = Console(stderr=True)
    is_packed = path.suffix in (".gz", ".zst")
    size = path.stat().st_size if path.is_file() and not is_packed else None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"reading {path.name}", total=size)
        yield lambda count: progress.update(task, advance=count)


class ProgressWatcher:
    """Progress in tokens, because requests differ a hundredfold in length."""

    def __init__(self, label: str, waves: tuple[Wave, ...], rest: Rest | None = None) -> None:
        self._console = Console(stderr=True)
        self._rest = rest
        self._label = label
        self._requests = sum(len(wave.requests) for wave in waves)
        self._total = work_of(waves)
        self._ended = 0
        self._done = 0
        self._is_terminal = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[requests]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            TextColumn("{task.fields[memory]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._is_terminal,
        )
        self._task: TaskID | None = None
        self._drawn_s = -1.0
        self._began_s: float | None = None
        self._last_arrival_s = 0.0
        self._wave_began_s: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task(
            self._label, total=self._total, requests="", eta="", memory="starting the engine"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def engine_starting(self, wave: str) -> None:
        self._say(f"{self._label}: starting the engine ({wave})")

    def wave_started(self, wave: Wave) -> None:
        self._last_arrival_s = max(request.arrival_s for request in wave.requests)
        self._wave_began_s = None
        count = len(wave.requests)
        self._say(f"{self._label}: {wave.name}, {count} request{'s' if count > 1 else ''}")

    def request_ended(self, request: Request) -> None:
        self._ended += 1
        self._done += _work(request)

    def sampled(self, sample: Sample, in_flight: int) -> None:
        self._began_s = sample.t_s if self._began_s is None else self._began_s
        self._wave_began_s = sample.t_s if self._wave_began_s is None else self._wave_began_s
        # Drawn here, twice a second: a drawing thread would take turns with the sender.
        if self._task is None or sample.t_s - self._drawn_s < 0.5:
            return
        self._drawn_s = sample.t_s
        resident = bytes_text(sample.values.get("host.rss"))
        self._progress.update(
            self._task,
            completed=self._done,
            requests=f"{self._ended}/{self._requests}",
            eta=self._eta_text(sample.t_s),
            memory=f"{in_flight} in flight, {resident}",
            refresh=True,
        )

    def scored(self, done: int, total: int) -> None:
        text = f"{self._label}: quality of answers"
        if not self._is_terminal:
            if done == 0:
                self._say(text)
        elif self._task is not None:
            self._progress.update(
                self._task,
                description=text,
                completed=self._total * done / total,
                requests="",
                eta="",
                memory=f"{done:,} of {total:,} tokens" if done else "loading the model",
                refresh=True,
            )

    def _eta_text(self, now_s: float) -> str:
        """The later of two ends: of the work at the pace so far, and of the wave's own schedule."""
        assert self._began_s is not None and self._wave_began_s is not None
        schedule_s = self._wave_began_s + self._last_arrival_s - now_s
        if not self._done:
            return f"ETA at least {seconds_text(schedule_s)}" if schedule_s > 1 else "ETA unknown"
        pace_s = (now_s - self._began_s) / self._done
        left_s = max(pace_s * (self._total - self._done), schedule_s, 0.0)
        if self._rest is None or not self._rest.work:
            return f"ETA {seconds_text(left_s)}"
        all_s = left_s + self._rest.work * (self._rest.pace_s or pace_s)
        return f"ETA {seconds_text(left_s)}, of all {seconds_text(all_s)}"

    def _say(self, text: str) -> None:
        if self._is_terminal and self._task is not None:
            self._progress.update(self._task, description=text, refresh=True)
        else:
            self._console.print(text, highlight=False)


def work_of(waves: Sequence[Wave]) -> int:
    return sum(_work(request) for wave in waves for request in wave.requests)


def _work(request: Request) -> int:
    return request.input_tokens + _OUTPUT_WEIGHT * request.output_tokens
