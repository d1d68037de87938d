"""The process that runs an embedded engine: requests in, segments and endings out, one line a step.

Started by ``embedded.EmbeddedEngine`` with one end of a socket pair. It measures only itself, and
ends when memplan is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import signal
import socket
import sys
import time
from array import array
from collections.abc import Mapping
from typing import Any

from memplan.engines.allocator import allocator_settings, check_allocator
from memplan.engines.allocator.trimming import Trimmer
from memplan.engines.channel import Channel, ChannelClosedError, unpacked
from memplan.engines.meter import Flight, SegmentMeter
from memplan.engines.planted import SpikePlanter
from memplan.engines.runner import Runner, open_runner
from memplan.engines.scheduler import Row, Scheduler, Sequence
from memplan.records import EngineFacts, RequestRecord, SegmentKind

# Idle time is cut into segments of this length, so that a run's timeline has no long blanks.
_IDLE_SEGMENT_S = 0.25
_WARMUP_TOKENS = 16
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
        self._meter = SegmentMeter(epoch_s=config["epoch_s"], engine_start=config["engine_start"])
        self._runner: Runner | None = None
        self._scheduler: Scheduler | None = None
        self._times: dict[str, dict[str, Any]] = {}
        self._planter: SpikePlanter | None = None
        self._flushed_s = 0.0
        self._trimmer = Trimmer(self._settings["trim"], self._meter.now_s)

    def run(self) -> None:
        facts = self._load()
        self._channel.send({"type": "ready", "facts": dataclasses.asdict(facts)})
        while self._take_messages():
            if self._scheduler is not None and self._scheduler.has_work:
                self._step()
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
        scheduler = self._open_pool(runner)
        with contextlib.suppress(OSError):
            self._meter.composition = runner.composition()
        loaded = self._closed("load")
        load_s = time.monotonic() - began_s
        self._warm_up(runner, scheduler)
        warm = self._closed("warmup")
        # What the warm-up left behind in Python's own heap is not a cost of the first request.
        gc.collect()
        gc.freeze()
        weights = runner.weights_resident()
        idle = self._closed("idle")
        self._scheduler = scheduler
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
            context_tokens=self._context_tokens(runner),
            max_requests=self._settings["max_requests"],
            kv_kind="reserved" if runner.kv_is_reserved else "growing",
            kv_bytes_per_token=runner.kv_bytes_per_token,
            kv_pool_tokens=self._pool_blocks() * self._settings["block_tokens"],
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
                "host.warm_peak": warm["peak"]["host.hwm"],
            },
            load_s=load_s,
            settings={
                **allocator_settings(),
                "trim": str(self._settings["trim"]),
                **runner.settings(),
                "segment_peaks": self._peaks_text(),
            },
        )

    def _library_data(self) -> Mapping[str, int]:
        if self._meter.composition is None:
            return {}
        return {"host.library_data": self._meter.composition.library_data_bytes()}

    def _peaks_text(self) -> str:
        return "exact" if self._meter.is_exact else "sampled at segment ends"

    def _closed(self, kind: SegmentKind) -> Mapping[str, Any]:
        self._meter.close(kind, compose=True)
        return self.flush()[-1]

    def _pool_blocks(self) -> int:
        return int(self._settings["max_kv_tokens"]) // int(self._settings["block_tokens"])

    def _context_tokens(self, runner: Runner) -> int:
        asked = self._settings.get("context_tokens")
        return min(asked, runner.context_tokens) if asked else runner.context_tokens

    def _open_pool(self, runner: Runner) -> Scheduler:
        runner.open_pool(self._pool_blocks())
        return Scheduler(
            pool_blocks=self._pool_blocks(),
            block_tokens=self._settings["block_tokens"],
            context_tokens=self._context_tokens(runner),
            max_requests=self._settings["max_requests"],
            max_batch_tokens=self._settings["max_batch_tokens"],
        )

    def _warm_up(self, runner: Runner, scheduler: Scheduler) -> None:
        """Two small requests, so that lazily mapped weights are not billed to the first real ones."""
        prompt_tokens = min(_WARMUP_TOKENS, self._context_tokens(runner) - 2)
        for name in ("warmup-1", "warmup-2"):
            prompt = array("i", (1 + i % (runner.vocab_tokens - 1) for i in range(prompt_tokens)))
            scheduler.submit(Sequence(request_id=name, prompt=prompt, output_tokens=2))
        scheduler.admit()
        while scheduler.has_work:
            rows = scheduler.next_rows()
            scheduler.commit(rows, runner.run(rows))
            runner.release(scheduler.retire()[1])

    def _plant(self) -> None:
        plan = self._config.get("self_test")
        if plan:
            self._planter = SpikePlanter(**plan, now_s=self._meter.now_s)
            self._planter.start()

    # --- running ---------------------------------------------------------------------------

    def _take_messages(self) -> bool:
        """Takes what memplan sent; waits for it when there is nothing to do. False: stop."""
        assert self._scheduler is not None
        busy = self._scheduler.has_work
        if not busy:
            self.flush()
        messages = self._channel.receive(0 if busy else _IDLE_SEGMENT_S)
        if not busy:
            self._meter.close("idle")
        for message in messages:
            match message["type"]:
                case "stop":
                    return False
                case "submit":
                    self._submit(message)
        return True

    def _submit(self, message: Mapping[str, Any]) -> None:
        assert self._scheduler is not None
        sequence = Sequence(
            request_id=message["request_id"],
            prompt=unpacked(message["prompt"]),
            output_tokens=message["output_tokens"],
        )
        refusal = self._scheduler.submit(sequence)
        if refusal is None:
            self._times[sequence.request_id] = {}
            return
        record = RequestRecord(
            request_id=refusal.request_id,
            outcome="rejected",
            reason=refusal.reason,
            end_s=self._meter.now_s(),
        )
        self._channel.send({"type": "ended", "record": dataclasses.asdict(record)})

    def _step(self) -> None:
        scheduler, runner = self._scheduler, self._runner
        assert scheduler is not None and runner is not None
        now_s = self._meter.now_s()
        for sequence in scheduler.admit():
            self._times[sequence.request_id]["admitted_s"] = now_s
        rows = scheduler.next_rows()
        scheduler.commit(rows, runner.run(rows))
        in_flight = self._in_flight(rows)
        end_s = self._meter.close(
            "step",
            in_flight=in_flight,
            prefill_tokens=sum(row.count for row in rows if not row.is_decode),
            decode_tokens=sum(1 for row in rows if row.is_decode),
            waiting=len(scheduler.waiting),
            engine=self._kv_gauge(),
        )
        for row in rows:
            if row.wants_token:
                self._times[row.sequence.request_id].setdefault("first_token_s", end_s)
        finished, freed = scheduler.retire()
        endings = [self._ending(sequence, end_s) for sequence in finished]
        is_due = end_s >= self._flushed_s + _LONGEST_KEPT_S or self._meter.kept >= _MOST_KEPT
        if endings or is_due:
            self.flush(*endings)
        if freed:
            # In a segment of its own: the next step's peak must not start at memory already freed.
            runner.release(freed)
            self._trimmer.after_release()
            self._meter.close("release", in_flight=in_flight, engine=self._kv_gauge())

    def _in_flight(self, rows: tuple[Row, ...]) -> tuple[Flight, ...]:
        assert self._scheduler is not None and self._runner is not None
        per_token = self._runner.kv_bytes_per_token
        scheduled = {row.sequence.request_id: row.count for row in rows}
        return tuple(
            (
                s.request_id,
                s.computed * per_token,
                self._scheduler.reserved_tokens(s) * per_token,
                scheduled.get(s.request_id, 0),
            )
            for s in self._scheduler.running
        )

    def _ending(self, sequence: Sequence, end_s: float) -> dict[str, Any]:
        digest = hashlib.sha256(array("q", sequence.output).tobytes()).hexdigest()[:16]
        record = RequestRecord(
            request_id=sequence.request_id,
            outcome="completed",
            end_s=end_s,
            input_tokens_run=len(sequence.prompt),
            output_tokens_run=len(sequence.output),
            output_digest=digest,
            **self._times.pop(sequence.request_id),
        )
        return {"type": "ended", "record": dataclasses.asdict(record)}

    def _kv_gauge(self) -> Mapping[str, int]:
        """Bytes of the blocks that running requests hold: whole blocks, written or not."""
        assert self._scheduler is not None and self._runner is not None
        blocks = sum(len(s.blocks) for s in self._scheduler.running)
        block_bytes = self._scheduler.block_tokens * self._runner.kv_bytes_per_token
        return {"engine.kv_blocks": blocks * block_bytes}

    def flush(self, *endings: dict[str, Any]) -> list[dict[str, Any]]:
        """Sends the segments closed since the last time, and what follows from them."""
        segments = self._meter.take()
        self._flushed_s = self._meter.now_s()
        messages = [{"type": "segment", "segment": fields} for fields in segments]
        messages += endings
        if self._planter is not None:
            messages += [
                {"type": "planted", **dataclasses.asdict(spike)} for spike in self._planter.take()
            ]
        self._channel.send(*messages)
        return segments


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
