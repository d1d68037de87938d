"""What a user can change to lower one segment's peak, each derived from that segment's figures.

Only settings that model.yaml has are named. Nothing is guessed: an effect that no figure of the run
holds is said to be not measured, with None for its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from memplan.stats.explanation import Suggestion
from memplan.stats.kv_suggestions import KV_RULES
from memplan.stats.situation import NOT_MEASURED, Situation, sum_text
from memplan.units import bytes_text

_SLACK_RATIO = 0.05
# glibc's own first values. It raises both by itself as long as neither is set (mallopt(3)).
_MALLOC_THRESHOLDS = {
    "malloc_mmap_threshold": "MALLOC_MMAP_THRESHOLD_",
    "malloc_trim_threshold": "MALLOC_TRIM_THRESHOLD_",
}
_MALLOC_FIRST = "128KiB"
_INT4_BITS = 5
"""Of a weight in groups of 32, with its scale and minimum."""


def suggestions_of(situation: Situation) -> tuple[Suggestion, ...]:
    """The budget first, then the most bytes saved first, the unknown last."""
    found = [suggestion for rule in _RULES for suggestion in rule(situation)]
    saving = sorted(found, key=lambda one: (one.saves_bytes is None, -(one.saves_bytes or 0)))
    return (*_over_budget(situation), *saving)


def _over_budget(at: Situation) -> Iterator[Suggestion]:
    mine = [one for one in at.held if one.class_name == at.class_name]
    largest = max(mine, key=lambda one: one.owned_bytes)
    if at.budget_bytes is None or largest.owned_bytes <= at.budget_bytes:
        return
    over = largest.owned_bytes - at.budget_bytes
    place = at.attribution.place
    effect = (
        f"{largest.request_id} owned {bytes_text(largest.owned_bytes)} of a budget.{place} of "
        f"{bytes_text(at.budget_bytes)}: exceeded by {bytes_text(over)}"
    )
    per_token = at.engine.kv_bytes_per_token
    if per_token and over <= largest.kv_used_bytes:
        tokens = -int(-over // per_token)
        effect += f" = {tokens:,} tokens × {bytes_text(per_token)} of KV"
    yield Suggestion(
        code="over_budget",
        change=f"shorter {at.class_name} requests, or a larger budget.{place}",
        effect=f"{effect}; {NOT_MEASURED}",
        saves_bytes=over,
        is_measured=False,
    )


def _fewer_requests(at: Situation) -> Iterator[Suggestion]:
    """Half of those in flight, or as many more as it takes to leave out one that had KV yet.

    Admission is first come, first served, so it is the last who would wait.
    """
    last_holder = max((n for n, one in enumerate(at.held) if one.kv_used_bytes), default=0)
    kept = min(len(at.held) - len(at.held) // 2, last_holder)
    left_out = at.held[kept:]
    saved = sum(one.kv_used_bytes for one in left_out)
    if at.engine.kv_kind == "growing" and kept:
        yield Suggestion(
            code="max_requests",
            change=f"max_requests: {kept}{at.now('max_requests')}",
            effect=f"of {len(at.held)} in flight the last {len(left_out)} admitted would have "
            f"waited, and with them their KV: {sum_text([o.kv_used_bytes for o in left_out])}",
            saves_bytes=saved,
            is_measured=True,
        )


def _smaller_pool(at: Situation) -> Iterator[Suggestion]:
    """A pool that is resident from the start need not be larger than what was ever reserved of it."""
    per_token, pool_tokens = at.engine.kv_bytes_per_token, at.engine.kv_pool_tokens
    if at.engine.kv_kind != "reserved" or not per_token:
        return
    used_tokens = -(-at.most_reserved_bytes // per_token)
    needed_tokens = max(used_tokens, at.count("context_tokens") or 0)
    saved = (pool_tokens - needed_tokens) * per_token
    if saved > 0:
        yield Suggestion(
            code="max_kv_tokens",
            change=f"max_kv_tokens: {needed_tokens}{at.now('max_kv_tokens')}",
            effect=f"at most {used_tokens:,} of the pool's {pool_tokens:,} tokens were reserved at "
            f"once: ({pool_tokens:,} − {needed_tokens:,}) × {bytes_text(per_token)} = "
            f"{bytes_text(saved)}; {NOT_MEASURED}",
            saves_bytes=saved,
            is_measured=False,
        )


def _smaller_batch(at: Situation) -> Iterator[Suggestion]:
    """Half the step's tokens, but no fewer than model.yaml allows: one for each request."""
    tokens = at.segment.prefill_tokens + at.segment.decode_tokens
    least = at.count("max_requests") or at.engine.max_requests
    fewer = max(tokens // 2, least)
    activations = at.attribution.activations_bytes
    if activations and at.segment.prefill_tokens and fewer < tokens:
        saved = activations * (1 - fewer / tokens)
        yield Suggestion(
            code="max_batch_tokens",
            change=f"max_batch_tokens: {fewer}{at.now('max_batch_tokens')}",
            effect=f"{fewer:,} instead of {tokens:,} tokens in the step: about "
            f"{bytes_text(activations)} × (1 − {fewer:,} / {tokens:,}) = {bytes_text(saved)}, if "
            f"activations are proportional to tokens; {NOT_MEASURED}",
            saves_bytes=saved,
            is_measured=False,
        )


def _narrower_weights(at: Situation) -> Iterator[Suggestion]:
    weights, stored = at.attribution.weights_bytes, at.settings.get("weights")
    if at.engine.engine != "torch" or not weights:
        return
    if stored == "fp32":
        yield Suggestion(
            code="weights",
            change="weights: bf16 (now fp32)",
            effect=f"2 bytes a value instead of 4: about {bytes_text(weights)} × (1 − 2 / 4) = "
            f"{bytes_text(weights / 2)}; {NOT_MEASURED}",
            saves_bytes=weights / 2,
            is_measured=False,
        )
    bits = {"bf16": 16, "int8": 8, "int8_dynamic": 8}.get(str(stored))
    if bits is not None:
        most = weights * (1 - _INT4_BITS / bits)
        yield Suggestion(
            code="weights_int4",
            change=f"weights: int4 (now {stored})",
            effect=f"{_INT4_BITS} bits a weight instead of {bits}, of all linear layers but the head: "
            f"at most {bytes_text(weights)} × (1 − {_INT4_BITS} / {bits}) = {bytes_text(most)}; how "
            f"much of it they are is not in this recording; {NOT_MEASURED} and what it does to answers "
            "too",
            saves_bytes=None,
            is_measured=False,
        )
    if stored == "bf16":
        mapped = at.engine.weights_mapped_bytes
        shared = f", {bytes_text(mapped)} of them file pages that replicas share" if mapped else ""
        yield Suggestion(
            code="weights",
            change="weights: int8 (now bf16)",
            effect=f"the weights are {bytes_text(weights)}{shared}; which of them int8 makes "
            f"smaller is not in this recording; {NOT_MEASURED}",
            saves_bytes=None,
            is_measured=False,
        )


def _less_slack(at: Situation) -> Iterator[Suggestion]:
    slack, total = at.attribution.allocator_slack_bytes, at.attribution.total_bytes
    env = at.settings.get("env")
    known = env if isinstance(env, Mapping) else {}
    unset = [
        key
        for key, variable in _MALLOC_THRESHOLDS.items()
        if variable not in known and at.settings.get(f"{key}_bytes") is None
    ]
    is_glibc = at.settings.get("allocator", "system") == "system"
    if at.attribution.place == "cpu" and is_glibc and unset and slack > _SLACK_RATIO * total:
        yield Suggestion(
            code="allocator_slack",
            change=", ".join(f"{key}: {_MALLOC_FIRST}" for key in unset),
            effect=f"slack is {bytes_text(slack)}, {slack / total * 100:.1f} % of the peak; with fixed "
            f"thresholds malloc gives more of it back: at most {bytes_text(slack)}; "
            f"{NOT_MEASURED}",
            saves_bytes=slack,
            is_measured=False,
        )


def _fewer_replicas(at: Situation) -> Iterator[Suggestion]:
    parts = at.attribution
    others = (
        parts.weights_bytes,
        parts.kv_bytes,
        parts.activations_bytes,
        parts.allocator_slack_bytes,
        parts.page_cache_bytes,
        parts.unexplained_bytes,
    )
    if parts.runtime_bytes > max(others):
        share = f"{parts.runtime_bytes / parts.total_bytes * 100:.1f} %"
        yield Suggestion(
            code="runtime",
            change="fewer replicas with more requests each",
            effect=f"runtime is the largest part, {bytes_text(parts.runtime_bytes)} or {share} of "
            "the peak, and every replica holds it once: this peak stays, the fleet's falls by as "
            f"much for each replica left out; {NOT_MEASURED}",
            saves_bytes=0,
            is_measured=False,
        )


_RULES: tuple[Callable[[Situation], Iterator[Suggestion]], ...] = (
    _fewer_requests,
    _smaller_pool,
    _smaller_batch,
    *KV_RULES,
    _narrower_weights,
    _less_slack,
    _fewer_replicas,
)
