"""What to measure, from a command's words: the variant, its requests as waves, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.engines import context_tokens_of
from memplan.errors import InputError
from memplan.gateway.routing import route_of
from memplan.records import Request, WindowFacts, WorkloadFacts
from memplan.specs import Deployment
from memplan.units import parse_bytes, parse_seconds
from memplan.workload.classify import TRACE_WAVE, class_rules, free_id, plan_requests
from memplan.workload.ladder import Wave, ladder_requests
from memplan.workload.retries import RetryPolicy
from memplan.workload.scored_text import ScoredText, read_scored_text
from memplan.workload.slicing import share_of
from memplan.workload.trace import read_trace
from memplan.workload.turns import in_turns

if TYPE_CHECKING:
    from memplan.workload.reference_waves import Against

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
    replicas: int = 1,
    against: Against | None = None,
    closed_loop: bool = False,
    retries: RetryPolicy | None = None,
) -> Workload:
    """A trace as one wave, or as ``repeats`` of them, each on a fresh engine.

    Held ``against`` a reference it may be windows of the trace instead, each a wave; ``start_row`` is
    for replays without one.

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
    mean_dilation = dilation
    if against is None:
        requests = plan_requests(
            trace,
            classes=deployment.classes,
            length_scale=length_scale,
            dilation=dilation,
            limit=limit,
            start_row=start_row,
        )
    else:
        from memplan.workload.reference_waves import (  # noqa: PLC0415 - 11 MiB of numpy
            dilation_of,
            judged_requests,
        )

        requests, windows = judged_requests(
            replace(trace, rows=trace.rows[:limit]),
            deployment.classes,
            against,
            length_scale=length_scale,
            dilation=dilation,
        )
        mean_dilation = dilation_of(windows) or dilation
    if closed_loop:
        rows = trace.rows[start_row : None if limit is None else start_row + limit]
        reference = against.reference if against is not None else None
        requests = in_turns(requests, rows, reference, dilation=dilation)
    if retries is not None and any(request.retry_of is not None for request in requests):
        raise InputError(
            f"{path}: it lists its retries, and --retry would send them twice",
            hint="leave --retry out",
        )
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
        dilation=mean_dilation,
        class_rules=class_rules(deployment.classes, (request.class_name for request in requests)),
        is_closed_loop=closed_loop,
        retries=retries.text if retries is not None else None,
        reference=against.reference.text if against is not None else None,
        windows=windows,
    )
    if len(windows) > 1:
        return _waves_of(requests), workload
    return repeated(requests, repeats), workload


def probe_waves(
    path: Path,
    deployment: Deployment,
    *,
    trace_format: str | None,
    columns: str | None,
    limit: int | None,
    length_scale: float,
    replicas: int,
) -> Workload:
    """What shows an engine's speed, of the lengths that the trace's first ``limit`` rows have."""
    from memplan.workload.reference_waves import probe_requests  # noqa: PLC0415 - as above

    trace = share_of(read_trace(path, trace_format, columns=columns), replicas, seed=0)
    requests = probe_requests(
        replace(trace, rows=trace.rows[:limit]),
        deployment.classes,
        length_scale=length_scale,
        most_tokens=_most_tokens(deployment),
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
    return _waves_of(requests), workload


def _waves_of(requests: Sequence[Request]) -> tuple[Wave, ...]:
    """Those of one wave are together already."""
    waves = groupby(requests, key=lambda one: one.wave)
    return tuple(Wave(name=name, fresh=False, requests=tuple(group)) for name, group in waves)


def repeated(requests: tuple[Request, ...], repeats: int) -> tuple[Wave, ...]:
    """The same requests once for each replay; from the second on under ids of their own."""
    if repeats == 1:
        return (Wave(name=TRACE_WAVE, fresh=False, requests=requests),)
    taken = {request.request_id for request in requests}
    waves = []
    for number in range(1, repeats + 1):
        name = f"replay {number}"
        sent = []
        own_ids: dict[str, str] = {}
        for request in requests:
            own_id = request.request_id
            if number > 1:
                own_id = free_id(f"{own_id}#{number}", taken)
            own_ids[request.request_id] = own_id
            follows = own_ids[request.follows] if request.follows is not None else None
            # The first of its attempts may be a row that is not replayed.
            retry_of = own_ids.get(request.retry_of or "", request.retry_of)
            sent.append(
                replace(request, request_id=own_id, wave=name, follows=follows, retry_of=retry_of)
            )
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
