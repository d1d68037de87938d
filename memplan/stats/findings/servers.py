"""What is doubtful about an engine that is a server: memory that nobody sees, memory that only grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate

from memplan.records import EngineFacts, Finding, Recording
from memplan.stats.fit import fit_line

_SERVERS = ("llama", "vllm", "endpoint")
_LEAST_GROWTH_BYTES = 8 << 20
_LEAST_GROWTH_RATIO = 0.02
_ONE_TOKEN = (0.6, 1.4)
"""Of a token's KV: what the states of prompts that are kept come to, with what else moves."""
_FEWEST_ENDS = 4


def _memory_not_measured(recording: Recording) -> Iterator[Finding]:
    for engine in recording.engines:
        if engine.engine == "endpoint" and not engine.pids:
            source = engine.settings.get("memory", "no source")
            names = {name for sample in recording.samples for name in sample.values}
            seen = any(name.startswith(("cgroup.", "prometheus.")) for name in names)
            yield Finding(
                code="memory_not_measured",
                text="No process of this endpoint was measured: no resident memory, and none by class, "
                "is known. "
                + (
                    f"What was sampled beside it came from {source}."
                    if seen
                    else f"Memory: {source}."
                ),
                hint="Name its processes where memplan runs on their machine (server: {memory: {pids: "
                "[…]}}), or its control group, or a Prometheus server.",
            )
            return


def _grows_with_what_is_over(recording: Recording) -> Iterator[Finding]:
    """Anonymous memory against the tokens of all requests that have ended: what is in flight takes from
    a pool that was resident before, so that nothing should be left of a request that is over."""
    for engine in recording.engines:
        if engine.engine not in _SERVERS:
            continue
        points = _anonymous_after(recording, engine)
        line = fit_line(points)
        if line is None:
            continue
        grown = points[-1][1] - points[0][1]
        tokens = points[-1][0] - points[0][0]
        idle = engine.idle.get("host.anon", 0)
        if grown < max(_LEAST_GROWTH_BYTES, _LEAST_GROWTH_RATIO * idle) or tokens <= 0:
            continue
        in_tokens = line.slope / engine.kv_bytes_per_token if engine.kv_bytes_per_token else 0.0
        told = (
            f"Anonymous memory grew by {round(grown):,} bytes while requests of {round(tokens):,} "
            f"tokens came and went: {round(line.slope):,} bytes a token that is over"
        )
        if engine.engine == "llama" and _ONE_TOKEN[0] <= in_tokens <= _ONE_TOKEN[1]:
            yield Finding(
                code="prompt_cache_grows",
                text=f"{told}, {in_tokens:.2f} of a token's KV ({engine.kv_bytes_per_token:,} bytes). "
                "That is llama.cpp's prompt cache: the states of slots whose prompt is over are copied "
                f"to memory, up to its limit ({engine.settings.get('prompt_cache', 'unknown')}). Peaks "
                "of a longer replay will be higher than these.",
                hint="settings: {prompt_cache: 0MiB} turns it off (llama-server: --cache-ram 0); a "
                "limit that memory has room for bounds it.",
            )
        else:
            yield Finding(
                code="memory_grows",
                text=f"{told}. Nothing of a request that is over should stay, and the KV pool was "
                "resident from the start: peaks of a longer replay may be higher than these.",
                hint="Replay longer to see whether it ends; look for caches in the server's settings.",
            )


def _anonymous_after(recording: Recording, engine: EngineFacts) -> list[tuple[float, float]]:
    """(tokens of requests that have ended, anonymous bytes then), for each segment of the start in which
    something ran or nothing was left to run."""
    ended = sorted(
        (outcome.end_s, outcome.input_tokens_run + outcome.output_tokens_run)
        for outcome in recording.outcomes.values()
        if outcome.outcome == "completed" and outcome.end_s is not None
    )
    if len(ended) < _FEWEST_ENDS:
        return []
    times = [at_s for at_s, _ in ended]
    total = [0, *accumulate(tokens for _, tokens in ended)]
    return [
        (float(total[bisect_right(times, s.end_s)]), float(s.gauges["host.anon"]))
        for s in recording.segments
        if s.engine_start == engine.engine_start
        and s.kind in ("step", "idle")
        and s.end_s >= times[0]
        and "host.anon" in s.gauges
    ]


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _memory_not_measured,
    _grows_with_what_is_over,
)
