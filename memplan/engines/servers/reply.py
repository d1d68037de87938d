"""What a server says of one request, event by event, and the one word for how that ended.

A stream that begins well proves nothing: servers answer 200 and then send an error, stop in the middle,
or end early without a word. Only a terminal event whose figures do not contradict the stream counts as
completed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MOST_EVENT_BYTES = 16 << 20
"""A server that never ends its line does not get all of our memory."""
_DONE = b"[DONE]"

Api = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    outcome: Literal["completed", "failed", "rejected", "cancelled"]
    reason: str | None = None
    """One of docs/server-engines.md, Outcomes; None where it was completed."""


class EventSplitter:
    """Server-sent events out of the bytes of a stream, however they were cut.

    Raises ValueError for an event of more than MOST_EVENT_BYTES.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that is whole now; comments and other fields are left out."""
        events = []
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MOST_EVENT_BYTES:
            raise ValueError("an event that does not end")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


class Reply:
    """The answer to one request. All times are the caller's."""

    def __init__(self, *, api: Api, asked_tokens: int, sent_tokens: int | None) -> None:
        self._api = api
        self._asked_tokens = asked_tokens
        self._sent_tokens = sent_tokens
        """Of the prompt, where it went out as token ids."""
        self._digest = hashlib.sha256()
        self._usage: Mapping[str, Any] | None = None
        self._finish: str | None = None
        self._error: Mapping[str, Any] | str | None = None
        self._is_done = False
        self._is_unreadable = False
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._log_probabilities: list[float] = []
        self.pieces = 0
        """Events with text. Several tokens can come in one: bytes of one letter are held back."""

    def take(self, data: bytes, at_s: float) -> None:
        """One event's data."""
        if data.strip() == _DONE:
            self._is_done = True
            return
        try:
            event = json.loads(data.decode())  # told the encoding, it need not be found out
        except ValueError:
            self._is_unreadable = True
            return
        if not isinstance(event, dict):
            self._is_unreadable = True
            return
        if event.get("error") is not None:
            self._error = event["error"]
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._take_choice(choice, at_s)

    def verdict(self) -> Verdict:
        """Of a reply with status 200 whose stream has ended, however it ended."""
        if self._error is not None:
            return Verdict(outcome="failed", reason=_word_of(self._error, "error_in_stream"))
        if self._is_unreadable:
            return Verdict(outcome="failed", reason="unreadable_stream")
        if not self._is_done and self._finish is None:
            return Verdict(outcome="failed", reason="stream_cut")
        if self._lies:
            return Verdict(outcome="failed", reason="usage_contradicts_stream")
        if not self.output_tokens:
            return Verdict(outcome="failed", reason="no_answer")
        if self._finish == "length" and self.output_tokens < self._asked_tokens:
            return Verdict(outcome="failed", reason="cut_short")
        return Verdict(outcome="completed")

    @property
    def input_tokens(self) -> int:
        """As the server counted them; as sent where it does not say, 0 where nobody knows."""
        return _count(self._usage, "prompt_tokens") or self._sent_tokens or 0

    @property
    def output_tokens(self) -> int:
        """As the server counted them; the events with text where it does not say: a lower bound."""
        counted = _count(self._usage, "completion_tokens")
        return self.pieces if counted is None else counted

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, whose KV was there from another request."""
        details = (self._usage or {}).get("prompt_tokens_details")
        return (_count(details, "cached_tokens") or 0) if isinstance(details, dict) else 0

    @property
    def has_usage(self) -> bool:
        return _count(self._usage, "completion_tokens") is not None

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the probabilities of its tokens, where the server told them."""
        found = self._log_probabilities
        return math.exp(math.fsum(found) / len(found)) if found else None

    @property
    def digest(self) -> str | None:
        """Of the text, whose token ids no server tells: first 16 hex digits of SHA-256."""
        return self._digest.hexdigest()[:16] if self.pieces else None

    # --- steps -----------------------------------------------------------------------------

    def _take_choice(self, choice: Mapping[str, Any], at_s: float) -> None:
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            self._finish = finish
        if self._api == "chat":
            delta = choice.get("delta")
            parts = delta if isinstance(delta, dict) else {}
            text = parts.get("content") or parts.get("reasoning_content")
            is_piece = bool(text)
        else:  # a token without a letter of its own still is one
            text = choice.get("text")
            is_piece = isinstance(text, str) and (bool(text) or finish is None)
        if is_piece:
            self._log_probabilities += _log_probabilities_in(choice.get("logprobs"))
            self._digest.update(str(text).encode(errors="surrogatepass"))
            self.pieces += 1
            self.last_token_s = at_s
            if self.first_token_s is None:
                self.first_token_s = at_s

    @property
    def _lies(self) -> bool:
        """Counts that cannot be: more pieces of text than tokens, more tokens than were asked for, a
        prompt of another length than was sent (a server may add one token at either end)."""
        out, into = _count(self._usage, "completion_tokens"), _count(self._usage, "prompt_tokens")
        if out is not None and (out < self.pieces or out > self._asked_tokens + 1):
            return True
        is_odd = into is not None and self._sent_tokens is not None
        return is_odd and abs((into or 0) - (self._sent_tokens or 0)) > 2


def refusal_of(status: int, body: bytes) -> Verdict:
    """Of a reply with another status than 200; ``body`` may be cut off."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body[:500].decode(errors="replace")
    error = said.get("error", said) if isinstance(said, dict) else said
    match status:
        case 401 | 403:
            return Verdict(outcome="failed", reason="wrong_api_key")
        case 404:
            return Verdict(outcome="failed", reason="not_found")
        case 408 | 504:
            return Verdict(outcome="failed", reason="server_timeout")
        case 429:
            return Verdict(outcome="rejected", reason="overloaded")
        case 503:
            return Verdict(outcome="rejected", reason="unavailable")
        case _ if 400 <= status < 500:
            return Verdict(outcome="rejected", reason=_word_of(error, "bad_request"))
        case _ if status >= 500:
            return Verdict(outcome="failed", reason=_word_of(error, "server_error"))
        case _:
            return Verdict(outcome="failed", reason="unexpected_status")


def _word_of(error: object, otherwise: str) -> str:
    """The two ways of running out of context have words of their own."""
    told = str(error).lower()
    if "exceed_context_size" in told or "maximum context length" in told:
        return "exceeds_context"
    if "context size has been exceeded" in told:
        return "kv_pool_exhausted"
    return otherwise


def _log_probabilities_in(told: object) -> list[float]:
    """Of one piece: the old form of completions (``token_logprobs``) or that of chat (``content``)."""
    if not isinstance(told, dict):
        return []
    values = told.get("token_logprobs")
    if not isinstance(values, list):
        content = told.get("content")
        values = (
            [one.get("logprob") for one in content if isinstance(one, dict)]
            if isinstance(content, list)
            else []
        )
    return [float(v) for v in values if isinstance(v, int | float) and -1e4 < v <= 0]


def _count(part: Mapping[str, Any] | None, key: str) -> int | None:
    value = (part or {}).get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None
