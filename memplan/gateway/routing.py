"""Which pool a request goes to, and what happens when none has room: decisions, without an engine.

Times are seconds on the run's clock and come in with each call. A request tries the pools of its route
in their order, each at most once; who finds no room waits, in order of arrival; then what ``when_full``
says is done; then it is rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memplan.records import Attempt, PathOutcome, PathRecord, Request, RequestRecord
from memplan.specs.pools import PoolSpec, RouteSpec

UNSURE = "unsure"
"""Reason of an answer that was below its route's ``cascade_below``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Hand the request to this pool's engine."""

    pool: str
    request: Request


@dataclass(slots=True, kw_only=True)
class _Travel:
    """A request on its way."""

    request: Request
    route: RouteSpec | None
    arrived_s: float
    asks_since_s: float
    """When it began to wait for room; later than its arrival where it was put off."""
    attempts: list[Attempt] = field(default_factory=list)
    sent_s: float | None = None
    """Set while an engine has it."""
    pool: str | None = None
    resumes_s: float | None = None
    """Set while it is put off."""
    waited_s: float = 0.0
    deferred_s: float = 0.0
    is_under_pressure: bool = False
    last: RequestRecord | None = None
    unsure: RequestRecord | None = None
    """An answer below the route's ``cascade_below``, which stands where no other pool answers."""

    @property
    def tokens(self) -> int:
        return self.request.input_tokens + self.request.output_tokens


