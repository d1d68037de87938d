"""Suggestions about the KV cache and who may hold it: formats, sharing, making way, a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memplan.stats.explanation import Suggestion
from memplan.stats.situation import NOT_MEASURED, Situation
from memplan.units import MIB, bytes_text

_VALUE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 9 / 8}
"""Of one number of a key or a value; int8 has 4 bytes for a group of 32 beside it."""
_INT4_VALUE_BYTES = 5 / 8
"""Half a byte, and 4 bytes for a group of 32 (engines/torch/kv_format.py)."""


def narrower_kv(at: Situation) -> Iterator[Suggestion]:
    kv, stored = at.attribution.kv_bytes, str(at.settings.get("kv"))
    now = _VALUE_BYTES.get(stored)
    if at.engine.engine != "torch" or not kv or now is None:
        return
    if stored == "fp32":
        yield _narrower(kv, "kv", "bf16", stored, 2, now, f"2 bytes a value instead of {now:g}")
    if now > _VALUE_BYTES["int8"]:
        after = _VALUE_BYTES["int8"]
        words = f"{after:g} bytes a value instead of {now:g}: about"
        yield _narrower(kv, "kv_int8", "int8", stored, after, now, words)
    words = f"{_INT4_VALUE_BYTES:g} bytes a value instead of {now:g}: about"
    yield _narrower(kv, "kv_int4", "int4", stored, _INT4_VALUE_BYTES, now, words)


def _narrower(
    kv: int, code: str, form: str, stored: str, after: float, now: float, words: str
) -> Suggestion:
    saved = kv * (1 - after / now)
    loses = "" if form == "bf16" else " and what it does to answers too"
    colon = ":" if form == "bf16" else ""
    return Suggestion(
        code=code,
        change=f"kv: {form} (now {stored})",
        effect=f"{words}{colon} {bytes_text(kv)} × (1 − {after:g} / {now:g}) = {bytes_text(saved)}; "
        f"{NOT_MEASURED}{loses}",
        saves_bytes=saved,
        is_measured=False,
    )


def prefix_sharing(at: Situation) -> Iterator[Suggestion]:
    """Where prompts in flight begin alike and each has a KV of its own; and where blocks are kept."""
    repeats, per_token = at.repeats, at.engine.kv_bytes_per_token
    kept = at.segment.gauges.get("engine.kv_kept", 0)
    setting = at.settings.get("prefix_sharing")
    if setting == "off" and repeats.held_tokens and at.engine.kv_kind == "growing":
        saved = repeats.held_tokens * per_token
        ratio = repeats.run_tokens / repeats.prompt_tokens
        yield Suggestion(
            code="prefix_sharing",
            change="prefix_sharing: running (now off)",
            effect=f"{repeats.held_tokens:,} prompt tokens in flight, in whole blocks, began as "
            f"another request's in flight did: about {repeats.held_tokens:,} × "
            f"{bytes_text(per_token)} = {bytes_text(saved)}; in the run {ratio:.0%} of all prompt "
            f"tokens repeat a beginning; {NOT_MEASURED}",
            saves_bytes=saved,
            is_measured=False,
        )
    if setting == "kept" and kept and at.engine.kv_kind == "growing":
        yield Suggestion(
            code="prefix_sharing",
            change="prefix_sharing: running (now kept)",
            effect=f"{bytes_text(kept)} were kept for who may come and held by no request; they make "
            "way when KV blocks run out, and not before. Prompts that begin alike and do not overlap "
            "are then read again",
            saves_bytes=kept,
            is_measured=True,
        )


def make_way(at: Situation) -> Iterator[Suggestion]:
    """A smaller pool into which more are let than can end in it at once, the youngest making way."""
    per_token, block = at.engine.kv_bytes_per_token, at.engine.kv_block_tokens
    if not per_token or at.engine.kv_pool_tokens <= 0:
        return
    needed = max(at.longest_tokens, at.count("context_tokens") or 0, block)
    if at.engine.kv_kind == "reserved":
        needed = max(needed, -(-at.most_used_bytes // per_token))
        saved = (at.engine.kv_pool_tokens - needed) * per_token
        evidence = (
            f"at most {bytes_text(at.most_used_bytes)} of KV held tokens at once, of "
            f"{bytes_text(at.most_reserved_bytes)} reserved"
        )
        is_worth = at.settings.get("kv_reserve") == "whole" and (
            at.most_used_bytes < at.most_reserved_bytes
        )
    else:
        holders = [one for one in at.held if one.kv_used_bytes]
        used = sum(one.kv_used_bytes for one in holders)
        first = sum(one.kv_used_bytes for one in holders[: -(-len(holders) // 2)])
        needed = -(-max(needed, -(-first // per_token)) // block) * block
        saved = used - needed * per_token
        evidence = (
            f"of {bytes_text(used)} of KV that held tokens, what is beyond the pool would wait or make "
            "way, the youngest first"
        )
        is_worth = len(holders) > 1
    if not is_worth or saved <= 0:
        return
    moves = at.engine.engine == "torch"
    wanted = {"kv_reserve": "prompt", "preempt": "swap" if moves else "recompute"}
    if moves and at.settings.get("offload") == "never":
        wanted["offload"] = "disk" if at.engine.device == "cpu" else "host"
    changed = [f"{key}: {word}" for key, word in wanted.items() if at.settings.get(key) != word]
    instead = ", or with preempt: recompute is computed again" if moves else ""
    yield Suggestion(
        code="kv_reserve",
        change=", ".join([f"max_kv_tokens: {needed}{at.now('max_kv_tokens')}", *changed]),
        effect=f"{evidence}: about {bytes_text(saved)}; who makes way "
        f"{'comes back from there' if moves else 'is computed again'}{instead}; {NOT_MEASURED}",
        saves_bytes=saved,
        is_measured=False,
    )


def memory_budget(at: Situation) -> Iterator[Suggestion]:
    """A peak that admission keeps: with room for half the KV of this one, or the longest request."""
    parts, per_token = at.attribution, at.engine.kv_bytes_per_token
    is_set = at.settings.get("memory_budget_bytes") is not None
    if is_set or parts.place != "cpu" or at.engine.kv_kind != "growing" or len(at.held) < 2:
        return
    beside = parts.total_bytes - parts.kv_bytes
    kv = max(parts.kv_bytes // 2, at.longest_tokens * per_token)
    budget = -(-(beside + kv) // MIB) * MIB
    saved = parts.total_bytes - budget
    if saved > 0:
        yield Suggestion(
            code="memory_budget",
            change=f"memory_budget: {budget // MIB}MiB",
            effect=f"{bytes_text(beside)} beside KV, and {bytes_text(kv)} for KV: requests wait where "
            f"they would not fit, and the process keeps {bytes_text(budget)} instead of "
            f"{bytes_text(parts.total_bytes)}; {NOT_MEASURED}",
            saves_bytes=saved,
            is_measured=False,
        )


KV_RULES: tuple[Callable[[Situation], Iterator[Suggestion]], ...] = (
    narrower_kv,
    prefix_sharing,
    make_way,
    memory_budget,
)
