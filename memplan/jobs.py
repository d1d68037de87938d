"""What to measure, from a command's words: the variant, its requests as waves, and the limits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memplan.engines import context_tokens_of
from memplan.errors import InputError
from memplan.gateway.routing import route_of
from memplan.in_flight import Life
from memplan.records import Request, WindowFacts, WorkloadFacts
from memplan.specs import Deployment
from memplan.units import parse_bytes, parse_seconds
from memplan.workload.classify import TRACE_WAVE, class_rules, plan_requests
from memplan.workload.dilation import Speed, fitted_dilation
from memplan.workload.ladder import Wave, ladder_requests
from memplan.workload.reference import Reference, lives_of
from memplan.workload.scored_text import ScoredText, read_scored_text
from memplan.workload.slicing import share_of
from memplan.workload.trace import Trace, read_trace
from memplan.workload.windows import windows_of

_PROBE_OUTPUT_TOKENS = 8
Workload = tuple[tuple[Wave, ...], WorkloadFacts]


def variant_names(deployment: Deployment) -> list[str]:
    return [one.variant for one in deployment.variants_resolved()]


def variant_of(deployment: Deployment, name: str) -> Deployment:
    """The deployment with that variant's settings in place. Raises InputError for an unknown one."""
    for one in deployment.variants_resolved():
        if one.variant == name:
            return one
    raise InputError(
        f"--variant {name}: model.yaml has no such variant",
        hint=f"choose one of: {', '.join(variant_names(deployment))}",
    )


def chosen_variants(deployment: Deployment, names: Sequence[str]) -> tuple[Deployment, ...]:
    """Those of the names, each once; all without names. Raises InputError for an unknown one."""
    if not names:
        every = deployment.variants_resolved()
        return every[1:] if deployment.pools else every  # one engine after the other
    return tuple(variant_of(deployment, name) for name in dict.fromkeys(names))


def limited(deployment: Deployment, memory_limit: str | None) -> Deployment:
    """The deployment with the memory limit of the command line, where there is one."""
    if memory_limit is None:
        return deployment
    try:
        limit_bytes = parse_bytes(memory_limit)
    except InputError as error:
        raise InputError(f"--memory-limit: {error.message}", hint="--memory-limit 2GiB") from error
    if deployment.engine == "scripted":
        raise InputError(
            "--memory-limit: engine scripted allocates no memory",
            hint="leave the limit out, or use the engines torch or ballast",
        )
    if deployment.pools:
        raise InputError(
            "--memory-limit: model.yaml has pools, and a limit belongs to one engine",
            hint="write settings: {memory_limit: …} in each pool, or replay one: --variant POOL",
        )
    settings = deployment.settings.model_copy(update={"memory_limit_bytes": limit_bytes})
    return replace(deployment, settings=settings)


def trace_waves(
    path: Path,
    deployment: Deployment,
    *,
    trace_format: str | None = None,
    columns: str | None = None,
    limit: int | None = None,
    length_scale: float = 1.0,
    dilation: float = 1.0,
    oversize: str = "refuse",
    repeats: int = 1,
    start_row: int = 0,
    reference: Reference | None = None,
    is_paced: bool = False,
    within_s: float | None = None,
    replicas: int = 1,
    speed: Speed | None = None,
) -> Workload:
    """A trace as one open-loop wave, or as ``repeats`` of them, each on a fresh engine.

    With a ``reference`` and where the trace, dilated, takes longer than ``within_s``: the windows of it
    that say most, each a wave. With the ``speed`` of the engine, which is paced, each of them gets the
    dilation at which it keeps up.

    Raises InputError for a trace that cannot be read and, unless ``oversize`` is ``reject``, for
    requests that the engine could never take; MachineError when the engine's packages are missing.
    """
    if length_scale <= 0 or dilation <= 0:
        raise InputError(
            f"--length-scale {length_scale:g}, --dilation {dilation:g}: expected numbers above 0",
            hint="leave them out to replay the trace as it is",
        )
    if oversize not in ("refuse", "reject"):
        raise InputError(
            f"--oversize {oversize}: expected refuse or reject", hint="--oversize reject"
        )
    trace = share_of(read_trace(path, trace_format, columns=columns), replicas, seed=0)
    windows: tuple[WindowFacts, ...] = ()
    if reference is None:
        requests = plan_requests(
            trace,
            classes=deployment.classes,
            length_scale=length_scale,
            dilation=dilation,
            limit=limit,
            start_row=start_row,
        )
    else:
        taken = replace(trace, rows=trace.rows[start_row:][:limit])
        planned = _windows(
            taken, deployment, reference, within_s, length_scale, speed or dilation, is_paced
        )
        requests = tuple(one for part, _ in planned for one in part)
        windows = tuple(facts for _, facts in planned)
    if oversize == "refuse":
        if deployment.pools:
            _refuse_without_pool(requests, deployment, path)
        else:
            _refuse_oversize(requests, deployment, path)
    workload = WorkloadFacts(
        source=path.name,
        format=trace.format,
        sha256=trace.sha256,
        rows_read=trace.rows_read,
        rows_kept=trace.rows_kept,
        dropped=trace.dropped,
        span_s=sum(one.trace_end_s - one.trace_start_s for one in windows)
        or max(r.arrival_s for r in requests) / dilation,
        length_scale=length_scale,
        dilation=_mean_dilation(windows) or dilation,
        class_rules=class_rules(deployment.classes, requests),
        reference=reference.text if reference is not None else None,
        windows=windows,
    )
    if len(windows) > 1:
        return _waves_of(requests, windows), workload
    return repeated(requests, repeats), workload