class Gateway:
    """``pools`` without limits always have room; ``alive`` says whether an engine can still be asked."""

    def __init__(
        self,
        routes: Sequence[RouteSpec],
        pools: Sequence[PoolSpec],
        *,
        alive: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._routes = routes
        self._pools = {pool.name: pool for pool in pools}
        self._alive = alive
        self._asking: list[_Travel] = []
        """For room, in order of arrival."""
        self._deferred: list[_Travel] = []
        self._sent: dict[str, _Travel] = {}
        self._answered: dict[bytes, int] = {}
        """Output tokens of prompts that were answered, by what their prompt is."""

    @property
    def is_idle(self) -> bool:
        return not (self._asking or self._deferred or self._sent)

    def arrive(self, request: Request, now_s: float) -> None:
        route = route_of(self._routes, request)
        self._asking.append(
            _Travel(request=request, route=route, arrived_s=now_s, asks_since_s=now_s)
        )

    def decide(self, now_s: float, *, under_pressure: bool = False) -> Iterator[Send | PathRecord]:
        """What is to be done now: requests to hand over, and paths that have ended."""
        back = [one for one in self._deferred if (one.resumes_s or 0.0) <= now_s]
        for travel in back:
            self._deferred.remove(travel)
            assert travel.resumes_s is not None
            travel.deferred_s += travel.resumes_s - travel.asks_since_s
            travel.asks_since_s, travel.resumes_s = travel.resumes_s, None
        self._asking = sorted([*self._asking, *back], key=lambda one: one.arrived_s)
        still: list[_Travel] = []
        asking, self._asking = self._asking, []
        for travel in asking:
            travel.is_under_pressure = under_pressure
            decided = self._decided(travel, now_s)
            if decided is None:
                still.append(travel)
            elif isinstance(decided, PathRecord):
                yield decided
            elif decided != "deferred":
                travel.waited_s += now_s - travel.asks_since_s
                travel.sent_s, travel.pool = now_s, decided
                self._sent[travel.request.request_id] = travel
                yield Send(pool=decided, request=travel.request)
        self._asking = still

    def ended(self, record: RequestRecord, now_s: float) -> PathRecord | None:
        """An engine is done with a request: the end of its path, or None where it tries another pool."""
        travel = self._sent.pop(record.request_id)
        assert travel.pool is not None and travel.sent_s is not None
        travel.attempts.append(
            Attempt(
                pool=travel.pool,
                sent_s=travel.sent_s,
                end_s=record.end_s,
                outcome=record.outcome,
                reason=record.reason,
            )
        )
        travel.last = record
        travel.pool = travel.sent_s = None
        if record.outcome == "cancelled":
            return self._path(travel, "cancelled", None, record.end_s, record.first_token_s)
        if record.outcome == "completed" and self._is_unsure(travel, record):
            travel.attempts[-1] = replace(travel.attempts[-1], reason=UNSURE)
            travel.unsure, travel.asks_since_s = record, now_s
            if any(self._open_pools(travel)):
                self._asking.append(travel)
                return None
        if record.outcome == "completed":
            self._answered[_prompt_key(travel.request)] = travel.request.output_tokens
            return self._path(
                travel, "completed", travel.attempts[-1].reason, record.end_s, record.first_token_s
            )
        travel.asks_since_s = now_s
        if not any(self._open_pools(travel)):
            if travel.unsure is not None:
                return self._answered_all_the_same(travel)
            outcome: PathOutcome = "rejected" if record.outcome == "rejected" else "failed"
            return self._path(travel, outcome, record.reason, record.end_s)
        self._asking.append(travel)
        return None

    def due_s(self) -> float | None:
        """When something is to be decided although nothing arrives or ends; None: never."""
        times = [one.resumes_s for one in self._deferred if one.resumes_s is not None]
        times += [
            one.asks_since_s + one.route.wait_s
            for one in self._asking
            if one.route is not None and one.route.wait_s is not None
        ]
        return min(times, default=None)

    def unfinished(self) -> Iterator[PathRecord]:
        """The paths of those that are still on their way, when the run is over."""
        for travel in (*self._asking, *self._deferred, *self._sent.values()):
            yield self._path(travel, "unfinished", "run_ended", None)

    # --- steps -----------------------------------------------------------------------------

    def _decided(self, travel: _Travel, now_s: float) -> str | PathRecord | None:
        """The name of a pool, the end of the path, ``deferred``, or None: it waits."""
        route = travel.route
        if route is None:
            return self._path(travel, "rejected", "no_route", now_s)
        open_pools = list(self._open_pools(travel))
        pool = next((name for name in open_pools if self._has_room(name, travel)), None)
        if pool is not None:
            return pool
        if not open_pools and travel.last is not None and travel.unsure is None:
            return self._path(travel, "failed", travel.last.reason, now_s)
        if open_pools and route.wait_s is not None and now_s < travel.asks_since_s + route.wait_s:
            return None
        waited_s = now_s - travel.asks_since_s
        if travel.unsure is not None:
            travel.waited_s += waited_s
            return self._answered_all_the_same(travel)
        for word in route.when_full:
            if word == "cached" and _prompt_key(travel.request) in self._answered:
                travel.waited_s += waited_s
                return self._path(travel, "cached", None, now_s, now_s)
            if word == "deferred" and not travel.deferred_s:
                travel.waited_s += waited_s
                travel.asks_since_s, travel.resumes_s = now_s, now_s + route.defer_s
                self._deferred.append(travel)
                return "deferred"
        travel.waited_s += waited_s
        return self._path(travel, "rejected", "no_room" if open_pools else "no_engine", now_s)

    @staticmethod
    def _is_unsure(travel: _Travel, record: RequestRecord) -> bool:
        below = travel.route.cascade_below if travel.route else None
        return below is not None and record.confidence is not None and record.confidence < below

    def _answered_all_the_same(self, travel: _Travel) -> PathRecord:
        answer = travel.unsure
        assert answer is not None
        return self._path(travel, "completed", UNSURE, answer.end_s, answer.first_token_s)

    def _open_pools(self, travel: _Travel) -> Iterator[str]:
        """Those of its route that live and that it has not tried."""
        route = travel.route
        if route is None:
            return
        under = travel.is_under_pressure and route.under_pressure
        tried = {one.pool for one in travel.attempts}
        for name in route.under_pressure if under else route.to:
            if name not in tried and self._alive(name):
                yield name

    def _has_room(self, name: str, travel: _Travel) -> bool:
        pool = self._pools[name]
        there = [one for one in self._sent.values() if one.pool == name]
        if pool.max_in_flight is not None and len(there) >= pool.max_in_flight:
            return False
        tokens = sum(one.tokens for one in there) + travel.tokens
        return pool.max_tokens_in_flight is None or tokens <= pool.max_tokens_in_flight

    def _path(
        self,
        travel: _Travel,
        outcome: PathOutcome,
        reason: str | None,
        end_s: float | None,
        first_token_s: float | None = None,
    ) -> PathRecord:
        return PathRecord(
            request_id=travel.request.request_id,
            class_name=travel.request.class_name,
            route=travel.route.name if travel.route else None,
            outcome=outcome,
            reason=reason,
            intended_s=travel.arrived_s,
            attempts=tuple(travel.attempts),
            first_token_s=first_token_s,
            end_s=end_s,
            waited_s=travel.waited_s,
            deferred_s=travel.deferred_s,
            is_under_pressure=travel.is_under_pressure,
        )


def route_of(routes: Sequence[RouteSpec], request: Request) -> RouteSpec | None:
    """The first whose conditions all hold. Lengths are those of the trace, as classes are."""
    input_tokens = request.trace_input_tokens or request.input_tokens
    output_tokens = request.trace_output_tokens or request.output_tokens
    for route in routes:
        when = route.when
        if (
            (not when.classes or request.class_name in when.classes)
            and (when.input_tokens is None or when.input_tokens.contains(input_tokens))
            and (when.output_tokens is None or when.output_tokens.contains(output_tokens))
            and (when.operation is None or request.operation in when.operation)
            and when.labels.items() <= request.labels.items()
        ):
            return route
    return None


def pools_in_use(
    routes: Sequence[RouteSpec], requests: Sequence[Request]
) -> Mapping[str, RouteSpec]:
    """The pools that some request could reach, with the first route that leads there."""
    found: dict[str, RouteSpec] = {}
    for request in requests:
        route = route_of(routes, request)
        for name in (*route.to, *route.under_pressure) if route else ():
            assert route is not None
            found.setdefault(name, route)
    return found


def _prompt_key(request: Request) -> bytes:
    """Equal for requests whose prompts are equal: those whose prefix ids cover all of them."""
    covered = len(request.prefix_ids) * (request.prefix_block_tokens or 0)
    own = "" if covered >= request.input_tokens else request.request_id
    text = f"{request.input_tokens}/{request.output_tokens}/{request.prefix_ids}/{own}"
    return hashlib.sha256(text.encode()).digest()
