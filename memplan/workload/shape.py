"""A trace in, its shape out: how fast, how bursty, how long, how much it repeats, and whether it looks
made up.

Nothing is judged but what a real log never shows; every doubt is a Finding. Of each row only its
arrival is kept (8 bytes) and its lengths are counted, so that a trace of any length fits: what grows
beside is what has an identity, sessions and prefix blocks.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan.records import Finding
from memplan.specs import UNKNOWN_CLASS, ClassSpec
from memplan.workload.classify import class_of_row
from memplan.workload.trace_row import TraceRow

BIN_S = 10.0
"""In which arrivals are counted for the index of dispersion."""
LEVELS = (0.5, 0.95, 0.99, 1.0)
CURVE_LEVELS = tuple(percent / 100 for percent in range(101))
_FEW = 50
"""Rows below which nothing is said of a shape."""
_PHASED = 20_000
"""Rows over which minutes are tried at every second."""
_PERIODS = 200
"""Into which the whole span is cut to show its rate."""
_CHUNK = 1 << 20
"""Arrivals looked at together."""
_BINS_HELD = 10_000_000
_ROWS_TOGETHER = 1 << 14
_COUNTED_SINGLY = 1 << 20
"""Lengths from here on are rare, and counted one by one."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of all kept rows, in tokens; exact quantiles."""

    mean: float
    quantiles: tuple[int, ...]
    """At LEVELS."""
    curve: tuple[int, ...]
    """At CURVE_LEVELS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    span_s: float
    requests_per_s: float | None
    """None where all came at one instant."""
    gap_cv: float | None
    """Standard deviation over mean of the gaps between arrivals; 1 for a Poisson process."""
    dispersion: float | None
    """Variance over mean of arrivals in bins of BIN_S; 1 for a Poisson process. None below 10 bins."""
    tick_s: float | None
    """Arrivals lie on multiples of it, and share instants; None where they do not."""
    same_instant: int
    """Arrivals at the instant of the one before."""
    period_s: float
    arrivals: tuple[int, ...]
    """In consecutive periods of ``period_s`` from the first arrival on."""
    input: Lengths
    output: Lengths
    sessions: int | None
    """None where the trace names none."""
    session_turns_mean: float | None
    reused_ratio: float | None
    """Share of prompt blocks that a row before it in the file had too; None without prefix ids."""
    observed: int
    """Rows that say what production took."""
    classes: Mapping[str, int]
    """By the order of their rules, then those that the trace names itself."""
    findings: tuple[Finding, ...]


class ShapeBuilder:
    """Rows in any order, one by one or by columns; the shape of all of them at the end."""

    def __init__(self, classes: Sequence[ClassSpec]) -> None:
        self._specs = classes
        self._times = array("d")
        self._input, self._output = _LengthCounts(), _LengthCounts()
        self._classes: Counter[str] = Counter()
        self._sessions: Counter[str] = Counter()
        self._blocks_seen: set[int] = set()
        self._blocks = self._reused = self._observed = 0
        self._pending: tuple[list[float], list[int], list[int]] = ([], [], [])

    def __len__(self) -> int:
        return len(self._times) + len(self._pending[0])

    def add(self, times_s: Floats, input_tokens: Ints, output_tokens: Ints) -> None:
        """Chats without labels. ``times_s`` from any origin that is the same for all rows."""
        self._add(times_s, input_tokens, output_tokens)
        names, of = class_names(self._specs, input_tokens, output_tokens)
        for name, count in zip(names, np.bincount(of, minlength=len(names)).tolist(), strict=True):
            self._classes[name] += count

    def add_row(self, time_s: float, row: TraceRow) -> None:
        times, inputs, outputs = self._pending
        times.append(time_s)
        inputs.append(row.input_tokens)
        outputs.append(row.output_tokens)
        self._classes[row.class_label or class_of_row(self._specs, row)] += 1
        if row.session_id is not None:
            self._sessions[row.session_id] += 1
        self._observed += row.observed_e2e_s is not None
        if row.hash_ids:
            self._add_blocks(row.hash_ids)
        if len(times) >= _ROWS_TOGETHER:
            self._flush()

    def shape(self) -> TraceShape:
        """Of at least one row; the builder is spent."""
        self._flush()
        times: Floats = np.frombuffer(self._times)
        if any((gaps < 0).any() for gaps in _gaps(times)):
            times.sort()
        times -= times[0]
        sessions, span_s = self._sessions, float(times[-1])
        ordered = [spec.name for spec in self._specs]
        names = sorted(
            (name for name, count in self._classes.items() if count),
            key=lambda name: (ordered.index(name) if name in ordered else len(ordered), name),
        )
        period_s = max(1.0, span_s / _PERIODS)
        gap_count = len(times) - 1
        return TraceShape(
            span_s=span_s,
            requests_per_s=gap_count / span_s if span_s > 0 else None,
            gap_cv=_gap_cv(times),
            dispersion=_dispersion(times),
            tick_s=_tick(times),
            same_instant=sum(int((gaps == 0).sum()) for gaps in _gaps(times)),
            period_s=period_s,
            arrivals=tuple(_counts(times, period_s, int(span_s // period_s) + 1).tolist()),
            input=self._input.lengths(),
            output=self._output.lengths(),
            sessions=len(sessions) or None,
            session_turns_mean=sessions.total() / len(sessions) if sessions else None,
            reused_ratio=self._reused / self._blocks if self._blocks else None,
            observed=self._observed,
            classes={name: self._classes[name] for name in names},
            findings=tuple(_doubts(times, self._input, self._output)),
        )

    def _flush(self) -> None:
        times, inputs, outputs = self._pending
        self._add(
            np.array(times), np.array(inputs, dtype=np.int64), np.array(outputs, dtype=np.int64)
        )
        self._pending = ([], [], [])

    def _add(self, times_s: Floats, input_tokens: Ints, output_tokens: Ints) -> None:
        self._times.frombytes(times_s.astype(np.float64).tobytes())
        self._input.add(input_tokens)
        self._output.add(output_tokens)

    def _add_blocks(self, hash_ids: Sequence[int]) -> None:
        """Those from the first on that were seen: a prefix ends where it differs."""
        seen = self._blocks_seen
        for one in hash_ids:
            if one not in seen:
                break
            self._reused += 1
        self._blocks += len(hash_ids)
        seen.update(hash_ids)


class _LengthCounts:
    """How many rows are of each length."""

    def __init__(self) -> None:
        self._counts: Ints = np.zeros(1, dtype=np.int64)
        self._long: Counter[int] = Counter()

    def add(self, lengths: Ints) -> None:
        is_long = lengths >= _COUNTED_SINGLY
        if is_long.any():
            self._long.update(lengths[is_long].tolist())
            lengths = lengths[~is_long]
        found = np.bincount(lengths)
        if len(found) > len(self._counts):
            self._counts = np.concatenate(
                [self._counts, np.zeros(len(found) - len(self._counts), dtype=np.int64)]
            )
        self._counts[: len(found)] += found

    def table(self) -> tuple[Ints, Ints]:
        """Lengths, ascending, and the rows of each."""
        short = np.flatnonzero(self._counts)
        long = sorted(self._long)
        return (
            np.concatenate([short, np.array(long, dtype=np.int64)]),
            np.concatenate(
                [self._counts[short], np.array([self._long[one] for one in long], dtype=np.int64)]
            ),
        )

    def lengths(self) -> Lengths:
        values, counts = self.table()
        until = counts.cumsum()
        n = int(until[-1])

        def at(levels: Sequence[float]) -> tuple[int, ...]:
            ranks = np.maximum(1, np.ceil(np.array(levels) * n - 1e-9))
            return tuple(values[np.searchsorted(until, ranks)].tolist())

        mean = float((values * counts).sum()) / n
        return Lengths(mean=mean, quantiles=at(LEVELS), curve=at(CURVE_LEVELS))


def _gaps(times: Floats) -> Iterator[Floats]:
    for start in range(0, len(times) - 1, _CHUNK):
        yield np.diff(times[start : start + _CHUNK + 1])


def _gap_cv(times: Floats) -> float | None:
    mean = float(times[-1]) / max(1, len(times) - 1)
    if mean <= 0:
        return None
    squares = sum(float(((gaps - mean) ** 2).sum()) for gaps in _gaps(times))
    return float((squares / (len(times) - 1)) ** 0.5) / mean


def _counts(times: Floats, bin_s: float, bins: int) -> Ints:
    """Arrivals in each of so many bins; those after the last are left out."""
    counts = np.zeros(bins, dtype=np.int64)
    for start in range(0, len(times), _CHUNK):
        of = (times[start : start + _CHUNK] // bin_s).astype(np.int64)
        counts += np.bincount(of[of < bins], minlength=bins)
    return counts


def _dispersion(times: Floats) -> float | None:
    bins = int(times[-1] // BIN_S)
    if bins < 10:
        return None
    if bins <= _BINS_HELD:
        counts = _counts(times, BIN_S, bins)
    else:  # years of nothing between rows: only bins that hold some are kept
        of = times // BIN_S
        _, counts = np.unique(of[of < bins], return_counts=True)
    mean = float(counts.sum()) / bins
    return (float((counts.astype(np.float64) ** 2).sum()) / bins - mean**2) / mean if mean else None


def _tick(times: Floats) -> float | None:
    """The smallest gap, where every gap is nearly a multiple of it and a tenth of them are none."""
    found = [(int((gaps > 0).sum()), gaps[gaps > 0].min(initial=np.inf)) for gaps in _gaps(times)]
    positive, gap_count = sum(count for count, _ in found), len(times) - 1
    if gap_count < _FEW or positive > 0.9 * gap_count or not positive:
        return None
    tick = float(min(least for _, least in found))
    near = 0
    for gaps in _gaps(times):
        ticks = gaps[gaps > 0] / tick
        near += int((np.abs(ticks - np.round(ticks)) < 0.05).sum())
    return tick if near > 0.9 * positive else None


def _doubts(times: Floats, inputs: _LengthCounts, outputs: _LengthCounts) -> list[Finding]:
    """Shapes that logs of real traffic do not have, and generators do."""
    if len(times) < _FEW:
        return []
    found = []
    common, often = _most_common_gap(times)
    if common > 0 and often > 0.5 * (len(times) - 1):
        found.append(
            _made(
                "constant_gaps",
                f"{often:,} of {len(times) - 1:,} gaps between arrivals are {common:g} s",
                "arrivals of many users are never evenly spaced",
            )
        )
    same = _same_each_minute(times)
    if same is not None:
        found.append(
            _made(
                "same_count_each_minute",
                f"every minute holds {same:,} rows",
                "counts of real arrivals vary at least as Poisson's do",
            )
        )
    for name, lengths in (("input", inputs), ("output", outputs)):
        values, counts = lengths.table()
        if len(times) >= 10 * _FEW and _is_uniform(values, counts):
            found.append(
                _made(
                    f"uniform_{name}_lengths",
                    f"{name} lengths fill {values[0]:,} to {values[-1]:,} evenly",
                    "real lengths have one long tail",
                )
            )
        if len(values) == 1:
            found.append(
                _made(
                    f"constant_{name}_lengths",
                    f"every {name} is {values[0]:,} tokens long",
                    "real lengths differ",
                )
            )
    return found


def _most_common_gap(times: Floats) -> tuple[float, int]:
    """The gap, to a microsecond, that more than half of all are, and how many; (0, 0) where none is.

    Such a one is the median of at least one chunk, so that only those have to be counted."""
    candidates = {float(np.round(np.median(gaps), 6)) for gaps in _gaps(times)}
    counts: Counter[float] = Counter()
    for gaps in _gaps(times):
        rounded = np.round(gaps, 6)
        for one in candidates:
            counts[one] += int((rounded == one).sum())
    common, often = counts.most_common(1)[0]
    return (common, often) if often > 0.5 * (len(times) - 1) else (0.0, 0)


def _same_each_minute(times: Floats) -> int | None:
    """How many, where all whole minutes hold as many. The first arrival is time zero, so minutes may
    begin at any second of it."""
    seen = times[:_PHASED]
    for phase in range(60):
        end = int((seen[-1] + phase) // 60)
        if end > _PHASED:  # sparse: no minute of so many can hold as many as every other
            return None
        whole = np.bincount(((seen + phase) // 60).astype(np.int64))[1:end].tolist()
        if len(whole) >= 5 and len(set(whole)) == 1 and whole[0] > 1:
            return int(whole[0])
    return None


def _is_uniform(values: Ints, counts: Ints) -> bool:
    """Kolmogorov's distance to the uniform distribution between the ends is within chance (5 %)."""
    low, high = int(values[0]), int(values[-1])
    if high - low < 20:
        return False
    share = (values - low) / (high - low)
    until, n = counts.cumsum(), int(counts.sum())
    far = max(np.abs(until / n - share).max(), np.abs((until - counts) / n - share).max())
    return bool(far < 1.36 / n**0.5)


def _made(code: str, seen: str, why: str) -> Finding:
    return Finding(
        code=code,
        text=f"It looks made up: {seen}, and {why}.",
        hint="Ask where the trace is from before a budget rests on it.",
    )


def class_names(
    classes: Sequence[ClassSpec], input_tokens: Ints, output_tokens: Ints
) -> tuple[tuple[str, ...], Ints]:
    """Names, and for each row which of them `class_of` gives to a chat without labels."""
    names = (*(spec.name for spec in classes), UNKNOWN_CLASS)
    found = np.full(len(input_tokens), len(classes), dtype=np.int64)
    for at in range(len(classes) - 1, -1, -1):  # the first that matches has the last word
        when = classes[at].when
        if when.labels or (when.operation is not None and "chat" not in when.operation):
            continue
        matches = np.ones(len(found), dtype=bool)
        for rule, tokens in (
            (when.input_tokens, input_tokens),
            (when.output_tokens, output_tokens),
        ):
            if rule is not None:
                matches &= tokens >= rule.low
                if rule.high is not None:
                    matches &= tokens <= rule.high
        found[matches] = at
    return names, found
