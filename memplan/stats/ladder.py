"""What a profile's ladder measured: a rung's peak over idle, and what a class costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from memplan.records import EngineFacts, Recording, Request, Segment
from memplan.stats.attribution import gpu_resident_bytes
from memplan.stats.summary import Rung, SoloCost

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
    for wave, requests in _waves(recording.requests).items():
        rung = _rung(wave, requests, recording) if wave.startswith(_SOLO) else None
        if rung is not None:
            by_class.setdefault(requests[0].class_name, []).append(rung)
            shape[requests[0].class_name] = requests[0]
    return tuple(_solo_cost(name, shape[name], rungs) for name, rungs in by_class.items())


def _solo_cost(name: str, request: Request, rungs: Sequence[Rung]) -> SoloCost:
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
    )


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
    ends = [
        o.end_s - o.intended_s
        for o in (recording.outcomes[i] for i in ids)
        if o.end_s is not None and o.intended_s is not None
    ]
    return Rung(
        wave=wave,
        requests=len(requests),
        tokens_per_request=requests[0].input_tokens + requests[0].output_tokens,
        idle_bytes=_idle_bytes(engine, on_gpu=on_gpu),
        peak_bytes=max(_peak_bytes(s, engine, on_gpu=on_gpu) for s in segments),
        kv_bytes=sum(r.input_tokens + r.output_tokens - 1 for r in requests)
        * engine.kv_bytes_per_token,
        e2e_s=max(ends, default=None),
        place="gpu" if on_gpu else "cpu",
    )


def _peak_bytes(segment: Segment, engine: EngineFacts, *, on_gpu: bool) -> int:
    return gpu_resident_bytes(segment, engine) if on_gpu else segment.peak["host.hwm"]


def _idle_bytes(engine: EngineFacts, *, on_gpu: bool) -> int:
    if not on_gpu:
        return engine.idle["host.rss"]
    index = engine.device.partition(":")[2] or "0"
    return engine.idle.get(f"cuda.{index}.device_used", 0)
