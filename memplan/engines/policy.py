"""From a deployment's settings, as plain values, to a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.engines.batching import BATCH_WAIT_S, Batching
from memplan.engines.queues import LaneLimits
from memplan.engines.scheduler import Policy, Scheduler
from memplan.units import bytes_text


def open_scheduler(
    settings: Mapping[str, Any],
    *,
    context_tokens: int,
    block_bytes: int,
    class_bytes: Mapping[str, int],
    slots: int = 0,
) -> Scheduler:
    """``class_bytes``: KV that the running requests of a class may need at most, together. Raises
    RuntimeError for a class that could never run."""
    for name, size in class_bytes.items():
        if size < block_bytes:
            raise RuntimeError(
                f"classes: budget.in_flight of {name} is {bytes_text(size)}, less than one block of "
                f"{bytes_text(block_bytes)}, so none of its requests could run"
            )
    kind = settings["batching"]
    wait_s = settings["batch_wait_s"]
    policy = Policy(
        batching=Batching(
            kind=kind,
            most=settings["max_requests"],
            wait_s=BATCH_WAIT_S[kind] if wait_s is None else wait_s,
            tokens=settings["batch_prompt_tokens"],
        ),
        chunk_prompts=settings["chunk_prompts"],
        reserve=settings["kv_reserve"],
        expected_output_tokens=settings["expected_output_tokens"] or 0,
        preempt=settings["preempt"],
        sharing=settings["prefix_sharing"],
        slots=slots,
        lanes=tuple(LaneLimits(**lane) for lane in settings["lanes"]),
        queue_limit=settings["queue_limit"],
        overload=settings["overload"],
        fall_back_tokens=settings["fall_back_tokens"],
        adapters=settings["adapters_resident"],
        class_blocks={name: size // block_bytes for name, size in class_bytes.items()},
    )
    return Scheduler(
        pool_blocks=pool_blocks(settings),
        block_tokens=settings["block_tokens"],
        context_tokens=context_tokens,
        max_requests=settings["max_requests"],
        max_batch_tokens=settings["max_batch_tokens"],
        policy=policy,
    )


def pool_blocks(settings: Mapping[str, Any]) -> int:
    return int(settings["max_kv_tokens"]) // int(settings["block_tokens"])
