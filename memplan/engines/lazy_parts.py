"""Parts of an engine that are loaded when the first request needs them, and what that request waited.

A part is loaded in front of a step or at a request's arrival, so its memory is in the segments that
follow, and its time in the latency of those who wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from memplan.engines.sequence import Row, Sequence
from memplan.procfs import ProcessMemory


class Adapters(Protocol):
    @property
    def names(self) -> Collection[str]: ...

    @property
    def resident_bytes(self) -> int: ...

    @property
    def most_bytes(self) -> int:
        """Of the largest that may be resident together."""
        ...

    def bring(self, names: Collection[str], *, running: Collection[str]) -> Mapping[str, float]:
        """Makes these resident in the place of others, but of none in ``running``; the seconds that
        each took which was not there."""
        ...


class Tokenizer(Protocol):
    def load(self) -> None: ...


class Buffers(Protocol):
    @property
    def resident_bytes(self) -> int: ...


class LazyParts:
    """The adapters, the tokenizer and the buffers of one engine; None where it has none."""

    def __init__(
        self,
        adapters: Adapters | None = None,
        tokenizer: Tokenizer | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._buffers = buffers
        self._tokenizer_bytes: int | None = None

    def refusal(self, sequence: Sequence) -> str | None:
        """Why it can never run here."""
        known = self._adapters.names if self._adapters is not None else ()
        return "unknown_adapter" if sequence.adapter and sequence.adapter not in known else None

    def bring_tokenizer(self) -> float:
        """Loads it if that is still to be done; the seconds that it took, 0 where it did not."""
        if self._tokenizer is None or self._tokenizer_bytes is not None:
            return 0.0
        began_s = time.monotonic()
        with ProcessMemory() as memory:
            before = memory.read()["host.rss"]
            self._tokenizer.load()
            self._tokenizer_bytes = max(0, memory.read()["host.rss"] - before)
        return time.monotonic() - began_s

    def bring_adapters(
        self, rows: Iterable[Row], running: Iterable[Sequence]
    ) -> Mapping[str, float]:
        """Those of the rows' requests that are not resident; the seconds that each took."""
        if self._adapters is None:
            return {}
        needed = {row.sequence.adapter: None for row in rows if row.sequence.adapter}
        return self._adapters.bring(
            needed, running={one.adapter for one in running if one.adapter} | needed.keys()
        )

    def gauges(self) -> Mapping[str, int]:
        """``engine.adapters``: bytes of resident ones; ``engine.tokenizer``: what resident memory grew
        by while it was loaded; ``engine.buffers``: what is kept from step to step to be written over.
        Absent where there are none, or not yet."""
        found = {}
        if self._adapters is not None:
            found["engine.adapters"] = self._adapters.resident_bytes
        if self._tokenizer_bytes is not None:
            found["engine.tokenizer"] = self._tokenizer_bytes
        if self._buffers is not None:
            found["engine.buffers"] = self._buffers.resident_bytes
        return found

    @property
    def coming_bytes(self) -> int:
        """Of adapters that may still come to be resident beside those that are."""
        if self._adapters is None:
            return 0
        return max(0, self._adapters.most_bytes - self._adapters.resident_bytes)
