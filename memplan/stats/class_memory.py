"""What the process held while a class was in flight, and what each of its requests owned.

Figures by time and by request answer different questions, and only what a request owned may be
added up; docs/how-it-measures.md, Memory of a request class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from memplan.records import EngineFacts, Recording, Request, Segment
from memplan.stats import attribution as parts
from memplan.stats.excursions import Replay, Timed, block_s_of
from memplan.stats.percentiles import of_process, of_requests
from memplan.stats.summary import Percentiles, PlaceMemory

BY_RANKS = "request-weighted, inverted CDF; 95 % interval from order statistics"
PER_REQUEST = (
    "request-weighted, inverted CDF; 95 % interval: the widest of order statistics, blocks of time "
    "and replays"
)
_BY_BLOCKS = "95 % interval by blocks of the trace's time, wider where replays differ more"
_BY_TIME = (
    "what the process held while a request of the class was in flight: time-weighted over exact "
    f"peaks, inverted CDF; {_BY_BLOCKS}"
)
_BY_REQUEST = (
    "the most that the process held while the request was in flight: one value a request, inverted "
    f"CDF; {_BY_BLOCKS}"
)
_ATTRIBUTED = "own KV + share of the step's transient by tokens, at its largest; " + PER_REQUEST

_WINDOWS = "windows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One replay of the trace, as it went; its windows together, where it was replayed in windows."""

    name: str
    began_s: float
    """When its schedule began."""
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The serving part of a recording, looked up once for all classes."""

    segments: Sequence[Segment]
    engines: Mapping[int, EngineFacts]
    passages: tuple[Passage, ...]
    passage_of: Mapping[str, str]
    """Its name, by request id."""
    due_s: Mapping[str, float]
    """When each request was due, after its passage began."""
    first_s: Mapping[str, float]
    """When each request was first in flight."""
    stay_s: float
    """The longest that any request was."""


def served_of(
    recording: Recording, segments: Sequence[Segment], engines: Mapping[int, EngineFacts]
) -> Served:
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for segment in segments:
        for flight in segment.in_flight:
            first.setdefault(flight.request_id, segment.start_s)
            last[flight.request_id] = segment.end_s
    passage_of, wave_began_s = _passage_of(recording), _began_s(recording)
    passages = tuple(_passages(recording, passage_of, wave_began_s))
    began_s = {passage.name: passage.began_s for passage in passages}
    return Served(
        segments=segments,
        engines=engines,
        passages=passages,
        passage_of=passage_of,
        due_s={
            one.request_id: one.arrival_s
            + (wave_began_s.get(one.wave, 0.0) - began_s[passage_of[one.request_id]])
            for one in recording.requests
        },
        first_s=first,
        stay_s=max((last[i] - first[i] for i in first), default=0.0),
    )


def _passage_of(recording: Recording) -> Mapping[str, str]:
    """Windows are parts of one passage: nothing in them was sent twice for the sake of intervals."""
    is_windowed = len(recording.header.workload.windows) > 1
    return {one.request_id: _WINDOWS if is_windowed else one.wave for one in recording.requests}


def _began_s(recording: Recording) -> Mapping[str, float]:
    """When the schedule of each wave began; 0 where nothing of it was due."""
    began: dict[str, float] = {}
    for request in recording.requests:
        intended_s = recording.outcomes[request.request_id].intended_s
        if intended_s is not None:
            at_s = intended_s - request.arrival_s
            began[request.wave] = min(at_s, began.get(request.wave, at_s))
    return began


def _passages(
    recording: Recording, passage_of: Mapping[str, str], wave_began_s: Mapping[str, float]
) -> Iterator[Passage]:
    requests: dict[str, list[Request]] = {}
    for request in recording.requests:
        requests.setdefault(passage_of[request.request_id], []).append(request)
    for name, mine in requests.items():
        began = [wave_began_s[one.wave] for one in mine if one.wave in wave_began_s]
        outcomes = [recording.outcomes[one.request_id] for one in mine]
        yield Passage(
            name=name,
            began_s=min(began, default=0.0),
            is_whole=all(o.outcome not in ("not_sent", "unfinished") for o in outcomes),
        )


def place_memory(
    place: str, requests: Sequence[Request], served: Served, owned_bytes: Mapping[str, float]
) -> PlaceMemory:
    """``place`` is ``cpu`` or ``gpu``; ``owned_bytes`` is each request's there, by request id."""
    ids = {request.request_id for request in requests}
    with_class = [s for s in served.segments if any(f.request_id in ids for f in s.in_flight)]
    by_time = [
        _replay(passage, _process_points(place, passage, with_class, served, ids))
        for passage in served.passages
    ]
    block_s = block_s_of(by_time, stay_s=served.stay_s)
    peaks = _largest_by_request(place, with_class, served.engines, ids)

    def one_each(values: Mapping[str, float]) -> list[Replay]:
        return [
            _replay(passage, _request_points(passage, served, values))
            for passage in served.passages
        ]

    seen = {i: owned_bytes[i] for i in peaks}
    by_request = one_each(peaks)
    count = max((len(replay.points) for replay in by_request), default=0)

    def process(replays: Sequence[Replay], method: str) -> Percentiles:
        return of_process(
            replays, requests=count, stay_s=served.stay_s, block_s=block_s, method=method
        )

    return PlaceMemory(
        co_resident=process(by_time, _BY_TIME),
        co_resident_by_request=process(by_request, _BY_REQUEST),
        attributed=of_requests(one_each(seen), block_s=block_s, method=_ATTRIBUTED),
    )


