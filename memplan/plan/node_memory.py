"""What N replicas hold together over time: one replica's measured path in, the chance that a node runs
out of memory out.

Each replica follows the measured path from a moment of its own (a random circular shift), as if a router
gave each a like share of like traffic; bursts that hit all replicas at once are the other extreme, which
is the sum of peaks. Nothing here assumes Poisson arrivals or a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan.records import Recording

BIN_S = 0.25
"""The largest exact peak in each such stretch stands for all of it."""
BLOCK_S = 5.0
"""Parts of a path that count as independent when a chance is bounded, at least so long."""
FEWEST_BLOCKS = 8
DRAWS = 60
"""Sets of random moments; chance is the mean over all of them and over the whole path."""
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
Path = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """How often N replicas want more than there is."""

    replicas: int
    share: float
    """Of time, over all draws."""
    upper: float
    """95 % bound of it for traffic like the recording's: with B independent blocks and none over, 3 / B
    (rule of three, Hanley & Lippman-Hand 1983); otherwise Wilson's bound with B as the sample size."""
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A density that one half of the path chose, tried on the other."""

    margin_ratio: float
    """The smallest of MARGINS with which both halves held on the other; the largest, where none did."""
    holds: bool
    shares: tuple[float, float]
    """Overflow on the half that it was not chosen on, both ways round."""


def shared_files(recording: Recording, shared_bytes: int) -> int:
    """What replicas on one node map from the same files, weights and libraries alike, and hold once; the
    weights alone where the recording does not say."""
    found = [one.gauges["host.file"] for one in recording.segments if "host.file" in one.gauges]
    return max(found, default=shared_bytes)


def path_of(recording: Recording, shared_bytes: int, bin_s: float = BIN_S) -> Path:
    """Memory that a replica held for itself while it served, the peak of each bin; empty where it did
    not."""
    serving = [
        one
        for one in recording.segments
        if one.kind in ("step", "release", "idle") and "host.hwm" in one.peak
    ]
    first = next((one.start_s for one in serving if one.in_flight), None)
    if first is None:
        return np.zeros(0)
    last = max(one.end_s for one in serving if one.in_flight)
    count = max(1, math.ceil((last - first) / bin_s))
    path = np.zeros(count)
    for one in serving:
        begin = max(0, int((one.start_s - first) / bin_s))
        end = min(count - 1, int((one.end_s - first) / bin_s))
        if one.end_s >= first and begin <= end:
            files = one.gauges.get("host.file", shared_bytes)
            own = one.peak["host.hwm"] - files + one.gauges.get("host.page_tables", 0)
            np.maximum(path[begin : end + 1], own, out=path[begin : end + 1])
    for at in range(1, count):  # a stretch without a segment holds what was there before
        if path[at] == 0:
            path[at] = path[at - 1]
    return path


def needed_bytes(path: Path, replicas: int, *, target: float, seed: int = 0) -> float:
    """What N replicas hold together for themselves, but for ``target`` of the time."""
    return float(np.quantile(_superposed(path, replicas, seed), 1 - target, method="higher"))


def overflow_of(
    path: Path, replicas: int, usable_bytes: float, shared_bytes: float, *, seed: int = 0
) -> Overflow:
    blocks = blocks_in(path)
    if replicas == 0:
        return Overflow(replicas=0, share=0.0, upper=0.0, blocks=blocks)
    totals = shared_bytes + _superposed(path, replicas, seed)
    share = float(np.mean(totals > usable_bytes))
    return Overflow(replicas=replicas, share=share, upper=upper_bound(share, blocks), blocks=blocks)


def most_replicas(
    path: Path, usable_bytes: float, shared_bytes: float, *, target: float, seed: int = 0
) -> Overflow:
    """The most whose share of overflow is at most ``target``; the search halves, between what always
    fits and what never does on average."""
    if not len(path) or path.max() <= 0:
        return Overflow(replicas=0, share=0.0, upper=1.0, blocks=blocks_in(path))

    def fits(replicas: int) -> bool:
        found = overflow_of(path, replicas, usable_bytes, shared_bytes, seed=seed)
        return found.share <= target

    room = max(0.0, usable_bytes - shared_bytes)
    low = int(room // float(path.max()))
    high = max(low, int(room // float(path.mean())) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return overflow_of(path, low, usable_bytes, shared_bytes, seed=seed)


def held_out(
    path: Path, usable_bytes: float, shared_bytes: float, *, target: float
) -> HeldOut | None:
    """None where a half holds too few blocks to choose anything."""
    middle = len(path) // 2
    halves = (path[:middle], path[middle:])
    if min(blocks_in(half) for half in halves) < FEWEST_BLOCKS // 2:
        return None
    shares = (1.0, 1.0)
    for margin in MARGINS:
        room = shared_bytes + (usable_bytes - shared_bytes) / (1 + margin)
        shares = (
            _tried(halves[0], halves[1], room, usable_bytes, shared_bytes, target),
            _tried(halves[1], halves[0], room, usable_bytes, shared_bytes, target),
        )
        if max(shares) <= target:
            return HeldOut(margin_ratio=margin, holds=True, shares=shares)
    return HeldOut(margin_ratio=MARGINS[-1], holds=False, shares=shares)


def _superposed(path: Path, replicas: int, seed: int) -> Path:
    """``[DRAWS, len(path)]``: sums of so many copies of the path, each from a random moment on. A sum of
    shifted copies is a circular convolution with how often each moment was drawn."""
    length = len(path)
    rng = np.random.default_rng(seed)
    moments = rng.multinomial(replicas, np.full(length, 1 / length), size=DRAWS)
    product = np.fft.rfft(moments, axis=1) * np.fft.rfft(path)
    totals: Path = np.fft.irfft(product, n=length, axis=1)
    # Whole bytes, as the copies are: what is equal to what there is must not be over it by rounding.
    return np.round(totals, 3)


def upper_bound(share: float, blocks: int) -> float:
    """One-sided 95 %."""
    if blocks < 1:
        return 1.0
    if share == 0:
        return min(1.0, 3 / blocks)
    z = 1.6449
    centre = share + z * z / (2 * blocks)
    reach = z * math.sqrt(share * (1 - share) / blocks + z * z / (4 * blocks * blocks))
    return min(1.0, (centre + reach) / (1 + z * z / blocks))


def blocks_in(path: Sequence[float] | Path) -> int:
    return int(len(path) * BIN_S // BLOCK_S)


def _tried(
    chosen_on: Path, tried_on: Path, room: float, usable: float, shared: float, target: float
) -> float:
    replicas = most_replicas(chosen_on, room, shared, target=target).replicas
    return overflow_of(tried_on, replicas, usable, shared, seed=1).share
