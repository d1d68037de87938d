"""A gateway's folder: what its requests were and which way each went, beside the runs of its pools.

Written append-only like a run, so that a killed memplan leaves what it knew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from memplan.errors import RecordingError
from memplan.recording import (
    build,
    json_line,
    json_lines,
    open_append,
    told,
    write_all,
)
from memplan.records import (
    GATEWAY_SCHEMA,
    Finding,
    GatewayHeader,
    GatewayRecording,
    PathRecord,
    Request,
)

GATEWAY, SCHEDULE, PATHS = "gateway.json", "schedule.jsonl", "paths.jsonl"
_END = '{"type":"end"}\n'


class GatewayWriter:
    """Every method raises RecordingError when the disk says no."""

    def __init__(self, folder: Path, header: GatewayHeader, *, force: bool) -> None:
        self.folder = folder
        with told(folder):
            _make_folder(folder, force=force)
            (folder / f"{GATEWAY}.new").write_text(json_line(header))
            (folder / f"{GATEWAY}.new").replace(folder / GATEWAY)
            self._paths = open_append(folder / PATHS)

    def schedule(self, requests: Iterable[Request]) -> None:
        with told(self.folder):
            (self.folder / SCHEDULE).write_text("".join(map(json_line, requests)))

    def path(self, record: PathRecord) -> None:
        with told(self.folder):
            write_all(self._paths, json_line(record))

    def close(self, *, is_whole: bool) -> None:
        try:
            if is_whole:
                with told(self.folder):
                    write_all(self._paths, _END)
        finally:
            os.close(self._paths)


def is_gateway(folder: Path) -> bool:
    return (folder / GATEWAY).exists()


def read_gateway(folder: Path) -> GatewayRecording:
    """Raises RecordingError when there is none to read."""
    try:
        raw = json.loads((folder / GATEWAY).read_text())
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"{folder / GATEWAY}: cannot be read: {error}",
            hint="the run cannot be used; replay again",
        ) from error
    if not isinstance(raw, dict) or raw.get("schema") != GATEWAY_SCHEMA:
        got = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise RecordingError(
            f"{folder / GATEWAY}: schema is {got!r}, this memplan reads {GATEWAY_SCHEMA!r}",
            hint="read it with the memplan version that wrote it",
        )
    torn: list[Finding] = []
    requests = tuple(build(Request, one) for one in json_lines(folder / SCHEDULE, torn))
    found: dict[str, PathRecord] = {}
    is_whole = False
    for one in json_lines(folder / PATHS, torn):
        if one.get("type") == "end":
            is_whole = True
            continue
        path = build(PathRecord, one)
        found[path.request_id] = path
    return GatewayRecording(
        path=str(folder),
        header=build(GatewayHeader, raw),
        requests=requests,
        paths=tuple(found.get(one.request_id) or _lost(one) for one in requests),
        is_whole=is_whole,
    )


def _make_folder(folder: Path, *, force: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        is_run = is_gateway(folder)
        if not (force and is_run):
            raise RecordingError(
                f"{folder}: already holds {'a run' if is_run else 'files that are not a run'}",
                hint="add --force to replace the run" if is_run else "choose another --out folder",
            )
        for name in (PATHS, SCHEDULE, GATEWAY):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _lost(request: Request) -> PathRecord:
    """The run was cut off before it ended."""
    return PathRecord(
        request_id=request.request_id,
        class_name=request.class_name,
        route=None,
        outcome="unfinished",
        intended_s=request.arrival_s,
    )
