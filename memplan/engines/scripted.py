"""An engine that runs nothing: it follows its script on a virtual clock, so a replay takes no time.

Its scheduler is the real one; its memory is a formula: runtime + weights + touched KV blocks, and
activations inside a step. So every figure of a replay can be worked out with pencil and paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING

from memplan.clock import VirtualClock
from memplan.engines import Ended, EngineEvent, SegmentClosed
from memplan.engines.admission import class_bytes_of, pace_of, priority_of
from memplan.engines.policy import open_scheduler, pool_blocks
from memplan.engines.sequence import Row, Sequence
from memplan.records import (
    EngineFacts,
    InFlight,
    Outcome,
    Request,
    RequestRecord,
    Segment,
    SegmentKind,
)

if TYPE_CHECKING:
    from memplan.specs import Deployment


class ScriptedEngine:
    """Polling moves the clock: to the end of the running step, or by the timeout when idle."""

    def __init__(
        self, deployment: Deployment, *, clock: VirtualClock, epoch_s: float, number: int
    ) -> None:
        assert deployment.script is not None
        self._script = deployment.script
        self._settings = deployment.settings
        self._clock = clock
        self._epoch_s = epoch_s
        self._number = number
        self._block_bytes = self._settings.block_tokens * self._script.kv_bytes_per_token
        self._context_tokens = min(
            self._script.context_tokens,
            self._settings.context_tokens or self._script.context_tokens,
        )
        settings = self._settings.model_dump(mode="json")
        self._pool_blocks = pool_blocks(settings)
        self._scheduler = open_scheduler(
            settings,
            context_tokens=self._context_tokens,
            block_bytes=self._block_bytes,
            class_bytes=class_bytes_of(deployment),
        )
        self._opened_s = self._now_s()
        self._rows: tuple[Row, ...] = ()
        self._step_end_s = 0.0
        self._admitted: dict[str, float] = {}
        self._first_token: dict[str, float] = {}
        self._cancelled: list[str] = []
        """By their users, while a step runs."""
        self._backlog: list[EngineEvent] = []

    def start(self) -> EngineFacts:
        runtime, weights = self._script.runtime_bytes, self._script.weights_bytes
        held = {"host.rss": runtime + weights, "host.anon": runtime + weights}
        idle = {
            **held,
            "engine.weights_resident": weights,
            "engine.weights_resident_mapped": 0,
        }
        return EngineFacts(
            engine="scripted",
            version="1",
            engine_start=self._number,
            ready_s=self._now_s(),
            pids=(),
            device="cpu",
            vocab_tokens=self._script.vocab_tokens,
            context_tokens=self._context_tokens,
            max_requests=self._settings.max_requests,
            kv_kind="growing",
            kv_bytes_per_token=self._script.kv_bytes_per_token,
            kv_pool_tokens=self._pool_blocks * self._settings.block_tokens,
            kv_block_tokens=self._settings.block_tokens,
            weights_bytes=weights,
            weights_mapped_bytes=0,
            start={"host.rss": runtime, "host.anon": runtime},
            loaded=held,
            load_peak={"host.hwm": runtime + weights},
            idle=idle,
            load_s=0.0,
            settings={"memory": "a formula; nothing is allocated"},
        )

    def submit(self, request: Request, prompt: Tokens[int]) -> None:
        sequence = Sequence(
            request_id=request.request_id,
            prompt=list(prompt),
            output_tokens=request.output_tokens,
            class_name=request.class_name,
            priority=priority_of(request.labels),
            pace=pace_of(request, self._now_s()),
        )
        refusal = self._scheduler.submit(sequence, self._now_s())
        if refusal is not None:
            record = RequestRecord(
                request_id=refusal.request_id,
                outcome="rejected",
                reason=refusal.reason,
                end_s=self._now_s(),
            )
            self._backlog.append(Ended(record=record))

    def cancel(self, request_id: str) -> None:
        self._cancelled.append(request_id)
        if not self._rows:
            self._end_cancelled()

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        deadline_s = self._now_s() + max(0.0, timeout_s)
        if not self._rows and self._scheduler.has_work:
            deadline_s = min(deadline_s, self._begin_step())
        if self._rows and self._step_end_s <= deadline_s:
            self._clock.advance_to(self._epoch_s + self._step_end_s)
            self._end_step()
        elif not self._backlog:
            self._clock.advance_to(self._epoch_s + deadline_s)
        events, self._backlog = tuple(self._backlog), []
        return events

    def stop(self) -> tuple[EngineEvent, ...]:
        self._close("idle", activations_bytes=0)
        events, self._backlog = tuple(self._backlog), []
        return events

    # --- steps -----------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._clock.now_s() - self._epoch_s

    def _begin_step(self) -> float:
        """Begins a step if somebody may enter; the time at which to look again."""
        self._close("idle", activations_bytes=0)
        now_s = self._now_s()
        for sequence in self._scheduler.admit(now_s):
            self._admitted.setdefault(sequence.request_id, now_s)
        if not self._scheduler.running:
            return now_s + self._scheduler.opens_in_s(now_s)
        self._rows = self._scheduler.next_rows(now_s)
        self._scheduler.take_moves()
        if not self._rows:
            return now_s + self._scheduler.due_in_s(now_s)
        prefill = sum(row.count for row in self._rows if not row.is_decode)
        decode_s = self._script.decode_s_per_step if any(r.is_decode for r in self._rows) else 0.0
        self._step_end_s = now_s + prefill / self._script.prefill_tokens_per_s + decode_s
        return self._step_end_s

    def _end_step(self) -> None:
        rows, self._rows = self._rows, ()
        self._scheduler.commit(rows, [1 for row in rows if row.wants_token])
        tokens = sum(row.count for row in rows)
        self._close(
            "step",
            activations_bytes=tokens * self._script.activation_bytes_per_token,
            rows=rows,
        )
        for row in rows:
            if row.wants_token:
                self._first_token.setdefault(row.sequence.request_id, self._step_end_s)
        for sequence in self._scheduler.retire()[0]:
            self._backlog.append(Ended(record=self._ending(sequence, "completed")))
        self._end_cancelled()

    def _end_cancelled(self) -> None:
        asked, self._cancelled = self._cancelled, []
        for sequence in filter(None, map(self._scheduler.find, asked)):
            self._close("idle", activations_bytes=0)
            self._scheduler.remove(sequence)
            self._scheduler.retire()
            self._backlog.append(Ended(record=self._ending(sequence, "cancelled")))

    def _close(
        self, kind: SegmentKind, *, activations_bytes: int, rows: tuple[Row, ...] = ()
    ) -> None:
        now_s = self._now_s()
        if kind == "idle" and now_s <= self._opened_s:
            return
        book = self._scheduler.book
        held = self._script.runtime_bytes + self._script.weights_bytes
        held += (book.held + book.kept + book.leaving) * self._block_bytes
        scheduled = {row.sequence.request_id: row.count for row in rows}
        per_token = self._script.kv_bytes_per_token
        segment = Segment(
            engine_start=self._number,
            kind=kind,
            start_s=self._opened_s,
            end_s=now_s,
            peak={"host.hwm": held + activations_bytes},
            gauges={
                "host.rss": held,
                "host.anon": held,
                "host.heap_free": 0,
                **book.gauges(self._block_bytes),
            },
            in_flight=tuple(
                InFlight(
                    request_id=s.request_id,
                    kv_used_bytes=s.computed * per_token - others,
                    kv_reserved_bytes=self._scheduler.reserved_tokens(
                        s, blocks=len(s.blocks), known_tokens=s.known_tokens
                    )
                    * per_token
                    - others,
                    tokens=scheduled.get(s.request_id, 0),
                )
                for s in self._scheduler.running
                for others in [int(book.shared_away(s) * self._block_bytes)]
            ),
            prefill_tokens=sum(row.count for row in rows if not row.is_decode),
            decode_tokens=sum(1 for row in rows if row.is_decode),
            waiting=self._scheduler.waiting_count,
        )
        self._opened_s = now_s
        self._backlog.append(SegmentClosed(segment=segment))

    def _ending(self, sequence: Sequence, outcome: Outcome) -> RequestRecord:
        return RequestRecord(
            request_id=sequence.request_id,
            outcome=outcome,
            admitted_s=self._admitted.pop(sequence.request_id, None),
            first_token_s=self._first_token.pop(sequence.request_id, None),
            end_s=self._now_s(),
            input_tokens_run=min(sequence.computed, len(sequence.prompt)),
            output_tokens_run=len(sequence.output),
            output_digest=hashlib.sha256(bytes(sequence.output)).hexdigest()[:16],
            waited_s=sequence.waited_s,
            preemptions=sequence.preemptions,
            shared_tokens=sequence.shared_tokens,
            is_shortened=sequence.is_shortened,
            confidence=self._script.confidence if self._settings.confidence else None,
        )
