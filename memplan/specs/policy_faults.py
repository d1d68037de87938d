"""Impossible combinations of the settings that say who runs, who waits and who makes way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from memplan.specs.settings import Settings
from memplan.units import bytes_text

PairFault = tuple[tuple[str, str], str]
"""Two fields of Settings that do not go together, and why."""


def policy_faults(settings: Settings) -> Iterator[PairFault]:
    yield from _batching_faults(settings)
    yield from _queue_faults(settings)
    yield from _lane_faults(settings)
    yield from _offload_faults(settings)
    yield from _limit_faults(settings)


def _batching_faults(settings: Settings) -> Iterator[PairFault]:
    if settings.batch_wait_s is not None and settings.batching == "continuous":
        yield (
            ("batch_wait_s", "batching"),
            "continuous batching waits for nobody; leave batch_wait out (null), or set batching: "
            "static, dynamic or micro",
        )


def _queue_faults(settings: Settings) -> Iterator[PairFault]:
    if settings.overload != "wait" and settings.queue_limit is None:
        yield (
            ("overload", "queue_limit"),
            f"overload: {settings.overload} acts when the queue is full, and without queue_limit it "
            "never is",
        )
    if settings.overload == "wait" and settings.queue_limit is not None:
        yield (
            ("queue_limit", "overload"),
            "with overload: wait a full queue changes nothing; set overload: reject or fall_back, or "
            "leave queue_limit out (null)",
        )


def _lane_faults(settings: Settings) -> Iterator[PairFault]:
    for number, (before, lane) in enumerate(pairwise(settings.lanes), 2):
        if before.up_to_tokens is None:
            yield (
                ("lanes", "lanes"),
                f"lane {number} takes no prompt: lane {number - 1} before it has no up_to_tokens and "
                "takes all that come to it",
            )
        elif lane.up_to_tokens is not None and lane.up_to_tokens <= before.up_to_tokens:
            yield (
                ("lanes", "lanes"),
                f"lane {number} takes no prompt: its up_to_tokens {lane.up_to_tokens:,} is not above "
                f"the {before.up_to_tokens:,} of lane {number - 1} before it",
            )
    for number, lane in enumerate(settings.lanes, 1):
        if lane.max_kv_tokens is not None and lane.max_kv_tokens < settings.block_tokens:
            yield (
                ("lanes", "block_tokens"),
                f"max_kv_tokens {lane.max_kv_tokens:,} of lane {number} is less than one block "
                f"(block_tokens {settings.block_tokens:,}), so nothing in it could run",
            )


def _offload_faults(settings: Settings) -> Iterator[PairFault]:
    if (settings.kv_reserve == "expected") != (settings.expected_output_tokens is not None):
        yield (
            ("kv_reserve", "expected_output_tokens"),
            "kv_reserve: expected admits a request for its prompt and expected_output_tokens, and "
            "neither stands without the other",
        )
    may_preempt = settings.kv_reserve != "whole" or "preempt" in settings.degrade
    if settings.preempt == "swap" and settings.offload == "never":
        yield (
            ("preempt", "offload"),
            "preempt: swap moves KV to the offload tier, and offload: never has none; set offload: disk",
        )
    if settings.preempt == "swap" and not may_preempt and settings.memory_budget_bytes is None:
        yield (
            ("preempt", "kv_reserve"),
            "nothing is preempted with kv_reserve: whole: every request that runs has all its blocks; "
            "set kv_reserve: prompt or expected",
        )
    if settings.offload == "host" and settings.device == "cpu":
        yield (
            ("offload", "device"),
            "offload: host moves KV from a GPU to host memory, and with device: cpu it is there "
            "already; set offload: disk",
        )
    if (
        settings.offload != "never"
        and settings.preempt != "swap"
        and settings.prefix_sharing != "kept"
    ):
        yield (
            ("offload", "prefix_sharing"),
            f"nothing would go to the tier of offload: {settings.offload}; it takes preempt: swap "
            "or prefix_sharing: kept",
        )


def _limit_faults(settings: Settings) -> Iterator[PairFault]:
    budget_bytes, limit_bytes = settings.memory_budget_bytes, settings.memory_limit_bytes
    if budget_bytes is not None and settings.device == "cuda":
        yield (
            ("memory_budget_bytes", "device"),
            "a memory_budget is one of host memory, and with device: cuda the KV pool is in the GPU's; "
            "max_kv_tokens says how large it is",
        )
    if budget_bytes is not None and limit_bytes is not None and budget_bytes > limit_bytes:
        yield (
            ("memory_budget_bytes", "memory_limit_bytes"),
            f"memory_budget {bytes_text(budget_bytes)} is more than memory_limit "
            f"{bytes_text(limit_bytes)}: the engine would be killed before it keeps to its budget",
        )
    if not settings.degrade:
        return
    if limit_bytes is None:
        yield (
            ("degrade", "memory_limit_bytes"),
            "something is given up when a memory limit comes near, and there is none; set memory_limit",
        )
    twice = sorted({step for step in settings.degrade if settings.degrade.count(step) > 1})
    if twice:
        yield ("degrade", "degrade"), f"{' and '.join(twice)} is there twice, expected once"
    if "shrink_batch" in settings.degrade and not settings.chunk_prompts:
        yield (
            ("degrade", "chunk_prompts"),
            "shrink_batch makes max_batch_tokens smaller, which no prompt keeps with chunk_prompts: "
            "false",
        )
    if "offload" in settings.degrade:
        if settings.prefix_sharing != "kept":
            yield (
                ("degrade", "prefix_sharing"),
                "offload moves kept blocks to the tier, and prefix_sharing: "
                f"{settings.prefix_sharing} keeps none; set prefix_sharing: kept",
            )
        if settings.offload == "never":
            yield (
                ("degrade", "offload"),
                "offload moves kept blocks to the offload tier, and offload: never has none; set "
                "offload: disk",
            )
