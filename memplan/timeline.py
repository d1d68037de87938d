"""The sampled timeline of a run as Arrow IPC streams: columns are gauges, batches are seconds.

A stream cut off anywhere can be read up to its last whole batch. Loading this module loads pyarrow
(a tenth of a second and 40 MB): only commands that measure or read a run do, and before they start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from memplan.records import Sample


class TimelineWriter:
    """Appends batches of samples to one file, made with the first batch. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: Any = None
        self._stream: Any = None
        self._columns: tuple[str, ...] = ()

    def write(self, samples: Sequence[Sample]) -> None:
        names = {name for sample in samples for name in sample.values}
        if self._stream is None or not names <= set(self._columns):
            self._begin_stream(names)
        columns = [pa.array([sample.t_s for sample in samples], pa.float64())]
        for name in self._columns:
            values = [sample.values.get(name) for sample in samples]
            columns.append(pa.array(values, pa.int64()))
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema()))

    def close(self) -> None:
        try:
            if self._stream is not None:
                self._stream.close()
        finally:
            if self._sink is not None:
                self._sink.close()

    def _begin_stream(self, names: set[str]) -> None:
        """A stream's columns are fixed: a gauge not seen before begins another in the same file."""
        if self._sink is None:
            self._sink = self._path.open("wb", buffering=0)
        else:
            self._stream.close()
        self._columns = tuple(sorted({*self._columns, *names}))
        self._stream = pa.ipc.new_stream(self._sink, self._schema())

    def _schema(self) -> Any:
        return pa.schema([("t_s", pa.float64()), *((name, pa.int64()) for name in self._columns)])


def read_timeline(path: Path) -> tuple[tuple[Sample, ...], bool]:
    """(samples, whole): ``whole`` is False when the file's tail was cut off and is left out."""
    if not path.exists() or path.stat().st_size == 0:
        return (), True
    samples: list[Sample] = []
    try:
        with pa.OSFile(str(path)) as source:
            while source.tell() < source.size():
                for batch in pa.ipc.open_stream(source):
                    samples.extend(_samples(batch.to_pydict()))
    except (pa.ArrowInvalid, OSError):
        return tuple(samples), False
    return tuple(samples), True


def _samples(columns: dict[str, list[Any]]) -> Iterator[Sample]:
    times = columns.pop("t_s")
    for i, t_s in enumerate(times):
        values = {name: column[i] for name, column in columns.items()}
        known = {name: value for name, value in values.items() if value is not None}
        yield Sample(t_s=t_s, values=known)
