"""Token ids for a request: random by content, exact in length, and equal where prefixes are equal.

Nothing is drawn from a generator with a state: every token follows from the seed and an id, so a
request has the same prompt in every run and in whichever order requests are sent.
"""

from __future__ import annotations

import hashlib
import struct

from memplan.records import Request


def prompt_token_ids(request: Request, *, vocab_tokens: int, seed: int = 0) -> list[int]:
    """``request.input_tokens`` ids below ``vocab_tokens``.

    A prefix block takes its tokens from (seed, prefix id), what follows the blocks from (seed,
    request id). Blocks whose ids differ by no multiple of ``vocab_tokens`` differ in their first
    token, so a cache that compares tokens finds exactly the prefixes that the trace has.
    """
    block_tokens = request.prefix_block_tokens or 0
    tokens: list[int] = []
    for prefix_id in request.prefix_ids if block_tokens else ():
        wanted = min(block_tokens, request.input_tokens - len(tokens))
        if wanted < 1:
            break
        first = (prefix_id + seed) % vocab_tokens
        rest = _tokens(f"{seed}/prefix/{prefix_id}", wanted - 1, vocab_tokens)
        tokens += (first, *rest)
    wanted = request.input_tokens - len(tokens)
    tokens += _tokens(f"{seed}/request/{request.request_id}", wanted, vocab_tokens)
    return tokens


def _tokens(source: str, count: int, vocab_tokens: int) -> list[int]:
    digest = hashlib.shake_128(source.encode()).digest(4 * count)
    return [word % vocab_tokens for word in struct.unpack(f"<{count}I", digest)]
