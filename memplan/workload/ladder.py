"""The profile's ladder: synthetic requests that isolate each term of the memory model.

The prompt steps show how activations and KV of a single request grow, up to the one long prompt,
which reaches the highest; the batch steps show what another running request adds; the solo waves
measure one typical request of each class in a process that has held nothing before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memplan.errors import InputError
from memplan.records import Request
from memplan.specs import LADDER_CLASS, ClassSpec

LONG_PROMPT_WAVE = "one-long-prompt"
_LONG_MARGIN_TOKENS = 16
"""Left free beside the longest prompt: its own output, and a part of a block."""
_LONG_OUTPUT_TOKENS = 8
_FIRST_PROMPT_TOKENS = 128
_PROMPT_OUTPUT_TOKENS = 4
_BATCH_PROMPT_TOKENS = 256
_BATCH_OUTPUT_TOKENS = 16
_LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Requests that are sent together, when the wave before has ended."""

    name: str
    fresh: bool
    """The engine is restarted before it, so that nothing earlier is still resident."""
    requests: tuple[Request, ...]


def ladder_requests(
    deployment_classes: Sequence[ClassSpec],
    *,
    context_tokens: int,
    max_requests: int,
    max_kv_tokens: int,
    solo_repeats: int,
    longest_tokens: int | None = None,
) -> tuple[Wave, ...]:
    """In the order in which they run; no prompt is longer than ``longest_tokens``. Raises InputError
    when one request has too little room."""
    room_tokens = min(context_tokens, max_kv_tokens)
    if room_tokens < _LEAST_TOKENS:
        raise InputError(
            f"a profile needs room for {_LEAST_TOKENS} tokens in one request, got {room_tokens} "
            f"(context_tokens {context_tokens}, max_kv_tokens {max_kv_tokens})",
            hint="raise context_tokens or max_kv_tokens in model.yaml",
        )
    most_tokens = min(longest_tokens or room_tokens, room_tokens)
    return (
        *_prompt_waves(min(most_tokens, room_tokens - _LONG_MARGIN_TOKENS)),
        *_batch_waves(
            room_tokens, most_tokens, max_requests=max_requests, max_kv_tokens=max_kv_tokens
        ),
        *_solo_waves(deployment_classes, room_tokens, most_tokens, solo_repeats),
    )


def _prompt_waves(long_tokens: int) -> Iterator[Wave]:
    # Ascending, the longest last: a rung that comes after a larger one would be measured in a heap
    # that already holds the larger one's leftovers.
    for prompt_tokens in _doubling(_FIRST_PROMPT_TOKENS, long_tokens - 1):
        yield _wave(f"prompt-{prompt_tokens}", 1, prompt_tokens, _PROMPT_OUTPUT_TOKENS)
    yield _wave(LONG_PROMPT_WAVE, 1, long_tokens, _LONG_OUTPUT_TOKENS)


def _batch_waves(
    room_tokens: int, most_tokens: int, *, max_requests: int, max_kv_tokens: int
) -> Iterator[Wave]:
    """Up to the most requests that run at once and whose KV can be reserved together."""
    prompt_tokens = min(_BATCH_PROMPT_TOKENS, room_tokens - _BATCH_OUTPUT_TOKENS, most_tokens)
    most = min(max_requests, max_kv_tokens // (prompt_tokens + _BATCH_OUTPUT_TOKENS))
    for size in sorted({*_doubling(1, most), most}):
        yield _wave(f"batch-{size}", size, prompt_tokens, _BATCH_OUTPUT_TOKENS)


def _solo_waves(
    classes: Sequence[ClassSpec], room_tokens: int, most_tokens: int, solo_repeats: int
) -> Iterator[Wave]:
    """Repeats go round the classes, so that a drift of the machine meets all of them alike."""
    for repeat in range(solo_repeats):
        for spec in classes:
            output_tokens = min(spec.typical_output_tokens, room_tokens // 2)
            room_left = min(room_tokens - output_tokens, most_tokens)
            input_tokens = min(spec.typical_input_tokens, room_left)
            yield _wave(
                f"solo:{spec.name}:{repeat}",
                1,
                input_tokens,
                output_tokens,
                class_name=spec.name,
                fresh=True,
            )


def _doubling(first: int, last: int) -> Iterator[int]:
    value = first
    while value <= last:
        yield value
        value *= 2


def _wave(
    name: str,
    size: int,
    input_tokens: int,
    output_tokens: int,
    *,
    class_name: str = LADDER_CLASS,
    fresh: bool = False,
) -> Wave:
    requests = tuple(
        Request(
            request_id=f"{name}/{number}",
            wave=name,
            arrival_s=0.0,
            class_name=class_name,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for number in range(1, size + 1)
    )
    return Wave(name=name, fresh=fresh, requests=requests)
