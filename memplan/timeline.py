"""The sampled timeline of a run as lines of numbers: names first, then one line for each sample.

Lines are JSON arrays. One of texts names the columns of those below it, ``t_s`` first; a gauge that was
not seen before begins another such line. What a sample lacks is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memplan.records import Sample


class TimelineLines:
    """Samples as text, in their order."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def of(self, samples: Sequence[Sample]) -> str:
        new = {name for sample in samples for name in sample.values} - set(self._names)
        lines: list[Sequence[object]] = []
        if new:
            self._names = tuple(sorted({*self._names, *new}))
            lines.append(("t_s", *self._names))
        lines += [
            (sample.t_s, *(sample.values.get(name) for name in self._names)) for sample in samples
        ]
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def samples_of(lines: Iterable[list[Any]]) -> Iterator[Sample]:
    """What ``TimelineLines`` wrote. Raises ValueError for what it cannot have written."""
    names: list[str] = []
    for first, *rest in lines:
        if first == "t_s":
            names = rest
            continue
        pairs = zip(names, rest, strict=True)
        yield Sample(t_s=first, values={name: value for name, value in pairs if value is not None})