def _windows(
    trace: Trace,
    deployment: Deployment,
    reference: Reference,
    within_s: float | None,
    length_scale: float,
    dilation: float | Speed,
    is_paced: bool,
) -> list[tuple[tuple[Request, ...], WindowFacts]]:
    """The requests of each window and what the window is. One that is in two windows, as when another
    one's warm-up begins in it, is sent in both, under ids of their own. ``dilation`` may be the engine's
    speed instead: then each window has the one at which the engine keeps the pace."""
    span_s = trace.rows[-1].timestamp_s - trace.rows[0].timestamp_s
    lives = lives_of(trace.rows, reference)

    def dilation_of(sent: Sequence[Life]) -> float:
        if isinstance(dilation, Speed):
            return fitted_dilation(sent, dilation, length_scale=length_scale)
        return dilation

    chosen = windows_of(lives, span_s, within_s, dilation_of)
    times_s = [row.timestamp_s for row in trace.rows]
    found, taken = [], set[str]()
    for number, (window, slower) in enumerate(chosen, start=1):
        first = bisect_left(times_s, window.warm_up_s)
        last = bisect_right(times_s, window.end_s)
        if last <= first:
            continue
        wave = TRACE_WAVE if len(chosen) == 1 else f"window {number}"
        requests = []
        for one in plan_requests(
            trace,
            classes=deployment.classes,
            length_scale=length_scale,
            dilation=slower,
            start_row=first,
            limit=last - first,
            wave=wave,
            reference=reference,
            is_paced=is_paced,
        ):
            own_id = one.request_id
            while own_id in taken:
                own_id += "#"
            taken.add(own_id)
            requests.append(replace(one, request_id=own_id))
        facts = WindowFacts(
            wave=wave,
            text=window.text,
            trace_start_s=window.start_s,
            trace_end_s=window.end_s,
            start_s=(window.start_s - times_s[first]) * slower,
            end_s=(window.end_s - times_s[first]) * slower,
            dilation=slower,
        )
        found.append((tuple(requests), facts))
    return found


def probe_waves(
    path: Path,
    deployment: Deployment,
    *,
    trace_format: str | None,
    columns: str | None,
    length_scale: float,
    replicas: int,
) -> Workload:
    """A few requests of the trace that show an engine's speed: one of median and one of long length
    alone, then four at once."""
    trace = share_of(read_trace(path, trace_format, columns=columns), replicas, seed=0)
    most = _most_tokens(deployment)
    by_length = sorted(
        range(trace.rows_kept), key=lambda at: (trace.rows[at].input_tokens, trace.rows[at].line)
    )
    picked = [
        by_length[int(share * (len(by_length) - 1))] for share in (0.5, 0.9, 0.3, 0.4, 0.6, 0.7)
    ]
    requests = []
    for number, at in enumerate(picked):
        (one,) = plan_requests(
            trace,
            classes=deployment.classes,
            length_scale=length_scale,
            start_row=at,
            limit=1,
            wave=f"probe {min(number, 2) + 1}",
        )
        tokens = min(one.input_tokens, most - _PROBE_OUTPUT_TOKENS)
        requests.append(
            replace(
                one,
                request_id=f"p{number}",
                input_tokens=max(1, tokens),
                output_tokens=_PROBE_OUTPUT_TOKENS,
                prefix_ids=(),
            )
        )
    names = dict.fromkeys(one.wave for one in requests)
    waves = tuple(
        Wave(name=name, fresh=False, requests=tuple(r for r in requests if r.wave == name))
        for name in names
    )
    workload = WorkloadFacts(
        source=path.name,
        format=trace.format,
        sha256=trace.sha256,
        rows_read=trace.rows_read,
        rows_kept=len(requests),
        dropped={},
        span_s=0.0,
        length_scale=length_scale,
    )
    return waves, workload


def _mean_dilation(windows: Sequence[WindowFacts]) -> float | None:
    """Over the time of the trace; None without windows."""
    trace_s = sum(one.trace_end_s - one.trace_start_s for one in windows)
    return sum(one.end_s - one.start_s for one in windows) / trace_s if trace_s else None


