"""Segments on their way to memplan: packed by C code in one go, and understood at the other end, where
no engine waits for it."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from memplan.engines.cuts import Slices
from memplan.engines.native_cuts import RawRecords, ended_of
from memplan.records import SegmentKind

Flight = tuple[str, int, int, int]
"""The fields of InFlight, in their order."""
Told = tuple[tuple[Flight, ...], int, int, int]
"""in_flight, prefill_tokens, decode_tokens and waiting."""
NOTHING_RAN: Told = ((), 0, 0, 0)
Gauges = Mapping[str, int]
Known = tuple[SegmentKind, float, float, Gauges, Gauges, Gauges]
"""kind, start_s, close_s, peaks and gauges of a device, the engine's own gauges. The mappings are dicts,
which ``marshal`` can pack."""
Closed = tuple[Known, Told]
"""What there is of a segment beside its reading."""
RawEnded = RawRecords | list[tuple[Slices, Gauges, bytes | None]]
"""The readings: as C code left them, or (slices, gauges, tensors) of each."""


class RawSegment(NamedTuple):
    """A segment as it was read. Only what ``marshal`` can pack: plain numbers, texts, tuples, dicts."""

    kind: SegmentKind
    start_s: float
    close_s: float
    device_peak: dict[str, int]
    gauges: dict[str, int]
    """What was read at its end, all sources together."""
    in_flight: tuple[Flight, ...]
    prefill_tokens: int
    decode_tokens: int
    waiting: int
    slices: tuple[tuple[float, int], ...]
    """(end_s, peak_bytes) of each part; the last ends where the segment does."""
    tensors: bytes | None
    """Of a TensorCounter's cut."""


class TensorNames(NamedTuple):
    """What the numbers of a cut stand for; both only grow."""

    owners: tuple[str, ...] = ()
    modules: tuple[str | None, ...] = (None,)
    not_shown: str = ""
    """The owner whose tensors are told elsewhere: the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPeaks:
    """Live host tensors in an interval that has just ended, in bytes."""

    peak_bytes: int
    live_bytes: int
    """At its end."""
    by_owner: Mapping[str, int]
    """At the instant of the peak, by the part of the model that made them; weights left out."""
    module: str | None
    """The one that was running at that instant."""


def tensor_peaks(cut: bytes, names: TensorNames) -> TensorPeaks:
    """``cut``: 64-bit numbers: the peak, what is live at the end, the module, and bytes by owner."""
    peak, live, module, *by_owner = array("q", cut)[: 3 + len(names.owners)]
    return TensorPeaks(
        peak_bytes=peak,
        live_bytes=live,
        by_owner={
            name: size
            for name, size in zip(names.owners, by_owner, strict=True)
            if size and name != names.not_shown
        },
        module=names.modules[module],
    )


def fields_of(raw: RawSegment, names: TensorNames | None, *, engine_start: int) -> dict[str, Any]:
    """The fields of a Segment, with tuples for in_flight (the fields of InFlight) and slices (those of
    Slice)."""
    peak = {"host.hwm": max(peak_bytes for _, peak_bytes in raw.slices), **raw.device_peak}
    gauges = dict(raw.gauges)
    fields: dict[str, Any] = {
        "engine_start": engine_start,
        "kind": raw.kind,
        "start_s": raw.start_s,
        "end_s": raw.slices[-1][0],
        "peak": peak,
        "gauges": gauges,
        "in_flight": raw.in_flight,
        "prefill_tokens": raw.prefill_tokens,
        "decode_tokens": raw.decode_tokens,
        "close_s": raw.close_s,
        "waiting": raw.waiting,
        "slices": raw.slices if len(raw.slices) > 1 else (),
    }
    if names is not None and raw.tensors is not None:
        tensors = tensor_peaks(raw.tensors, names)
        peak["engine.tensors"] = tensors.peak_bytes
        gauges["engine.tensors"] = tensors.live_bytes
        fields |= {"tensors": tensors.by_owner, "peak_module": tensors.module}
    return fields


def packed_segments(closed: Sequence[Closed], ended: RawEnded) -> bytes:
    """Both in their order, one of each for a segment. Both ends are of one Python, so its own form may
    be used."""
    everything: Any = (closed, ended)
    return marshal.dumps(everything)


def unpacked_segments(packed: bytes) -> list[RawSegment]:
    """What ``packed_segments`` made."""
    closed, ended = marshal.loads(packed)
    if isinstance(ended, tuple):
        ended = [(one.slices, one.gauges_of(), one.tensors) for one in ended_of(ended)[0]]
    return [
        RawSegment(
            kind=kind,
            start_s=start_s,
            close_s=close_s,
            device_peak=device_peak,
            gauges={**read, **gauges, **engine},
            in_flight=in_flight,
            prefill_tokens=prefill_tokens,
            decode_tokens=decode_tokens,
            waiting=waiting,
            slices=slices,
            tensors=tensors,
        )
        for (
            ((kind, start_s, close_s, device_peak, gauges, engine), told),
            (slices, read, tensors),
        ) in zip(closed, ended, strict=True)
        for in_flight, prefill_tokens, decode_tokens, waiting in [told]
    ]
