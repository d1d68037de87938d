"""A run folder: written append-only while a run is measured, and read again by everything else.

header.json first, then one JSON line per request, segment and event, unbuffered, so that a killed
process loses at most the line it was writing; samples are written every second. A torn tail is
dropped and becomes a Finding. Files are never edited, only read again.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from memplan.errors import RecordingError
from memplan.records import (
    CUDA_SNAPSHOT,
    SCHEMA,
    EngineFacts,
    Finding,
    PlantedSpike,
    Quality,
    Recording,
    Request,
    RequestRecord,
    RunEnd,
    RunHeader,
    Sample,
    Segment,
    Witness,
)
from memplan.timeline import TimelineLines, samples_of
from memplan.witness_file import read_witness

HEADER, SCHEDULE, REQUESTS = "header.json", "schedule.jsonl", "requests.jsonl"
SEGMENTS, EVENTS, TIMELINE = "segments.jsonl", "events.jsonl", "timeline.jsonl"
WITNESS, ENGINE_LOG = "witness.bin", "engine.log"
REPORT = "report.html"
"""Where `memplan report` puts the page of a run, unless told otherwise."""

_HEADER_COMING = "header.json.new"
_FILES = (
    *(HEADER, SCHEDULE, REQUESTS, SEGMENTS, EVENTS, TIMELINE, WITNESS),
    *(ENGINE_LOG, CUDA_SNAPSHOT, REPORT),
)

FLUSH_SAMPLES_S = 1.0

T = TypeVar("T")


class RunWriter:
    """Writes one run folder. Every method raises RecordingError when the disk says no."""

    def __init__(self, folder: Path, header: RunHeader, *, force: bool = False) -> None:
        self.folder = folder
        with told(folder):
            _make_folder(folder, force=force)
            # Whole or not there: half a header would make a whole profile unreadable.
            (folder / _HEADER_COMING).write_text(_json(header) + "\n")
            (folder / _HEADER_COMING).replace(folder / HEADER)
            self._requests = open_append(folder / REQUESTS)
            self._segments = open_append(folder / SEGMENTS)
            self._events = open_append(folder / EVENTS)
            self._timeline = open_append(folder / TIMELINE)
        self._lines = TimelineLines()
        self._samples: list[Sample] = []
        self.sample_count = 0

    def schedule(self, requests: Iterable[Request]) -> None:
        """What is about to be sent: written whole, before anything is."""
        with told(self.folder), (self.folder / SCHEDULE).open("w") as file:
            file.writelines(json_line(request) for request in requests)

    def scheduled(self, request: Request) -> None:
        """One more that is about to be sent, behind those of ``schedule``: a gateway decides late."""
        with told(self.folder), (self.folder / SCHEDULE).open("a") as file:
            file.write(_json(request) + "\n")

    def request(self, record: RequestRecord) -> None:
        self._line(self._requests, _json(record))

    def segment(self, segment: Segment) -> None:
        self._line(self._segments, _json(segment))

    def engine(self, facts: EngineFacts) -> None:
        self._event("engine", facts)

    def planted(self, spike: PlantedSpike) -> None:
        self._event("planted", spike)

    def finding(self, finding: Finding) -> None:
        self._event("finding", finding)

    def quality(self, quality: Quality) -> None:
        self._event("quality", quality)

    def end(self, end: RunEnd) -> None:
        self._event("end", end)

    def sample(self, sample: Sample) -> None:
        """Keeps a sample; written a second's worth at a time."""
        self._samples.append(sample)
        self.sample_count += 1
        if sample.t_s - self._samples[0].t_s >= FLUSH_SAMPLES_S:
            self.flush_samples()

    def flush_samples(self) -> None:
        if not self._samples:
            return
        samples, self._samples = self._samples, []
        with told(self.folder):
            write_all(self._timeline, self._lines.of(samples))

    def close(self) -> None:
        """Closes the files; the folder stays readable whatever happened before."""
        try:
            self.flush_samples()
        finally:
            for fd in (self._requests, self._segments, self._events, self._timeline):
                os.close(fd)

    def _event(
        self, kind: str, value: EngineFacts | Finding | PlantedSpike | Quality | RunEnd
    ) -> None:
        self._line(self._events, _json(value, type=kind))

    def _line(self, fd: int, text: str) -> None:
        with told(self.folder):
            write_all(fd, text + "\n")


