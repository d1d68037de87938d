"""The engine's process of ``overhead.py``: windows of one step, and of a few layers, with what measures
on or off."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

SEED = 20261124
TREATMENTS = {
    "everything": frozenset({"segments", "tensors", "owners", "sampler"}),
    "nothing": frozenset[str](),
    "segments": frozenset({"segments"}),
    "tensors": frozenset({"tensors"}),
    "owners": frozenset({"owners"}),
    "sampler": frozenset({"sampler"}),
}
EVERYTHING = TREATMENTS["everything"]
"""What measures in the first window of a pair; nothing does in the second. ``segments`` includes
memplan's own process, which reads them, samples every 100 ms and writes; ``owners`` is calling the
parts of the model in such a way that their tensors can be told apart."""
PHASES = ("prefill", "decode", "ending")
"""A part of a prompt is read; a token decoded for each request; a whole prompt is read and its request
ends with its first token: what is told of it is sent at once, its KV given back in a segment of its own.
A window is one step: what others do to the machine lasts for many, so that neighbours share it."""
REQUESTS, PROMPT_TOKENS = 2, 64
"""In flight while decoding, and in a prompt: short steps, where a fixed cost weighs most, and many
pairs. The engine's defaults are up to 16 and 512."""
CUT_AT = 32
"""Where a struct cuts holds cut_s, in bytes (native_cuts.c)."""
SETTLING_LAYERS, WINDOW_LAYERS = 1, 4
"""Not timed after a switch, and timed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    wall_s: float
    cpu_s: float
    beside_s: float
    """Not inside the runner's own ``run``: what closing, sending and booking take."""
    switches: int
    prefill_tokens: int = 0
    decode_tokens: int = 0
    ended: int = 0
    """Of a replay's step: what it computed, and how many requests ended with it."""
    is_first: bool = False
    """Of the two of a pair."""


class Bench:
    """The worker as it is, and the same steps without what measures."""

    def __init__(self, worker: Any, pids: Sequence[int], prompt_tokens: int) -> None:
        self.worker = worker
        self._prompt_tokens = prompt_tokens
        self.stepper = worker._stepper
        self._memplan_pid, self._sampler_pid = pids
        self._tensors = worker._runner._tensors
        self._counting = self._tensors.counting
        self._forget_tensors = ctypes.CDLL(None).memplan_forget_tensors
        self._on = EVERYTHING
        self._sent = 0
        self._paused_s = 0.0
        self._ran_s = 0.0
        self._run = worker._runner.run
        worker._runner.run = self._timed_run

    def _timed_run(self, rows: Any) -> Any:
        began_s = time.perf_counter()
        tokens = self._run(rows)
        self._ran_s += time.perf_counter() - began_s
        return tokens

    def switch(self, on: frozenset[str]) -> None:
        meter = self.worker._meter
        if ("sampler" in on) != ("sampler" in self._on):
            os.kill(self._sampler_pid, signal.SIGCONT if "sampler" in on else signal.SIGSTOP)
        if ("tensors" in on) != ("tensors" in self._on):
            self._forget_tensors()
            self._counting.value = "tensors" in on
        if ("owners" in on) != ("owners" in self._on):
            self._tensors.watch(is_on=False)
            self.worker._runner._tensors = self._tensors if "owners" in on else "not told apart"
        if ("segments" in on) != ("segments" in self._on):
            if "segments" in on:
                # What is sent and read at its own pace shall be due as often as if nothing had been off.
                paused_s = meter.now_s() - self._paused_s
                self.worker._flushed_s += paused_s
                meter._news._any_after_s += paused_s
                meter._news._small_after_s += paused_s
                meter.pause_slicing(is_paused=False)
                os.kill(self._memplan_pid, signal.SIGCONT)
                meter.close("idle")
            else:
                meter.pause_slicing(is_paused=True)
                os.kill(self._memplan_pid, signal.SIGSTOP)
                self._paused_s = meter.now_s()
        self._on = on

    def window(self, phase: str, on: frozenset[str]) -> Window:
        if phase == "ending":
            self.submit(prompt_tokens=self._prompt_tokens, output_tokens=1)
        window = self.timed(on)
        self.forget_step(phase)
        return window

    def timed(self, on: frozenset[str]) -> Window:
        """The next step."""
        self.switch(on)
        step: Callable[[], None] = self._step if "segments" in on else self._silent_step
        self._ran_s = 0.0
        before, cpu_s, began_s = _switches(), time.process_time(), time.perf_counter()
        step()
        wall_s = time.perf_counter() - began_s
        cpu_s, switches = time.process_time() - cpu_s, _switches() - before
        return Window(wall_s=wall_s, cpu_s=cpu_s, beside_s=wall_s - self._ran_s, switches=switches)

    def forget_step(self, phase: str) -> None:
        """Takes its tokens back, so that every window computes the same positions: with a context that
        grows, neighbours differ by more than what is to be measured."""
        for sequence in self.worker._scheduler.running:
            sequence.computed -= 1 if phase == "decode" else self._prompt_tokens
            del sequence.output[-1:]

    def begin(self, phase: str, requests: int) -> None:
        """Lets in whose steps are to be timed."""
        self.switch(EVERYTHING)
        for sequence in tuple(self.worker._scheduler.running):
            self.stepper.cancel(sequence.request_id)
        if phase == "prefill":
            self.submit(prompt_tokens=2 * self._prompt_tokens, output_tokens=1)
        elif phase == "decode":
            for _ in range(requests):
                self.submit(prompt_tokens=self._prompt_tokens, output_tokens=3000)
            for _ in range(requests + 2):  # until all prompts are read
                self._step()

    def submit(self, *, prompt_tokens: int, output_tokens: int) -> None:
        from memplan.engines.sequence import Sequence as Request

        self._sent += 1
        draw = random.Random(self._sent)
        prompt = [draw.randrange(1, 40_000) for _ in range(prompt_tokens)]
        self.stepper.submit(
            Request(request_id=f"r{self._sent}", prompt=prompt, output_tokens=output_tokens)
        )

    def _step(self) -> None:
        self.stepper.enter()
        self.stepper.step(self.worker._flush_soon)

    def _silent_step(self) -> None:
        """``Stepper.step`` without segments; what became of requests is said all the same."""
        worker, stepper = self.worker, self.stepper
        scheduler, runner = stepper._scheduler, stepper._runner
        stepper.enter()
        rows = scheduler.next_rows(worker._meter.now_s())
        scheduler.commit(rows, runner.run(rows))
        now_s = worker._meter.now_s()
        for row in rows:
            if row.wants_token:
                stepper._times[row.sequence.request_id].setdefault("first_token_s", now_s)
        finished, freed = scheduler.retire()
        if finished:
            worker._channel.send(*(stepper._ending(sequence, now_s) for sequence in finished))
        if freed:
            runner.release(freed)
            worker._trimmer.after_release()


