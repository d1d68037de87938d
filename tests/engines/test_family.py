"""Marks of a process and of its children: exact while they can be reset, and never a crash."""

import mmap
import os
import subprocess
import sys
import time

from memplan.engines.family import Family
from memplan.procfs import drift_bound_bytes
from memplan.units import MIB

SPIKE_BYTES = 32 * MIB
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
DRIFT_BYTES = drift_bound_bytes(os.cpu_count() or 1)


def taken(family: Family) -> tuple[int, dict[str, int]]:
    cut = family.cut()
    return cut.peak_bytes, family.gauges_of(cut)


HOLDS = f"""
import mmap, sys
held = mmap.mmap(-1, {SPIKE_BYTES}, flags={int(FLAGS)})
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_spike_between_two_calls_is_in_the_peak_and_not_in_the_next() -> None:
    family = Family(resets=True)
    before = taken(family)[1]["host.rss"]
    mmap.mmap(-1, SPIKE_BYTES, flags=FLAGS).close()
    peak, _ = taken(family)
    after, _ = taken(family)
    assert family.is_exact
    assert peak - before >= SPIKE_BYTES - DRIFT_BYTES
    assert after - before < SPIKE_BYTES / 2


def test_marks_left_alone_give_the_two_ends_and_keep_the_mark_of_the_whole_life() -> None:
    family = Family(resets=False)
    mmap.mmap(-1, SPIKE_BYTES, flags=FLAGS).close()
    peak, gauges = taken(family)
    assert not family.is_exact
    assert gauges["host.hwm_life"] >= peak


def test_a_right_to_reset_that_is_lost_leaves_readings_at_the_ends() -> None:
    family = Family(resets=True)
    taken(family)
    os.close(family._own._clear)
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - writing to it fails, as a lost right does
        family._own._clear = os.dup(full.fileno())
    peak, gauges = taken(family)
    assert not family.is_exact
    assert gauges["host.hwm_life"] >= gauges["host.rss"]
    assert peak >= gauges["host.rss"]


def test_a_child_counts_from_its_birth_until_it_ends() -> None:
    family = Family(resets=True)
    alone, _ = taken(family)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        family._looked_s = time.monotonic() - 10
        together, gauges = taken(family)
        assert gauges["host.processes"] == 2
        assert together - alone >= SPIKE_BYTES - DRIFT_BYTES
    after, gauges = taken(family)
    assert "host.processes" not in gauges
    assert after - alone < SPIKE_BYTES / 2
