"""A profile that goes on where it was: which of its runs are kept, and why another is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from memplan.errors import RecordingError
from memplan.measure import Job, header_of
from memplan.recording import HEADER, read_run
from memplan.records import Recording

_MACHINE = (
    *("kernel", "cpu_model", "cpu_count", "gpus", "python", "libc"),
    *("transparent_hugepages", "packages"),
)
"""What moves bytes or time. Not the host's name: a container has another one every day."""


def kept_run(job: Job) -> tuple[Recording | None, str]:
    """The finished run of this very job in its folder; or None, and in words why it is measured
    again, empty where there is nothing yet."""
    if not (job.folder / HEADER).exists():
        return None, ""
    try:
        before = read_run(job.folder)
    except RecordingError as error:
        return None, error.message
    why = next(_differences(job, before), "")
    return (None, why) if why else (before, "")


def _differences(job: Job, before: Recording) -> Iterator[str]:
    """In words; the first is enough to measure again."""
    now, then = header_of(job), before.header
    if before.end is None:
        yield "it was cut off"
    elif before.end.reason != "finished":
        yield {"interrupted": "it was interrupted", "engine_died": "its engine died"}[
            before.end.reason
        ]
    if then.kind != now.kind:
        yield f"it is a {then.kind}"
    if then.memplan_version != now.memplan_version:
        yield f"memplan {then.memplan_version} measured it, and this is {now.memplan_version}"
    yield from _changed_keys(then.deployment, json.loads(json.dumps(now.deployment)))
    if job.quality is not None:
        if before.quality is None:
            yield "its answers were not compared"
        elif before.quality.text_sha256 != job.quality.text_sha256:
            yield "its answers were compared over another text"
    if then.model_digest != now.model_digest:
        yield "the model's files are others now"
    if before.requests != tuple(one for wave in job.waves for one in wave.requests):
        yield "its ladder is another one"
    then_on, now_on = asdict(then.machine), asdict(now.machine)
    for name in _MACHINE:
        if then_on[name] != now_on[name]:
            yield f"{name} of the machine is another now"


def _changed_keys(
    then: Mapping[str, object], now: Mapping[str, object], path: str = ""
) -> Iterator[str]:
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed_keys(before, after, f"{path}{key}.")
        else:
            yield f"{path}{key} is another now"
