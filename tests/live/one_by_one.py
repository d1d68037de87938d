"""A real engine that answers requests one after the other, and all that it told of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders import request

from memplan.clock import MonotonicClock
from memplan.engines import Ended, SegmentClosed, open_engine
from memplan.records import EngineFacts, RequestRecord, Segment
from memplan.specs import Deployment
from memplan.workload.prompts import prompt_token_ids

_WAIT_S = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    facts: EngineFacts
    records: Sequence[RequestRecord]
    segments: Sequence[Segment]


def serve(
    deployment: Deployment, labels: Sequence[dict[str, str]], log: Path, **changed: Any
) -> Told:
    """One short request for each of ``labels``, on one CPU thread."""
    settings = deployment.settings.model_copy(update={"device": "cpu", "threads": 1, **changed})
    clock = MonotonicClock()
    engine = open_engine(
        replace(deployment, settings=settings), clock=clock, epoch_s=clock.now_s(),
        engine_start=0, log=log,
    )  # fmt: skip
    records: list[RequestRecord] = []
    segments: list[Segment] = []
    try:
        facts = engine.start()
        deadline_s = time.monotonic() + _WAIT_S
        for number, given in enumerate(labels):
            one = request(f"{number}", labels=given, output_tokens=2)
            engine.submit(one, prompt_token_ids(one, vocab_tokens=facts.vocab_tokens))
            while len(records) <= number and time.monotonic() < deadline_s:
                for event in engine.poll(1.0):
                    if isinstance(event, SegmentClosed):
                        segments.append(event.segment)
                    if isinstance(event, Ended):
                        records.append(event.record)
    finally:
        engine.stop()
    assert len(records) == len(labels), "no answer in time"
    return Told(facts=facts, records=records, segments=segments)
