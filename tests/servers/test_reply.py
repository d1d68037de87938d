"""What a stream comes to: every way to end has one word, and no cut of the bytes changes it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.servers.reply import MOST_EVENT_BYTES, EventSplitter, Reply, refusal_of


def event(**said: Any) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


WHOLE = (
    event(**piece(" a"))
    + event(**piece(" b"))
    + b": ping\n\n"
    + event(**piece("", "length"), usage={"prompt_tokens": 3, "completion_tokens": 2})
    + b"data: [DONE]\n\n"
)


def read(stream: bytes, *, asked: int = 2, sent: int | None = 3, api: Any = "completions") -> Reply:
    reply, splitter = Reply(api=api, asked_tokens=asked, sent_tokens=sent), EventSplitter()
    for at_s, data in enumerate(splitter.feed(stream)):
        reply.take(data, float(at_s))
    return reply


def test_a_whole_stream_is_completed_with_the_servers_counts() -> None:
    reply = read(WHOLE)
    assert reply.verdict().outcome == "completed"
    assert (reply.input_tokens, reply.output_tokens, reply.pieces) == (3, 2, 2)
    assert (reply.first_token_s, reply.last_token_s) == (0.0, 1.0)


@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=8).map(sorted), st.booleans())
def test_how_the_bytes_are_cut_changes_nothing(cuts: list[int], crlf: bool) -> None:
    stream = WHOLE
    if crlf:
        stream = WHOLE.replace(b"\n", b"\r\n")
    edges = [0, *cuts, len(stream)]
    splitter = EventSplitter()
    found = [data for a, b in pairwise(edges) for data in splitter.feed(stream[a:b])]
    assert found == EventSplitter().feed(WHOLE)


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (event(**piece(" a")), "stream_cut"),
        (b"", "stream_cut"),
        (b"data: [DONE]\n\n", "no_answer"),
        (event(**piece(" a")) + event(error={"code": 500, "message": "no"}), "error_in_stream"),
        (
            event(error={"code": 500, "message": "Context size has been exceeded."}),
            "kv_pool_exhausted",
        ),
        (event(**piece(" a")) + b"data: {nonsense\n\n", "unreadable_stream"),
        (b"data: 7\n\n", "unreadable_stream"),
        (
            event(**piece(" a"))
            + event(**piece("", "length"), usage={"prompt_tokens": 3, "completion_tokens": 1}),
            "cut_short",
        ),
        (
            WHOLE.replace(b'"completion_tokens": 2', b'"completion_tokens": 9'),
            "usage_contradicts_stream",
        ),
        (
            WHOLE.replace(b'"completion_tokens": 2', b'"completion_tokens": 1'),
            "usage_contradicts_stream",
        ),
        (WHOLE.replace(b'"prompt_tokens": 3', b'"prompt_tokens": 30'), "usage_contradicts_stream"),
    ],
)
def test_every_other_end_fails_with_its_word(stream: bytes, word: str) -> None:
    verdict = read(stream).verdict()
    assert (verdict.outcome, verdict.reason) == ("failed", word)


def test_an_end_that_the_model_chose_is_no_cut() -> None:
    stream = event(**piece(" a")) + event(
        **piece("", "stop"), usage={"prompt_tokens": 3, "completion_tokens": 1}
    )
    assert read(stream, asked=50).verdict().outcome == "completed"


def test_without_counts_pieces_are_a_lower_bound_and_the_prompt_is_what_was_sent() -> None:
    reply = read(event(**piece(" a")) + event(**piece(" b", "length")))
    assert reply.verdict().outcome == "completed"
    assert not reply.has_usage
    assert (reply.input_tokens, reply.output_tokens) == (3, 2)


def test_the_first_event_of_a_chat_is_no_token() -> None:
    def said(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event(choices=[{"delta": delta, "finish_reason": finish}])

    stream = (
        said({"role": "assistant", "content": None}) + said({"content": "x"}) + said({}, "stop")
    )
    reply = read(stream, api="chat", sent=None)
    assert reply.first_token_s == 1.0
    assert reply.verdict().outcome == "completed"


def test_a_line_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end"):
        EventSplitter().feed(b"x" * (MOST_EVENT_BYTES + 1))


@given(st.binary(max_size=400))
def test_no_bytes_make_a_reply_fail_with_an_exception(noise: bytes) -> None:
    read(b"data: " + noise + b"\n\n" + noise).verdict()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "usage", "error", "text", "delta", "finish_reason",
                             "prompt_tokens", "completion_tokens", "prompt_tokens_details"]),
            inner, max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_json_makes_a_reply_fail_with_an_exception(said: object) -> None:
    for api in ("completions", "chat"):
        reply = Reply(api=api, asked_tokens=2, sent_tokens=3)  # type: ignore[arg-type]
        reply.take(json.dumps(said).encode(), 0.0)
        reply.verdict()
        assert reply.cached_tokens >= 0


@pytest.mark.parametrize(
    ("status", "body", "outcome", "word"),
    [
        (401, b"{}", "failed", "wrong_api_key"),
        (404, b"", "failed", "not_found"),
        (429, b"{}", "rejected", "overloaded"),
        (503, b"x", "rejected", "unavailable"),
        (500, b"{}", "failed", "server_error"),
        (504, b"{}", "failed", "server_timeout"),
        (400, b'{"error": {"type": "exceed_context_size_error"}}', "rejected", "exceeds_context"),
        (400, b'{"error": {"message": "This model\'s maximum context length is 2048"}}', "rejected",
         "exceeds_context"),
        (422, b"[]", "rejected", "bad_request"),
        (302, b"", "failed", "unexpected_status"),
    ],
)  # fmt: skip
def test_every_status_has_its_word(status: int, body: bytes, outcome: str, word: str) -> None:
    verdict = refusal_of(status, body)
    assert (verdict.outcome, verdict.reason) == (outcome, word)