def read_run(folder: Path) -> Recording:
    """A finished, interrupted or cut-off run. Raises RecordingError when there is no run to read."""
    header = _read_header(folder)
    findings: list[Finding] = []
    requests = tuple(_read_lines(folder / SCHEDULE, Request, findings))
    records = {r.request_id: r for r in _read_lines(folder / REQUESTS, RequestRecord, findings)}
    segments = tuple(_read_lines(folder / SEGMENTS, Segment, findings))
    events = _read_events(folder / EVENTS, findings)
    samples = _read_timeline(folder / TIMELINE, findings)
    witness = _read_witness(folder / WITNESS, findings)
    if events.end is None:
        findings.append(
            Finding(
                code="run_cut_off",
                text="The run has no end: it was killed or lost its disk. What was recorded until "
                "then is shown; requests in flight at that moment count as unfinished.",
                hint="Replay again for complete figures.",
            )
        )
    started = {flight.request_id for segment in segments for flight in segment.in_flight}
    for request in requests:
        outcome = "unfinished" if request.request_id in started else "not_sent"
        missing = RequestRecord(request_id=request.request_id, outcome=outcome)  # type: ignore[arg-type]
        records.setdefault(request.request_id, missing)
    return Recording(
        path=str(folder),
        header=header,
        engines=tuple(events.engines),
        requests=requests,
        outcomes=records,
        segments=segments,
        samples=samples,
        planted=tuple(events.planted),
        findings=(*events.findings, *findings),
        end=events.end,
        witness=witness,
        quality=events.quality,
    )


# --- writing ---------------------------------------------------------------------------------


def _make_folder(folder: Path, *, force: bool) -> None:
    if folder.is_dir() and any(path.name != _HEADER_COMING for path in folder.iterdir()):
        if not (force and (folder / HEADER).exists()):
            is_run = (folder / HEADER).exists()
            raise RecordingError(
                f"{folder}: already holds {'a run' if is_run else 'files that are not a run'}",
                hint="add --force to replace the run" if is_run else "choose another --out folder",
            )
        for name in reversed(_FILES):  # the header last: until then it is a run
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def write_all(fd: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(fd, data) :]


class told:  # noqa: N801 - reads as a word at the `with`
    """Turns what a disk says into a sentence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = "the disk is full" if error.errno != errno.EFBIG else "a file may not grow more"
            hint = f"free some space; what was written can be read: memplan report {self._folder}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what, hint = "no permission to write here", "choose a folder of yours with --out"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            what, hint = "a file is in the way", "choose another folder with --out"
        else:
            what, hint = str(error), "choose another folder with --out"
        raise RecordingError(f"{self._folder}: cannot write the run: {what}", hint=hint) from error


def json_line(record: object) -> str:
    return _json(record) + "\n"


def _json(value: object, **extra: str) -> str:
    return json.dumps({**extra, **_fields(value)}, separators=(",", ":"), default=_fields)


def _fields(value: object) -> dict[str, object]:
    """A record as a mapping without its defaults' noise: one level, nested records by ``default``."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"not a record: {type(value).__name__}")
    return {name: getattr(value, name) for name in _names(type(value))}  # type: ignore[arg-type]


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


# --- reading ---------------------------------------------------------------------------------


def _read_header(folder: Path) -> RunHeader:
    path = folder / HEADER
    try:
        raw = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordingError(
            f"{folder}: no {HEADER} here, so this is not a run folder",
            hint="give the folder that `memplan replay` or `memplan profile` printed",
        ) from error
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"{path}: cannot be read: {error}", hint="the run cannot be used; replay again"
        ) from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        got = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise RecordingError(
            f"{path}: schema is {got!r}, this memplan reads {SCHEMA!r}",
            hint="read it with the memplan version that its header names",
        )
    return build(RunHeader, raw)


