"""The process that runs an embedded engine: requests in, segments and endings out, one line a step.

Started by ``embedded.EmbeddedEngine`` with one end of a socket pair. It measures only itself, and
ends when memplan is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.compiled import Compiled
from memplan.engines.allocator import allocator_settings, check_allocator
from memplan.engines.allocator.trimming import Trimmer
from memplan.engines.channel import Channel, ChannelClosedError, unpacked
from memplan.engines.garbage import Garbage
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.memory_budget import MemoryBudget
from memplan.engines.meter import SegmentMeter
from memplan.engines.planted import SpikePlanter
from memplan.engines.policy import open_scheduler, pool_blocks
from memplan.engines.pressure import open_pressure
from memplan.engines.raw_segments import TensorNames, fields_of, unpacked_segments
from memplan.engines.runner import Runner, open_runner
from memplan.engines.scheduler import BUDGET, Scheduler
from memplan.engines.sequence import Pace, Sequence
from memplan.engines.stepper import Stepper
from memplan.engines.warm_up import run_largest_steps, warm_up
from memplan.records import EngineFacts, SegmentKind

# Idle time is cut into segments of this length, so that a run's timeline has no long blanks.
_IDLE_SEGMENT_S = 0.25
# Sending costs as much as closing a segment, so closed ones are kept for a moment. If the engine is
# killed, those are lost.
_LONGEST_KEPT_S = 0.5
_MOST_KEPT = 32
"""About 3 KB each, which are in the engine's own memory."""


