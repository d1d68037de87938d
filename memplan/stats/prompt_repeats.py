"""How much of the prompts is there more than once, by the prefix blocks of the trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memplan.records import EngineFacts, Request
from memplan.stats.explanation import HeldRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRepeats:
    """Prompt tokens that begin as another request's prompt does. 0 where the trace names no prefixes."""

    held_tokens: int
    """Of the requests in flight in one segment, in whole KV blocks whose KV was there: each beginning
    beyond its first holder."""
    run_tokens: int
    """Of all requests of the run, each beginning beyond its first reader."""
    prompt_tokens: int
    """All of the run."""


def prompt_repeats_of(
    held: Sequence[HeldRequest],
    asked: Mapping[str, Request],
    run: Sequence[Request],
    engine: EngineFacts,
) -> PromptRepeats:
    """``held`` in the order of admission, without sharing; ``asked`` by request id."""
    per_token, block = engine.kv_bytes_per_token, engine.kv_block_tokens
    there = [(asked[one.request_id], one.kv_used_bytes // (per_token or 1)) for one in held]
    return PromptRepeats(
        held_tokens=sum(tokens // block * block for tokens in _repeated(there)),
        run_tokens=sum(_repeated([(one, one.input_tokens) for one in run])),
        prompt_tokens=sum(one.input_tokens for one in run),
    )


def _repeated(requests: Sequence[tuple[Request, int]]) -> Iterator[int]:
    """Of each request, with so many leading tokens there, those that an earlier one has too."""
    seen: set[int] = set()
    for request, there in requests:
        size = request.prefix_block_tokens or 0
        tokens = min(there, request.input_tokens)
        ids = request.prefix_ids[: tokens // size] if size else ()
        # Ids are chained, so those that were seen before come first.
        known = next((n for n, one in enumerate(ids) if one not in seen), len(ids))
        seen.update(ids)
        yield known * size
