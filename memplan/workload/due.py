"""Requests of a wave by when they are to be sent: at their time, or some time after another's end."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import count

from memplan.records import Request


class Due:
    """What is still to be sent. Times are those of the run's clock."""

    def __init__(self, requests: Iterable[Request], began_s: float) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._followers: dict[str, list[tuple[int, Request]]] = {}
        self._numbers = count()
        """Keep those that are due together in their order."""
        for number, one in zip(self._numbers, requests, strict=False):
            if one.follows is None:
                self._heap.append((began_s + one.arrival_s, number, one))
            else:
                self._followers.setdefault(one.follows, []).append((number, one))
        heapq.heapify(self._heap)

    def __bool__(self) -> bool:
        """Whether any has a time. Those that wait for another's end have none yet."""
        return bool(self._heap)

    @property
    def next(self) -> Request:
        return self._heap[0][2]

    @property
    def next_s(self) -> float:
        return self._heap[0][0]

    @property
    def times_s(self) -> list[float]:
        return sorted(at_s for at_s, _, _ in self._heap)

    def pop(self) -> tuple[Request, float]:
        """The next one, and when it is due."""
        at_s, _, request = heapq.heappop(self._heap)
        return request, at_s

    def asked_again(self, request: Request, at_s: float, *, instead_of: str) -> None:
        """Those that follow the one that failed follow this one."""
        heapq.heappush(self._heap, (at_s, next(self._numbers), request))
        followers = self._followers.pop(instead_of, None)
        if followers is not None:
            self._followers[request.request_id] = followers

    def ended(self, request_id: str, at_s: float) -> None:
        """Whatever became of it, those that follow it come after their user's time to think."""
        for number, one in self._followers.pop(request_id, ()):
            heapq.heappush(self._heap, (at_s + one.think_s, number, one))
