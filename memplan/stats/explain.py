"""A recording in, one explanation a class out: when its memory peaked, and who held what then."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.records import EngineFacts, Recording, Request, Segment
from memplan.stats import attribution as parts
from memplan.stats.explanation import Explanation, HeldRequest, RunExplanation
from memplan.stats.host_parts import composed_at, host_parts_of
from memplan.stats.prompt_repeats import prompt_repeats_of
from memplan.stats.situation import Situation
from memplan.stats.suggestions import suggestions_of
from memplan.stats.summarise import SERVING


def explain(recording: Recording, budget_bytes: Mapping[str, float]) -> RunExplanation:
    """``budget_bytes``: what one request of a class may own where its KV is, by class name.

    On a GPU run peaks are the device's. Rungs of a profile's ladder are no class.
    """
    engines = {engine.engine_start: engine for engine in recording.engines}
    place = "gpu" if any(engine.device != "cpu" for engine in recording.engines) else "cpu"
    segments = [
        s
        for s in recording.segments
        if s.kind in SERVING and _is_known(s, engines.get(s.engine_start), place)
    ]
    worst = {name: _worst_of(name, recording, segments, engines) for name in _classes(recording)}
    return RunExplanation(
        place=place,
        classes=tuple(
            _explanation(name, segment, recording, segments, engines, budget_bytes.get(name))
            for name, segment in worst.items()
            if segment is not None
        ),
        never_in_flight=tuple(name for name, segment in worst.items() if segment is None),
    )


def _classes(recording: Recording) -> tuple[str, ...]:
    """Those of model.yaml, and every other that a request has."""
    asked = (r.class_name for r in recording.requests if r.class_name != "ladder")
    return tuple(dict.fromkeys((*recording.header.workload.class_rules, *asked)))


def _is_known(segment: Segment, engine: EngineFacts | None, place: str) -> bool:
    if engine is None or (engine.device == "cpu") == (place == "gpu"):
        return False
    return place == "cpu" or f"{parts.gpu_prefix(engine)}.reserved" in segment.peak


def _peak_bytes(segment: Segment, engine: EngineFacts) -> int:
    if engine.device == "cpu":
        return segment.peak["host.hwm"]
    return parts.gpu_resident_bytes(segment, engine)


def _worst_of(
    class_name: str,
    recording: Recording,
    segments: list[Segment],
    engines: Mapping[int, EngineFacts],
) -> Segment | None:
    ids = {r.request_id for r in recording.requests if r.class_name == class_name}
    with_class = [s for s in segments if any(f.request_id in ids for f in s.in_flight)]
    # max() keeps the first of equals, and segments are in the order of time.
    return max(with_class, key=lambda s: _peak_bytes(s, engines[s.engine_start]), default=None)


def _explanation(
    class_name: str,
    segment: Segment,
    recording: Recording,
    segments: list[Segment],
    engines: Mapping[int, EngineFacts],
    budget_bytes: float | None,
) -> Explanation:
    engine = engines[segment.engine_start]
    if engine.device == "cpu":
        composed = composed_at(recording.segments, segment)
        attribution = host_parts_of(segment, engine, composed=composed)
        transient_bytes = parts.host_transient_bytes(segment)
    else:
        attribution = parts.gpu_parts_of(segment, engine)
        transient_bytes = parts.gpu_transient_bytes(segment, parts.gpu_prefix(engine))
    held = _held(segment, recording, transient_bytes, is_reserved=engine.kv_kind == "reserved")
    mine = [s for s in segments if s.engine_start == segment.engine_start]
    admitted = _by_admission(held, recording)
    situation = Situation(
        class_name=class_name,
        segment=segment,
        engine=engine,
        attribution=attribution,
        held=admitted,
        settings=_settings(recording),
        budget_bytes=budget_bytes,
        most_reserved_bytes=max(sum(f.kv_reserved_bytes for f in s.in_flight) for s in mine),
        most_used_bytes=max(sum(f.kv_used_bytes for f in s.in_flight) for s in mine),
        longest_tokens=max(r.input_tokens + r.output_tokens - 1 for r in recording.requests),
        repeats=prompt_repeats_of(
            admitted,
            {request.request_id: request for request in recording.requests},
            recording.requests,
            engine,
        ),
    )
    return Explanation(
        class_name=class_name,
        engine_start=segment.engine_start,
        kind=segment.kind,
        start_s=segment.start_s,
        end_s=segment.end_s,
        prefill_tokens=segment.prefill_tokens,
        decode_tokens=segment.decode_tokens,
        waiting=segment.waiting,
        transient_bytes=transient_bytes,
        attribution=attribution,
        held=tuple(sorted(held, key=lambda one: (-one.owned_bytes, one.request_id))),
        suggestions=suggestions_of(situation),
    )


def _held(
    segment: Segment, recording: Recording, transient_bytes: int, *, is_reserved: bool
) -> list[HeldRequest]:
    asked: Mapping[str, Request] = {r.request_id: r for r in recording.requests}
    found = []
    for flight in segment.in_flight:
        share, owned = (
            parts.owned_bytes(
                flight,
                segment,
                transient_bytes=transient_bytes,
                holds_kv=holds_kv,
                is_reserved=is_reserved,
            )
            for holds_kv in (False, True)
        )
        request = asked[flight.request_id]
        found.append(
            HeldRequest(
                request_id=flight.request_id,
                class_name=request.class_name,
                input_tokens=request.input_tokens,
                output_tokens=request.output_tokens,
                kv_used_bytes=flight.kv_used_bytes,
                kv_reserved_bytes=flight.kv_reserved_bytes,
                transient_bytes=share,
                owned_bytes=owned,
            )
        )
    return found


def _by_admission(held: list[HeldRequest], recording: Recording) -> tuple[HeldRequest, ...]:
    """First admitted first. One cut off in flight has no time of admission: it came after the rest."""

    def admitted_s(one: HeldRequest) -> float:
        known = recording.outcomes[one.request_id].admitted_s
        return float("inf") if known is None else known

    return tuple(sorted(held, key=admitted_s))


def _settings(recording: Recording) -> Mapping[str, object]:
    """As model.yaml was resolved; empty where the recording holds none."""
    found = recording.header.deployment.get("settings")
    return found if isinstance(found, Mapping) else {}