def request_percentiles(
    requests: Sequence[Request],
    served: Served,
    value_of: Callable[[Request], float | None],
    *,
    block_s: float | None,
) -> Percentiles:
    """One value a request, None where it has none: latencies, token counts.

    ``block_s`` is the class's: requests that overlap wait for each other.
    """
    replays = []
    for passage in served.passages:
        mine = [
            (served.due_s[r.request_id], value_of(r))
            for r in requests
            if served.passage_of[r.request_id] == passage.name
        ]
        points = [Timed(at_s, at_s, value, 1.0) for at_s, value in mine if value is not None]
        replays.append(_replay(passage, points))
    return of_requests(replays, block_s=block_s, method=PER_REQUEST)


def _replay(passage: Passage, points: Iterable[Timed]) -> Replay:
    return Replay(points=tuple(sorted(points)), is_whole=passage.is_whole)


def _process_points(
    place: str, passage: Passage, segments: Sequence[Segment], served: Served, ids: set[str]
) -> Iterator[Timed]:
    """What the process held, piece by piece; a clock that stepped back gives a piece no weight."""
    for segment in segments:
        holder = next(f.request_id for f in segment.in_flight if f.request_id in ids)
        if served.passage_of[holder] != passage.name:
            continue
        begun_s = segment.start_s - passage.began_s
        for end_s, value in _pieces(place, segment, served.engines[segment.engine_start]):
            ended_s = max(begun_s, end_s - passage.began_s)
            yield Timed(begun_s, ended_s, value, ended_s - begun_s)
            begun_s = ended_s


def _pieces(place: str, segment: Segment, engine: EngineFacts) -> Iterator[tuple[float, float]]:
    """When each piece of a segment ended, and its exact peak; only the host's peaks have slices."""
    if place == "cpu" and segment.slices:
        for piece in segment.slices:
            yield piece.end_s, float(piece.peak_bytes)
    else:
        yield segment.end_s, _peak_bytes(place, segment, engine)


def _peak_bytes(place: str, segment: Segment, engine: EngineFacts) -> float:
    if place == "cpu":
        return float(segment.peak["host.hwm"])
    return float(parts.gpu_resident_bytes(segment, engine))


def _largest_by_request(
    place: str, segments: Sequence[Segment], engines: Mapping[int, EngineFacts], ids: set[str]
) -> Mapping[str, float]:
    largest: dict[str, float] = {}
    for segment in segments:
        peak_bytes = _peak_bytes(place, segment, engines[segment.engine_start])
        for flight in segment.in_flight:
            if flight.request_id in ids:
                held = largest.get(flight.request_id, 0.0)
                largest[flight.request_id] = max(held, peak_bytes)
    return largest


def _request_points(
    passage: Passage, served: Served, values: Mapping[str, float]
) -> Iterator[Timed]:
    for request_id, value in values.items():
        if served.passage_of[request_id] == passage.name:
            at_s = served.first_s[request_id] - passage.began_s
            yield Timed(at_s, at_s, value, 1.0)