def _waves_of(requests: Sequence[Request], windows: Sequence[WindowFacts]) -> tuple[Wave, ...]:
    return tuple(
        Wave(
            name=window.wave,
            fresh=False,
            requests=tuple(one for one in requests if one.wave == window.wave),
        )
        for window in windows
    )


def repeated(requests: tuple[Request, ...], repeats: int) -> tuple[Wave, ...]:
    """The same requests once for each replay; from the second on under ids of their own."""
    if repeats == 1:
        return (Wave(name=TRACE_WAVE, fresh=False, requests=requests),)
    taken = {request.request_id for request in requests}
    waves = []
    for number in range(1, repeats + 1):
        name = f"replay {number}"
        sent = []
        for request in requests:
            own_id = request.request_id if number == 1 else f"{request.request_id}#{number}"
            while number > 1 and own_id in taken:
                own_id += "#"
            taken.add(own_id)
            sent.append(replace(request, request_id=own_id, wave=name))
        waves.append(Wave(name=name, fresh=True, requests=tuple(sent)))
    return tuple(waves)


def _most_tokens(deployment: Deployment) -> int:
    """Of one request. What an endpoint's pool can hold, memplan does not know."""
    context_tokens, settings = context_tokens_of(deployment), deployment.settings
    if deployment.engine == "endpoint":
        return context_tokens
    pool_tokens = settings.max_kv_tokens // settings.block_tokens * settings.block_tokens
    return min(context_tokens, pool_tokens + 1)  # the last token's KV is never written


def _refuse_without_pool(requests: Sequence[Request], deployment: Deployment, path: Path) -> None:
    """Requests whose route leads to no pool that could take them."""
    own = {spec.name: deployment.pool(spec) for spec in deployment.pools}
    most = {name: _most_tokens(one) for name, one in own.items()}
    over = []
    for request in requests:
        route = route_of(deployment.routes, request)
        longest = max((most[name] for name in route.to), default=0) if route else None
        if longest is not None and request.input_tokens + request.output_tokens > longest:
            over.append(request.request_id)
    if over:
        raise InputError(
            f"{path}: {len(over)} of {len(requests)} requests are longer than any pool of their "
            f"route can take (first: {over[0]})",
            hint="--length-scale 0.5 halves all lengths; --oversize reject sends them and records "
            "the rejections",
        )


def _refuse_oversize(requests: Sequence[Request], deployment: Deployment, path: Path) -> None:
    most = _most_tokens(deployment)
    longest = max(r.input_tokens + r.output_tokens for r in requests)
    over = [r for r in requests if r.input_tokens + r.output_tokens > most]
    if not over:
        return
    limit = "the context" if most == context_tokens_of(deployment) else "max_kv_tokens"
    raise InputError(
        f"{path}: {len(over)} of {len(requests)} requests are longer than {limit} of "
        f"{most:,} tokens (first: {over[0].request_id}; longest: {longest:,} tokens)",
        hint=f"--length-scale {int(1e4 * most / longest) / 1e4:g} makes all fit; "
        "--oversize reject sends them and records the rejections",
    )


def ladder_waves(
    deployment: Deployment, repeats: int, longest_tokens: int | None = None
) -> Workload:
    """The ladder of a profile, with no prompt longer than ``longest_tokens``."""
    waves = ladder_requests(
        deployment.classes,
        context_tokens=context_tokens_of(deployment),
        max_requests=deployment.settings.max_requests,
        max_kv_tokens=deployment.settings.max_kv_tokens,
        solo_repeats=repeats,
        longest_tokens=longest_tokens,
    )
    count = sum(len(wave.requests) for wave in waves)
    workload = WorkloadFacts(
        source="ladder",
        format="synthetic",
        sha256=None,
        rows_read=count,
        rows_kept=count,
        dropped={},
        span_s=0.0,
        class_rules={spec.name: spec.rule for spec in deployment.classes},
        longest_tokens=longest_tokens,
    )
    return waves, workload


def text_to_score(
    deployment: Deployment, prompts: Path | None, *, is_wanted: bool, builtin: Path
) -> ScoredText | None:
    """What answers are compared over: the user's own prompts, else the built-in text; None where
    nothing is to be compared, or the engine gives no real answers. Raises InputError."""
    if prompts is not None and not is_wanted:
        raise InputError(
            f"--prompts {prompts}: with --no-quality nothing is scored",
            hint="leave one of the two out",
        )
    if deployment.engine == "torch":
        return read_scored_text(prompts or builtin) if is_wanted else None
    if prompts is not None:
        raise InputError(
            f"--prompts {prompts}: engine {deployment.engine} gives no real answers",
            hint="leave --prompts out, or use the engine torch",
        )
    return None


def sample_period_s(text: str) -> float:
    try:
        period_s = parse_seconds(text)
    except InputError as error:
        raise InputError(
            f"--sample-period: {error.message}", hint="--sample-period 50ms"
        ) from error
    if period_s < 1e-3:
        raise InputError(
            f"--sample-period {text}: expected at least 1ms", hint="--sample-period 50ms"
        )
    return period_s
