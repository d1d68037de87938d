"""What a profile's ladder measured: a rung's peak over idle and its pace, what a class costs alone,
and how far fresh processes of the variant differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from memplan.records import EngineFacts, Recording, Request, RequestRecord, Segment
from memplan.stats.attribution import gpu_resident_bytes
from memplan.stats.intervals import order_ranks
from memplan.stats.summary import Rung, SoloCost, Timed, VariantFacts

_SOLO = "solo:"


def rungs_of(recording: Recording) -> tuple[Rung, ...]:
    """One Rung a wave that ran, in order; solo waves have their own figure. Empty for a replay."""
    if recording.header.kind != "profile":
        return ()
    return tuple(
        rung
        for wave, requests in _waves(recording.requests).items()
        if not wave.startswith(_SOLO) and (rung := _rung(wave, requests, recording)) is not None
    )


def solo_costs_of(recording: Recording) -> tuple[SoloCost, ...]:
    """Peak minus idle of each class's solo waves, each in a fresh process."""
    if recording.header.kind != "profile":
        return ()
    by_class: dict[str, list[Rung]] = {}
    shape: dict[str, Request] = {}
    ended: dict[str, list[RequestRecord]] = {}
    for wave, requests in _waves(recording.requests).items():
        rung = _rung(wave, requests, recording) if wave.startswith(_SOLO) else None
        if rung is not None:
            by_class.setdefault(requests[0].class_name, []).append(rung)
            shape[requests[0].class_name] = requests[0]
            outcome = recording.outcomes[requests[0].request_id]
            ended.setdefault(requests[0].class_name, []).append(outcome)
    return tuple(
        _solo_cost(name, shape[name], rungs, ended[name]) for name, rungs in by_class.items()
    )


def variant_facts_of(recording: Recording) -> VariantFacts | None:
    """None for a replay."""
    if recording.header.kind != "profile":
        return None
    settings = recording.header.deployment.get("settings")
    step = recording.header.deployment.get("stack_step")
    first = next(iter(recording.engines), None)
    idles = [_idle_bytes(one, on_gpu=one.device != "cpu") for one in recording.engines]
    return VariantFacts(
        settings=settings if isinstance(settings, Mapping) else {},
        stack_step=step if isinstance(step, int) else None,
        weights_bytes=first.weights_bytes if first else None,
        kv_bytes_per_token=first.kv_bytes_per_token if first else None,
        idle_bytes=median(idles) if idles else None,
        idle_low_bytes=min(idles, default=None),
        idle_high_bytes=max(idles, default=None),
        idle_n=len(idles),
        drift_bound_bytes=recording.header.drift_bound_bytes,
        longest_tokens=recording.header.workload.longest_tokens,
    )


def _solo_cost(
    name: str, request: Request, rungs: Sequence[Rung], ended: Sequence[RequestRecord]
) -> SoloCost:
    costs = [rung.peak_bytes - rung.idle_bytes for rung in rungs]
    return SoloCost(
        class_name=name,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        n=len(costs),
        median_bytes=median(costs),
        min_bytes=min(costs),
        max_bytes=max(costs),
        kv_bytes=rungs[0].kv_bytes,
        place=rungs[0].place,
        ttft=_timed([s for one in ended if (s := _ttft_s(one)) is not None]),
        tpot=_timed([s for one in ended if (s := _tpot_s(one)) is not None]),
    )


def _timed(times_s: Sequence[float]) -> Timed | None:
    """With its smallest and largest."""
    if not times_s:
        return None
    return Timed(n=len(times_s), median_s=median(times_s), low_s=min(times_s), high_s=max(times_s))


def _ttft_s(outcome: RequestRecord) -> float | None:
    """Of a completed request; a negative one is none, as everywhere."""
    if outcome.outcome != "completed" or outcome.first_token_s is None or outcome.sent_s is None:
        return None
    took_s = outcome.first_token_s - outcome.sent_s
    return took_s if took_s >= 0 else None


def _tpot_s(outcome: RequestRecord) -> float | None:
    if outcome.outcome != "completed" or outcome.first_token_s is None or outcome.end_s is None:
        return None
    took_s = outcome.end_s - outcome.first_token_s
    return took_s / (outcome.output_tokens_run - 1) if outcome.output_tokens_run > 1 else None


def _waves(requests: Sequence[Request]) -> dict[str, list[Request]]:
    waves: dict[str, list[Request]] = {}
    for request in requests:
        waves.setdefault(request.wave, []).append(request)
    return waves


def _rung(wave: str, requests: Sequence[Request], recording: Recording) -> Rung | None:
    """None when no segment saw a request of the wave (it was rejected, or the run ended)."""
    ids = {request.request_id for request in requests}
    segments = [s for s in recording.segments if any(f.request_id in ids for f in s.in_flight)]
    engine = next(
        (e for e in recording.engines if segments and e.engine_start == segments[0].engine_start),
        None,
    )
    if engine is None:
        return None
    on_gpu = engine.device != "cpu"
    outcomes = [recording.outcomes[i] for i in ids]
    ends = [
        o.end_s - o.intended_s for o in outcomes if o.end_s is not None and o.intended_s is not None
    ]
    done = [o for o in outcomes if o.outcome == "completed"]
    e2e_s = max(ends, default=None)
    is_whole = len(done) == len(requests) and e2e_s is not None and e2e_s > 0
    return Rung(
        wave=wave,
        requests=len(requests),
        tokens_per_request=requests[0].input_tokens + requests[0].output_tokens,
        idle_bytes=_idle_bytes(engine, on_gpu=on_gpu),
        peak_bytes=max(_peak_bytes(s, engine, on_gpu=on_gpu) for s in segments),
        kv_bytes=sum(r.input_tokens + r.output_tokens - 1 for r in requests)
        * engine.kv_bytes_per_token,
        e2e_s=e2e_s,
        place="gpu" if on_gpu else "cpu",
        completed=len(done),
        output_tokens_per_s=sum(o.output_tokens_run for o in done) / e2e_s
        if is_whole and e2e_s
        else None,
        decode_step=_step_time(list(_decoding(segments, ids))),
    )


def _decoding(segments: Sequence[Segment], ids: set[str]) -> Iterator[float]:
    """Seconds of each step in which all of ``ids`` decoded, one token each, and nothing else ran."""
    for segment in segments:
        is_theirs = {flight.request_id for flight in segment.in_flight} == ids
        is_pure = segment.prefill_tokens == 0 and segment.decode_tokens == len(ids)
        if segment.kind == "step" and is_theirs and is_pure and segment.end_s > segment.start_s:
            yield segment.end_s - segment.start_s


def _step_time(times_s: Sequence[float]) -> Timed | None:
    """With 95 % bounds of the median, or the smallest and largest where there are too few for them:
    steps of one process, so what fresh processes vary is not in it."""
    if not times_s:
        return None
    ordered = sorted(times_s)
    low, high = order_ranks(len(ordered), 0.5)
    return Timed(
        n=len(ordered),
        median_s=median(ordered),
        low_s=ordered[0 if low is None else low],
        high_s=ordered[-1 if high is None else high],
    )


def _peak_bytes(segment: Segment, engine: EngineFacts, *, on_gpu: bool) -> int:
    return gpu_resident_bytes(segment, engine) if on_gpu else segment.peak["host.hwm"]


def _idle_bytes(engine: EngineFacts, *, on_gpu: bool) -> int:
    if not on_gpu:
        return engine.idle["host.rss"]
    index = engine.device.partition(":")[2] or "0"
    return engine.idle.get(f"cuda.{index}.device_used", 0)
