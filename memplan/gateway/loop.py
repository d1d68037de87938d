"""The loop of a replay with several engines: arrivals × gateway × engines → a recording for each pool,
and one of the ways that requests went.

It sends what the gateway decides and tells it what ended; it decides nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memplan.clock import Clock
from memplan.gateway.routing import Gateway, Send
from memplan.gateway_file import GatewayWriter
from memplan.recording import RunWriter
from memplan.records import PathRecord, Request, RequestRecord
from memplan.replay import EngineRun, StopFlag, Watcher
from memplan.workload.ladder import Wave
from memplan.workload.prompts import prompt_token_ids

POLL_S = 0.002
"""Between two looks at the same engine: with a few pools, when a request's end is seen a few
milliseconds late; its own times come from its engine."""


class Pool:
    """One engine of the gateway, and what its requests came to since it was asked."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self.run: EngineRun
        """Set before the loop begins."""
        self._ended: list[RequestRecord] = []

    def heard(self, record: RequestRecord) -> None:
        self._ended.append(record)

    def take_ended(self) -> list[RequestRecord]:
        ended, self._ended = self._ended, []
        return ended


def replay_pools(
    requests: Sequence[Request],
    *,
    pools: Mapping[str, Pool],
    gateway: Gateway,
    writer: GatewayWriter,
    clock: Clock,
    epoch_s: float,
    stop: StopFlag,
    watcher: Watcher,
    is_under_pressure: Callable[[], bool],
) -> bool:
    """Open loop: every request arrives at its time, whatever the gateway does with it. True when all
    paths have ended; otherwise it was interrupted."""

    def now_s() -> float:
        return clock.now_s() - epoch_s

    pending = deque(requests)
    by_id = {request.request_id: request for request in requests}
    began_s = now_s()
    watcher.wave_started(Wave(name=requests[0].wave, fresh=False, requests=tuple(requests)))

    def over(path: PathRecord) -> None:
        writer.path(path)
        watcher.request_ended(by_id[path.request_id])

    while (pending or not gateway.is_idle) and not stop.is_set:
        while pending and began_s + pending[0].arrival_s <= now_s():
            request = pending.popleft()
            gateway.arrive(request, began_s + request.arrival_s)
        for decided in gateway.decide(now_s(), under_pressure=is_under_pressure()):
            if isinstance(decided, Send):
                _send(pools[decided.pool], decided.request, now_s(), began_s=began_s)
            else:
                over(decided)
        due_s = now_s() + POLL_S
        if pending:
            due_s = min(due_s, began_s + pending[0].arrival_s)
        for pool in pools.values():
            if not pool.run.is_dead:
                pool.run.sample_if_due(now_s())
                due_s = min(due_s, pool.run.cancel_due(pool.run.opened(), now_s()))
                pool.run.take(pool.run.opened().poll(max(0.0, due_s - now_s())))
            for record in pool.take_ended():
                path = gateway.ended(record, now_s())
                if path is not None:
                    over(path)
    for pool in pools.values():
        pool.run.stop_engine()
    for path in gateway.unfinished():
        writer.path(path)
    return not stop.is_set


def _send(pool: Pool, request: Request, now_s: float, *, began_s: float) -> None:
    """To a pool's own recording it is a request that came when it was handed over. Its user's patience
    began when it arrived here."""
    if request.cancel_after_s is not None:
        left_s = began_s + request.arrival_s + request.cancel_after_s - now_s
        request = replace(request, cancel_after_s=max(0.0, left_s))
    pool.writer.scheduled(replace(request, arrival_s=now_s))
    assert pool.run.facts is not None
    prompt = prompt_token_ids(request, vocab_tokens=pool.run.facts.vocab_tokens)
    pool.run.send(pool.run.opened(), request, prompt, now_s)
