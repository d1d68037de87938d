"""Prompts: exact length, the same in every run, and shared exactly where prefixes are."""

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from memplan.records import Request
from memplan.workload.classify import plan_requests
from memplan.workload.prompts import prompt_token_ids
from memplan.workload.trace import read_trace

WORKLOADS = Path(__file__).parents[2] / "workloads"
VOCAB = 49_152


def request(
    tokens: int, ids: tuple[int, ...] = (), block: int | None = None, name: str = "r1"
) -> Request:
    return Request(
        request_id=name,
        wave="w",
        arrival_s=0.0,
        class_name="c",
        input_tokens=tokens,
        output_tokens=1,
        prefix_ids=ids,
        prefix_block_tokens=block,
    )


@given(
    st.integers(1, 3000),
    st.lists(st.integers(-5, 2**64), max_size=40).map(tuple),
    st.integers(1, 600),
    st.integers(1, 100_000),
    st.integers(0, 5),
)
def test_length_is_exact_and_every_token_is_in_the_vocabulary(
    tokens: int, ids: tuple[int, ...], block: int, vocab_tokens: int, seed: int
) -> None:
    asked = request(tokens, ids, block)
    prompt = prompt_token_ids(asked, vocab_tokens=vocab_tokens, seed=seed)
    assert len(prompt) == tokens
    assert all(0 <= token < vocab_tokens for token in prompt)
    assert prompt == prompt_token_ids(asked, vocab_tokens=vocab_tokens, seed=seed)


@given(
    st.lists(st.integers(0, VOCAB - 1), unique=True, min_size=3, max_size=20),
    st.integers(0, 18),
    st.integers(1, 64),
)
def test_equal_leading_ids_are_equal_tokens_and_the_next_token_differs(
    ids: list[int], shared: int, block: int
) -> None:
    shared = min(shared, len(ids) - 2)
    one = (*ids[:shared], ids[-1])
    other = (*ids[:shared], ids[-2])
    tokens = len(one) * block
    first = prompt_token_ids(request(tokens, one, block, "a"), vocab_tokens=VOCAB)
    second = prompt_token_ids(request(tokens, other, block, "b"), vocab_tokens=VOCAB)
    assert first[: shared * block] == second[: shared * block]
    assert first[shared * block] != second[shared * block]


def test_the_last_block_may_be_partial() -> None:
    whole = prompt_token_ids(request(32, (7, 8), 16), vocab_tokens=VOCAB)
    partial = prompt_token_ids(request(20, (7, 8), 16, "other"), vocab_tokens=VOCAB)
    assert partial == whole[:20]


def test_what_follows_the_blocks_belongs_to_the_request() -> None:
    one = prompt_token_ids(request(40, (7,), 16, "a"), vocab_tokens=VOCAB)
    other = prompt_token_ids(request(40, (7,), 16, "b"), vocab_tokens=VOCAB)
    assert one[:16] == other[:16]
    assert sum(a == b for a, b in zip(one[16:], other[16:], strict=True)) < 3


def test_another_seed_is_another_prompt() -> None:
    asked = request(64, (7,), 16)
    one = prompt_token_ids(asked, vocab_tokens=VOCAB, seed=0)
    other = prompt_token_ids(asked, vocab_tokens=VOCAB, seed=1)
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 3


def test_tokens_are_spread_over_the_vocabulary() -> None:
    prompt = prompt_token_ids(request(20_000), vocab_tokens=100)
    counts = [prompt.count(token) for token in range(100)]
    assert min(counts) > 130
    assert max(counts) < 270


def test_a_real_trace_shares_exactly_the_prefixes_that_it_lists() -> None:
    trace = read_trace(WORKLOADS / "mooncake_conversation.slice.jsonl")
    requests = plan_requests(trace, classes=(), limit=60, length_scale=0.125)
    prompts = [prompt_token_ids(r, vocab_tokens=VOCAB) for r in requests]
    for one, first in zip(requests, prompts, strict=True):
        for other, second in zip(requests, prompts, strict=True):
            if one is other:
                continue
            listed = common(one.prefix_ids, other.prefix_ids) * 64
            assert common(first, second) == min(listed, len(first), len(second))


def common(one: list[int] | tuple[int, ...], other: list[int] | tuple[int, ...]) -> int:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def test_eight_thousand_tokens_take_under_two_milliseconds() -> None:
    asked = request(8000, tuple(range(16)), 512)
    best_s = min(timed_s(asked) for _ in range(20))
    assert best_s < 0.002


def timed_s(asked: Request) -> float:
    start_s = time.perf_counter()
    prompt_token_ids(asked, vocab_tokens=VOCAB)
    return time.perf_counter() - start_s