class Worker:
    """One engine start: loads, then runs steps until the channel closes or it is told to stop."""

    def __init__(self, channel: Channel, config: Mapping[str, Any]) -> None:
        self._channel = channel
        self._config = config
        self._settings = config["settings"]
        self._meter = SegmentMeter(
            epoch_s=config["epoch_s"],
            engine_start=config["engine_start"],
            library=_library_of(config["segment_library"]),
        )
        self._runner: Runner | None = None
        self._scheduler: Scheduler | None = None
        self._stepper: Stepper | None = None
        self._budget: MemoryBudget | None = None
        self._planter: SpikePlanter | None = None
        self._flushed_s = 0.0
        self._told_names: TensorNames | None = None
        self._lazy = LazyParts()
        self._garbage = Garbage(self._settings["gc"])
        self._trimmer = Trimmer(self._settings["trim"], self._meter.now_s)

    def run(self) -> None:
        facts = self._load()
        self._channel.send({"type": "ready", "facts": dataclasses.asdict(facts)})
        scheduler, stepper = self._scheduler, self._stepper
        assert scheduler is not None and stepper is not None
        wait_s = _IDLE_SEGMENT_S
        while self._take_messages(wait_s):
            wait_s = stepper.enter()
            if scheduler.running:
                wait_s = stepper.step(self._flush_soon)
            wait_s = min(_IDLE_SEGMENT_S, wait_s) if scheduler.has_work else _IDLE_SEGMENT_S
        self._closed("idle")

    # --- start-up --------------------------------------------------------------------------

    def _load(self) -> EngineFacts:
        refusal = check_allocator(self._settings["allocator"])
        if refusal:
            raise RuntimeError(refusal)
        runner = open_runner(self._config)
        start = self._closed("start")
        began_s = time.monotonic()
        runner.load()
        self._runner = runner
        self._meter.device = runner.device_peaks()
        self._meter.tensors = runner.tensors()
        slots = self._open_pool(runner)
        self._lazy = runner.lazy_parts()
        if self._settings["tokenizer"] == "start":
            self._lazy.bring_tokenizer()
        with contextlib.suppress(OSError):
            self._meter.composition = runner.composition()
        loaded = self._closed("load")
        load_s = time.monotonic() - began_s
        context_tokens = self._context_tokens(runner)
        warm_up(runner, self._settings, context_tokens=context_tokens)
        self._budget = self._open_budget(runner, context_tokens)
        warm = self._closed("warmup")
        garbage_text = self._garbage.settle()
        weights = runner.weights_resident()
        idle = self._closed("idle")
        self._scheduler = self._open_scheduler(runner, context_tokens, slots)
        self._stepper = Stepper(
            self._scheduler,
            runner,
            self._meter,
            trimmer=self._trimmer,
            pressure=open_pressure(self._settings),
            budget=self._budget,
            lazy=self._lazy,
            garbage=self._garbage,
        )
        self._plant()
        self._meter.slice_long_segments()
        return EngineFacts(
            engine=self._config["engine"],
            version=runner.version,
            engine_start=self._config["engine_start"],
            ready_s=self._meter.now_s(),
            pids=(os.getpid(),),
            device=runner.device,
            device_name=runner.device_name,
            vocab_tokens=runner.vocab_tokens,
            context_tokens=context_tokens,
            max_requests=self._settings["max_requests"],
            kv_kind="reserved" if runner.kv_is_reserved else "growing",
            kv_bytes_per_token=runner.kv_bytes_per_token,
            kv_pool_tokens=pool_blocks(self._settings) * self._settings["block_tokens"],
            kv_block_tokens=self._settings["block_tokens"],
            weights_bytes=runner.weights_bytes,
            weights_mapped_bytes=runner.weights_mapped_bytes,
            start=start["gauges"],
            loaded=loaded["gauges"],
            load_peak=loaded["peak"],
            idle={
                **idle["gauges"],
                **weights,
                **self._library_data(),
                **self._lazy.gauges(),
                "host.warm_peak": warm["peak"]["host.hwm"],
            },
            load_s=load_s,
            settings={
                **allocator_settings(),
                "trim": str(self._settings["trim"]),
                "gc": garbage_text,
                "tokenizer": self._settings["tokenizer"],
                **runner.settings(),
                **({"memory_budget": self._budget.text()} if self._budget else {}),
                "segment_peaks": self._peaks_text(),
                "segments_closed": self._meter.way,
            },
        )

    def _library_data(self) -> Mapping[str, int]:
        if self._meter.composition is None:
            return {}
        return {"host.library_data": self._meter.composition.library_data_bytes()}

    def _peaks_text(self) -> str:
        return "exact" if self._meter.is_exact else "sampled at segment ends"

    def _closed(self, kind: SegmentKind) -> Mapping[str, Any]:
        """The segment that ends here, as the fields of a Segment."""
        self._meter.close(kind, compose=True)
        packed = self._meter.take_packed()
        self._send(packed, ())
        return fields_of(
            unpacked_segments(packed)[-1],
            self._meter.tensor_names,
            engine_start=self._config["engine_start"],
        )

    def _context_tokens(self, runner: Runner) -> int:
        asked = self._settings.get("context_tokens")
        return min(asked, runner.context_tokens) if asked else runner.context_tokens

    def _open_pool(self, runner: Runner) -> int:
        """Returns how many blocks the offload tier takes."""
        settings = self._settings
        offload_bytes = settings["offload_limit_bytes"] if settings["offload"] != "never" else 0
        return runner.open_pool(pool_blocks(settings), offload_bytes=offload_bytes)

    def _open_budget(self, runner: Runner, context_tokens: int) -> MemoryBudget | None:
        budget_bytes = self._settings["memory_budget_bytes"]
        if budget_bytes is None:
            return None
        if runner.kv_is_reserved:
            raise RuntimeError(
                f"settings.memory_budget is one of host memory, and the KV pool is on {runner.device}"
            )
        idle_bytes = self._closed("warmup")["gauges"]["host.rss"]
        peak_bytes = run_largest_steps(
            runner,
            self._settings,
            context_tokens=context_tokens,
            measured=lambda: int(self._closed("warmup")["peak"]["host.hwm"]),
        )
        budget = MemoryBudget(
            budget_bytes=budget_bytes,
            idle_bytes=idle_bytes + self._lazy.coming_bytes,
            step_bytes=peak_bytes - idle_bytes,
            block_bytes=runner.block_bytes,
        )
        if budget.blocks < 1:
            raise RuntimeError(
                f"settings.memory_budget leaves nothing for KV: {budget.text()}; raise it, or "
                "lower max_batch_tokens, max_requests or context_tokens"
            )
        return budget

    def _open_scheduler(self, runner: Runner, context_tokens: int, slots: int) -> Scheduler:
        scheduler = open_scheduler(
            self._settings,
            context_tokens=context_tokens,
            block_bytes=runner.block_bytes,
            class_bytes=self._config["class_bytes"],
            slots=slots,
        )
        if self._budget is not None:
            scheduler.limit_blocks(BUDGET, self._budget.blocks, refuses=True)
        return scheduler

    def _plant(self) -> None:
        plan = self._config.get("self_test")
        if plan:
            self._planter = SpikePlanter(**plan, now_s=self._meter.now_s)
            self._planter.start()

    # --- running ---------------------------------------------------------------------------

    def _take_messages(self, wait_s: float) -> bool:
        """Takes what memplan sent, waiting for it when nothing runs, or nothing is due. False: stop."""
        assert self._scheduler is not None and self._stepper is not None
        is_busy = bool(self._scheduler.running) and wait_s == 0
        if not is_busy:
            self.flush()
        messages = self._channel.receive(0 if is_busy else wait_s)
        if not is_busy:
            self._stepper.close_idle()
        for message in messages:
            match message["type"]:
                case "stop":
                    return False
                case "submit":
                    refusals = self._stepper.submit(_sequence_of(message))
                    self._channel.send(*refusals)
                case "cancel":
                    self.flush(*self._stepper.cancel(message["request_id"]))
        return True

    def _flush_soon(self, *endings: dict[str, Any]) -> None:
        """Endings at once, with the segments before them; segments alone not at every step."""
        is_due = self._meter.now_s() >= self._flushed_s + _LONGEST_KEPT_S
        if endings or is_due or self._meter.kept >= _MOST_KEPT:
            self.flush(*endings)

    def flush(self, *endings: dict[str, Any]) -> None:
        """Sends the segments closed since the last time, and what follows from them."""
        self._send(self._meter.take_packed() if self._meter.kept else None, endings)

    def _send(self, packed: bytes | None, endings: tuple[dict[str, Any], ...]) -> None:
        self._flushed_s = self._meter.now_s()
        messages: list[dict[str, Any]] = []
        names = self._meter.tensor_names
        if names != self._told_names:
            self._told_names = names
            messages.append({"type": "tensor_names", "names": names})
        if packed is not None:
            messages.append({"type": "segments", "packed": packed})
        messages += endings
        if self._planter is not None:
            messages += [
                {"type": "planted", **dataclasses.asdict(spike)} for spike in self._planter.take()
            ]
        self._channel.send(*messages)


def _library_of(told: Mapping[str, Any]) -> Compiled:
    return Compiled(path=Path(told["path"]) if told["path"] else None, reason=told["reason"])


def _sequence_of(message: Mapping[str, Any]) -> Sequence:
    return Sequence(
        request_id=message["request_id"],
        prompt=unpacked(message["prompt"]),
        output_tokens=message["output_tokens"],
        class_name=message["class_name"],
        priority=message["priority"],
        adapter=message["adapter"],
        pace=Pace(*message["pace"]) if message["pace"] is not None else None,
    )


def main() -> None:
    """``python -m memplan.engines.worker FD``: FD is the worker's end of the socket pair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # memplan ends the run, not the terminal
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    worker: Worker | None = None
    try:
        config = channel.receive(None)[0]
        worker = Worker(channel, config)
        worker.run()
    except ChannelClosedError:
        sys.exit(0)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        with contextlib.suppress(ChannelClosedError):
            if worker is not None:
                worker.flush()
            channel.send({"type": "fault", "text": text})
        raise


if __name__ == "__main__":
    main()
