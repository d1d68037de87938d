"""One request on its way to a server and back: its reply as it comes in, and its record at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memplan.engines.servers.reply import EventSplitter, Reply, Verdict, refusal_of
from memplan.records import InFlight, Request, RequestRecord

_MOST_REFUSAL_BYTES = 64 << 10
CANCELLED = "cancelled"
"""The fault of one whose user gave up."""
_LOST = ("connection_refused", "connection_lost", "stream_cut", "unreadable_reply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kv:
    """What a token takes in the server's pool."""

    bytes_per_token: int
    block_tokens: int


class Flight:
    """An Exchange. ``heard`` is called at the first token, ``ended`` once, when the reply is over."""

    def __init__(
        self,
        request: Request,
        reply: Reply,
        *,
        now_s: Callable[[], float],
        heard: Callable[[Flight], None],
        ended: Callable[[Flight], None],
    ) -> None:
        self.request = request
        self.reply = reply
        self.sent_s = now_s()
        self.admitted_s: float | None = None
        self.fault: str | None = None
        """Why it was given up, or how its connection ended."""
        self._now_s, self._heard, self._ended = now_s, heard, ended
        self._status: int | None = None
        self._is_stream = False
        self._events = EventSplitter()
        self._refusal = b""
        self._told_pieces = 0
        self._has_told_prompt = False
        self.end_s: float | None = None

    # --- the connection's side -------------------------------------------------------------------

    def head(self, status: int, content_type: str) -> None:
        self._status = status
        self._is_stream = content_type.startswith("text/event-stream")

    def body(self, piece: bytes) -> None:
        if self._status != 200 or not self._is_stream:
            self._refusal = (self._refusal + piece)[:_MOST_REFUSAL_BYTES]
            return
        at_s = self._now_s()
        is_first = self.reply.first_token_s is None
        try:
            for data in self._events.feed(piece):
                self.reply.take(data, at_s)
        except ValueError:
            self.reply.take(b"", at_s)  # told as unreadable
        if is_first and self.reply.first_token_s is not None:
            self._heard(self)

    def over(self, fault: str | None) -> None:
        self.fault = self.fault or fault
        self.end_s = self._now_s()
        self._ended(self)

    # --- what became of it ------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict:
        if self.fault == CANCELLED:
            return Verdict(outcome="cancelled")
        if self.fault is not None and self.fault not in _LOST:
            return Verdict(outcome="failed", reason=self.fault)
        if self._status is None:
            return Verdict(outcome="failed", reason=self.fault or "connection_lost")
        if self._status != 200:
            return refusal_of(self._status, self._refusal)
        if not self._is_stream:
            return Verdict(outcome="failed", reason="not_a_stream")
        return self.reply.verdict()

    @property
    def is_doubtful(self) -> bool:
        """Its connection ended as it does when a server dies, which is known a moment later."""
        return self.fault in _LOST and self.verdict.outcome != "completed"

    @property
    def kv_tokens(self) -> int:
        """That it holds while it runs: its whole prompt from its admission on, an upper bound until the
        first token, and what it has answered."""
        return (self.reply.input_tokens or self.request.input_tokens) + self.reply.pieces

    def told(self, kv: Kv) -> tuple[InFlight, int, int]:
        """Its part of a segment that ends now, with its prompt and answer tokens since the last."""
        decoded = self.reply.pieces - self._told_pieces
        self._told_pieces = self.reply.pieces
        read = 0
        if decoded and not self._has_told_prompt:
            read, self._has_told_prompt = self.request.input_tokens, True
        blocks = -(-self.kv_tokens // kv.block_tokens)
        part = InFlight(
            request_id=self.request.request_id,
            kv_used_bytes=self.kv_tokens * kv.bytes_per_token,
            kv_reserved_bytes=blocks * kv.block_tokens * kv.bytes_per_token,
            tokens=read + decoded,
        )
        return part, read, decoded

    def record(self) -> RequestRecord:
        """Of a request that is over. Its place in the queue is inferred: servers do not tell it."""
        verdict, reply = self.verdict, self.reply
        waited_s = (self.admitted_s - self.sent_s) if self.admitted_s is not None else 0.0
        return RequestRecord(
            request_id=self.request.request_id,
            outcome=verdict.outcome,
            reason=verdict.reason,
            admitted_s=self.admitted_s,
            first_token_s=reply.first_token_s,
            end_s=self.end_s,
            input_tokens_run=reply.input_tokens if verdict.outcome == "completed" else 0,
            output_tokens_run=reply.output_tokens if reply.pieces else 0,
            output_digest=reply.digest if verdict.outcome == "completed" else None,
            waited_s={"slots": waited_s} if waited_s > 0 else {},
            shared_tokens=reply.cached_tokens,
            confidence=reply.confidence if verdict.outcome == "completed" else None,
        )