def _read_witness(path: Path, findings: list[Finding]) -> Witness | None:
    try:
        witness, is_whole = read_witness(path)
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"{path}: cannot be read: {error}", hint=f"remove {path.name} to do without the witness"
        ) from error
    if not is_whole:
        findings.append(_torn(path.name))
    return witness


def _read_lines(path: Path, cls: type[T], findings: list[Finding]) -> Iterator[T]:
    for raw in json_lines(path, findings):
        yield build(cls, raw)


def _read_timeline(path: Path, findings: list[Finding]) -> tuple[Sample, ...]:
    try:
        return tuple(samples_of(_whole_lines(path, list, findings)))
    except ValueError as error:
        raise RecordingError(
            f"{path}: a sample of this run cannot be read: {error}",
            hint="the file was changed after the run; replay again",
        ) from error


def json_lines(path: Path, findings: list[Finding]) -> Iterator[dict[str, Any]]:
    """Objects, one a line; see ``_whole_lines``."""
    return _whole_lines(path, dict, findings)


def _whole_lines(path: Path, kind: type[T], findings: list[Finding]) -> Iterator[T]:
    """Whole lines; a last line that was being written when the run died is dropped and said."""
    try:
        opened = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be read: {error.strerror}", hint="the run cannot be used; replay again"
        ) from error
    with opened as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _json_value(line, kind)
            except ValueError as error:
                if lines.read(1):
                    raise RecordingError(
                        f"{path}:{number}: broken in the middle: {error}",
                        hint="the file was changed after the run; replay again",
                    ) from error
                findings.append(_torn(path.name))


def _json_value(line: bytes, kind: type[T]) -> T:
    raw = json.loads(line)
    if not isinstance(raw, kind):
        raise ValueError(
            f"got {type(raw).__name__}, expected an {'array' if kind is list else 'object'}"
        )
    return raw


def _torn(name: str) -> Finding:
    return Finding(
        code="torn_tail",
        text=f"The last entry of {name} was cut off and is left out.",
        hint="Nothing to do, unless the run matters to the last second: then replay again.",
    )


@dataclasses.dataclass(slots=True)
class _Events:
    engines: list[EngineFacts] = dataclasses.field(default_factory=list)
    planted: list[PlantedSpike] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    quality: Quality | None = None
    end: RunEnd | None = None


def _read_events(path: Path, findings: list[Finding]) -> _Events:
    read = _Events()
    for raw in json_lines(path, findings):
        match raw.pop("type", None):
            case "engine":
                read.engines.append(build(EngineFacts, raw))
            case "planted":
                read.planted.append(build(PlantedSpike, raw))
            case "finding":
                read.findings.append(build(Finding, raw))
            case "quality":
                read.quality = build(Quality, raw)
            case "end":
                read.end = build(RunEnd, raw)
            case _:  # a newer memplan's event: what it means is not known here
                continue
    return read


def build(cls: type[T], raw: Mapping[str, Any]) -> T:
    """A record from its JSON. Unknown fields are a newer memplan's and are passed over."""
    hints = _hints(cls)  # type: ignore[arg-type]
    try:
        return cls(**{name: _value(hints[name], v) for name, v in raw.items() if name in hints})
    except (TypeError, KeyError, AttributeError) as error:
        raise RecordingError(
            f"a {cls.__name__} of this run cannot be read: {error}",
            hint="the file was changed after the run; replay again",
        ) from error


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, raw: Any) -> Any:
    """JSON's lists and objects back into tuples and records, as the field's type says."""
    origin = typing.get_origin(hint)
    if raw is None:
        return None
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item) for item in raw)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return _value(inner, raw)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, raw)
    return raw