LayerTime = tuple[float, float, float]
"""When it began, what it took, and when a slice fell into it, or 0."""


class LayerWindows:
    """Times each layer of the model: some with their tensors counted and told apart and the sampler
    reading, some without, as ``plan`` says. Segments and what they tell go on in all of them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        worker = bench.worker
        model = worker._runner._model
        layers = next(m for m in model.modules() if type(m).__name__ == "ModuleList")
        self.count = len(layers)
        parts = [{id(m) for m in layer.modules()} for layer in layers]
        self._watched = [
            [(m, counted) for m, counted in bench._tensors._watched if id(m) in ids]
            for ids in parts
        ]
        self._began_s = time.perf_counter() - worker._meter.now_s()
        self._cut_s = ctypes.c_double.from_address(worker._meter._cuts._now._handle.value + CUT_AT)
        self._at = 0
        self._on = EVERYTHING
        self._plan: Sequence[frozenset[str]] = ()
        self.windows: list[LayerTime] = []
        kind = type(layers[0])
        call = kind.__call__

        def timed(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._plan:
                return call(layer, *args, **kwargs)
            self._switch(self._plan[self._at])
            cut_s, began_s = self._cut_s.value, time.perf_counter()
            found = call(layer, *args, **kwargs)
            took_s = time.perf_counter() - began_s
            is_cut = self._cut_s.value != cut_s
            self.windows.append(
                (began_s, took_s, self._began_s + self._cut_s.value if is_cut else 0)
            )
            self._watch(is_on=True)
            self._at += 1
            return found

        kind.__call__ = timed

    def step(self, phase: str, plan: Sequence[frozenset[str]]) -> list[LayerTime]:
        """One for each layer."""
        bench = self._bench
        bench._forget_tensors()
        self._plan, self._at, self.windows = plan, 0, []
        if phase == "ending":
            bench.submit(prompt_tokens=bench._prompt_tokens, output_tokens=1)
        bench._step()
        self._plan = ()
        self._switch(EVERYTHING)
        bench.forget_step(phase)
        return self.windows

    def _switch(self, on: frozenset[str]) -> None:
        self._bench._counting.value = "tensors" in on
        if ("sampler" in on) != ("sampler" in self._on):
            is_on = "sampler" in on
            os.kill(self._bench._sampler_pid, signal.SIGCONT if is_on else signal.SIGSTOP)
        self._on = on
        if self._plan:
            self._watch(is_on=False)

    def _watch(self, is_on: bool) -> None:
        """Where the parts of this layer are watched in this step, as ``LiveTensors.watch``."""
        if self._bench._tensors._is_watching and "owners" not in self._plan[self._at]:
            for module, counted in self._watched[self._at]:
                if is_on:
                    module.__dict__["forward"] = counted
                else:
                    del module.__dict__["forward"]


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def be_engine(fd: int) -> None:
    from memplan.engines.channel import Channel
    from memplan.engines.worker import Worker

    channel = Channel(socket.socket(fileno=fd))
    config = channel.receive(None)[0]
    plan = config.pop("bench")
    worker = Worker(channel, config)
    facts = worker._load()
    channel.send({"type": "ready", "facts": dataclasses.asdict(facts)})
    bench = Bench(worker, channel.receive(None)[0]["pids"], plan["prompt_tokens"])
    pairs: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    try:
        if plan["trace"]:
            pairs["replay"] = replay_pairs(bench, plan)
        else:
            windows = LayerWindows(bench)
            for phase in PHASES:
                bench.begin(phase, plan["requests"])
                pairs[phase] = measured_pairs(bench, phase, plan)
                bench.switch(EVERYTHING)
                layers[phase] = layer_pairs(windows, phase, plan)
    finally:
        bench.switch(EVERYTHING)
    channel.send({"type": "result", "pairs": pairs, "layers": layers})


def measured_pairs(bench: Bench, phase: str, plan: dict[str, Any]) -> list[Any]:
    """(treatment, first window, silent window) until the time is over."""
    draw = random.Random(f"{SEED}-{phase}")
    pairs = []
    until_s = time.monotonic() + plan["seconds"]
    while time.monotonic() < until_s:
        for treatment in draw.sample(plan["treatments"], len(plan["treatments"])):
            kinds = [TREATMENTS[treatment], TREATMENTS["nothing"]]
            order = draw.sample([0, 1], 2)
            windows = {i: bench.window(phase, kinds[i]) for i in order}
            pairs.append((treatment, *(dataclasses.asdict(windows[i]) for i in (0, 1))))
            if time.monotonic() > until_s and len({pair[0] for pair in pairs}) == len(
                set(plan["treatments"])
            ):
                break
    return pairs


def replay_pairs(bench: Bench, plan: dict[str, Any]) -> list[Any]:
    """The same, of the steps of a replay."""
    from overhead_replay import ReplaySteps

    steps = ReplaySteps(bench, plan["trace"], plan["at_once"])
    draw = random.Random(f"{SEED}-replay")
    pairs = []
    until_s = time.monotonic() + plan["seconds"]
    while time.monotonic() < until_s:
        for treatment in draw.sample(plan["treatments"], len(plan["treatments"])):
            windows = steps.pair([TREATMENTS[treatment], TREATMENTS["nothing"]], draw)
            pairs.append((treatment, *map(dataclasses.asdict, windows)))
    return pairs


def layer_pairs(windows: LayerWindows, phase: str, plan: dict[str, Any]) -> list[Any]:
    """(treatment, window, silent window) of two neighbouring rows of layers, until the time is over."""
    draw = random.Random(f"{SEED}-{phase}-layers")
    found = []
    treatments = [name for name in plan["treatments"] if name != "segments"]
    long = SETTLING_LAYERS + WINDOW_LAYERS
    until_s = time.monotonic() + plan["layer_seconds"]
    while time.monotonic() < until_s:
        states, pairs = [EVERYTHING] * windows.count, []
        for at in range(0, windows.count - 2 * long + 1, 2 * long):
            treatment = draw.choice(treatments)
            first, silent = draw.sample([at, at + long], 2)
            states[first : first + long] = [TREATMENTS[treatment]] * long
            states[silent : silent + long] = [TREATMENTS["nothing"]] * long
            pairs.append((treatment, first, silent))
        layers = windows.step(phase, states)
        found += [(name, one_window(layers, a), one_window(layers, b)) for name, a, b in pairs]
    return found


def one_window(layers: Sequence[LayerTime], first: int) -> LayerTime:
    mine = layers[first + SETTLING_LAYERS : first + SETTLING_LAYERS + WINDOW_LAYERS]
    return mine[0][0], sum(took_s for _, took_s, _ in mine), max(cut_s for *_, cut_s in mine)


if __name__ == "__main__":
    be_engine(int(sys.argv[1]))
