"""A run's witness.bin → a Witness: 1 kHz readings as probes/fast_sampler.c wrote them.

Little-endian 64-bit integers in pairs. Two pairs of header: magic, period in ns; epoch in ns, policy.
Then readings: CLOCK_MONOTONIC in ns, bytes; a time of 0 marks the sampler's own CPU ns so far.
"""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import Literal

from memplan.records import Witness

_MAGIC = int.from_bytes(b"MWITNSS1", "little")
_HEADER_BYTES, _RECORD_BYTES = 32, 16
_POLICIES: tuple[Literal["ordinary", "nice", "real-time"], ...] = ("ordinary", "nice", "real-time")


def read_witness(path: Path) -> tuple[Witness | None, bool]:
    """(witness, whole): None where no header was written, ``whole`` False when the tail was cut off.

    Raises OSError, and ValueError when the file is of another kind.
    """
    if not path.exists():
        return None, True
    data = path.read_bytes()
    if len(data) < _HEADER_BYTES:
        return None, not data
    numbers = array("q", data[: len(data) // 8 * 8])
    if sys.byteorder == "big":
        numbers.byteswap()
    magic, period_ns, epoch_ns, policy = numbers[:4]
    if magic != _MAGIC or not 0 <= policy < len(_POLICIES):
        raise ValueError("it is not a witness file")
    whole_numbers = len(data) // _RECORD_BYTES * 2
    times_ns, values = numbers[4:whole_numbers:2], numbers[5:whole_numbers:2]
    readings = [(at_ns, value) for at_ns, value in zip(times_ns, values, strict=True) if at_ns]
    cpu_ns = [value for at_ns, value in zip(times_ns, values, strict=True) if not at_ns]
    witness = Witness(
        t_s=array("d", [(at_ns - epoch_ns) * 1e-9 for at_ns, _ in readings]),
        rss_bytes=array("q", [value for _, value in readings]),
        period_s=period_ns * 1e-9,
        policy=_POLICIES[policy],
        cpu_s=cpu_ns[-1] * 1e-9 if cpu_ns else None,
    )
    return witness, len(data) % _RECORD_BYTES == 0
