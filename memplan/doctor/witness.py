"""The 1 kHz sampler that stands beside the segments: whether it can be made, and the pace it keeps."""

from __future__ import annotations

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from memplan.compiled import cache_folder
from memplan.doctor.check import Check
from memplan.probes.witness import PERIOD_S, WitnessProbe
from memplan.units import seconds_text
from memplan.witness_file import read_witness

_TRIED_S = 0.15
_SLOW = 5.0


def fast_sampler() -> Check:
    """Lets it watch this process for a moment, and reads what it wrote."""
    epoch_s = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "witness.bin"
        witness = WitnessProbe(path, epoch_s=epoch_s, cache=cache_folder())
        missing = witness.start()
        if missing is not None:
            return _no(missing.text, remedy=missing.hint)
        witness.follow((os.getpid(),))
        time.sleep(_TRIED_S)
        witness.stop()
        read, _ = read_witness(path)
    gaps = sorted(b - a for a, b in pairwise(read.t_s)) if read is not None else []
    if read is None or not gaps:
        return _no("it started and read nothing", remedy="run where /proc/PID/statm can be read")
    longest_s = gaps[-1]
    is_slow = longest_s > _SLOW * PERIOD_S
    return Check(
        name="fast sampler",
        state="note" if is_slow else "yes",
        found=f"{len(read.t_s)} readings at {read.policy} priority, at most "
        f"{seconds_text(longest_s)} apart",
        means="a second process checks every segment's peak against readings of its own",
        remedy="leave a core free, or run as a user who may use real-time priority"
        if is_slow
        else "",
    )


def _no(found: str, *, remedy: str) -> Check:
    return Check(
        name="fast sampler",
        state="no",
        found=found,
        means="a peak that another profiler took away shows only in the 20 Hz timeline",
        remedy=remedy,
    )
