"""Steps that an engine runs before it serves: small ones to wake everything, large ones to measure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memplan.engines.policy import pool_blocks
from memplan.engines.runner import Runner
from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Row, Sequence

_WARMUP_TOKENS = 16


def warm_up(runner: Runner, settings: Mapping[str, Any], *, context_tokens: int) -> None:
    """Two small requests, so that lazily mapped weights are not billed to the first real ones."""
    scheduler = _plain(settings, context_tokens)
    for name in ("warmup-1", "warmup-2"):
        # Where the context has no room for three tokens it is refused, and nothing is warmed up.
        prompt = _prompt(max(1, min(_WARMUP_TOKENS, context_tokens - 2)), runner.vocab_tokens)
        scheduler.submit(Sequence(request_id=name, prompt=prompt, output_tokens=2))
    while scheduler.has_work:
        scheduler.admit()  # an engine of one request at once runs them one after the other
        rows = scheduler.next_rows()
        scheduler.commit(rows, runner.run(rows))
        runner.release(scheduler.retire()[1])


def run_largest_steps(
    runner: Runner,
    settings: Mapping[str, Any],
    *,
    context_tokens: int,
    measured: Callable[[], int],
) -> int:
    """The highest peak in bytes, as ``measured`` tells it after each, of the largest steps that the
    settings allow, less the KV that they write: the last part of the longest prompt, and as many decodes
    as may run, over the whole pool. The KV before them is not computed, nor resident: its values change
    no size."""
    peaks = []
    for scheduler, rows in _largest_steps(runner, settings, context_tokens):
        runner.run(rows)
        full_blocks = sum(_full_blocks(row, settings["block_tokens"]) for row in rows)
        peaks.append(measured() - full_blocks * runner.block_bytes)
        for row in rows:
            scheduler.remove(row.sequence)
        runner.release(scheduler.retire()[1])
    return max(peaks)


def _full_blocks(row: Row, block_tokens: int) -> int:
    """Blocks that the row writes from their first token to their last."""
    return max(0, (row.start + row.count) // block_tokens - -(-row.start // block_tokens))


def _largest_steps(
    runner: Runner, settings: Mapping[str, Any], context_tokens: int
) -> Iterator[tuple[Scheduler, tuple[Row, ...]]]:
    blocks, block_tokens = pool_blocks(settings), settings["block_tokens"]
    longest = min(context_tokens - 1, blocks * block_tokens)
    chunk = min(longest, settings["max_batch_tokens"]) if settings["chunk_prompts"] else longest
    scheduler = _plain(settings, context_tokens)
    prompt = Sequence(
        request_id="longest", prompt=_prompt(longest, runner.vocab_tokens), output_tokens=1
    )
    yield scheduler, _step_of(scheduler, [prompt], computed=longest - chunk, count=chunk)
    requests = min(settings["max_requests"], blocks)
    each = min(context_tokens - 2, blocks // requests * block_tokens - 1)
    if each < 1:
        return
    scheduler = _plain(settings, context_tokens)
    decodes = [
        Sequence(
            request_id=f"decode-{number}",
            prompt=_prompt(each, runner.vocab_tokens),
            output_tokens=2,
            output=array("i", [1]),
        )
        for number in range(requests)
    ]
    yield scheduler, _step_of(scheduler, decodes, computed=each, count=1)


def _step_of(
    scheduler: Scheduler, sequences: list[Sequence], *, computed: int, count: int
) -> tuple[Row, ...]:
    for sequence in sequences:
        sequence.computed = computed
        sequence.blocks = scheduler.book.take(scheduler.blocks_of(computed + count))
        scheduler.running.append(sequence)
    return tuple(
        Row(
            sequence=one,
            start=computed,
            count=count,
            is_decode=bool(one.output),
            wants_token=True,
        )
        for one in sequences
    )


def _plain(settings: Mapping[str, Any], context_tokens: int) -> Scheduler:
    """Over the same pool, which nobody uses yet."""
    return Scheduler(
        pool_blocks=pool_blocks(settings),
        block_tokens=settings["block_tokens"],
        context_tokens=context_tokens,
        max_requests=settings["max_requests"],
        max_batch_tokens=settings["max_batch_tokens"],
    )


def _prompt(tokens: int, vocab_tokens: int) -> array[int]:
    return array("i", (1 + i % (vocab_tokens - 1) for i in range(tokens)))
