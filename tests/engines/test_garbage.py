"""The collector's three modes, each in a process of its own: freezing is for a whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, sys
from memplan.engines.garbage import Garbage
kept = [[n] for n in range(5000)]
garbage = Garbage(sys.argv[1])
text = garbage.settle()
before = garbage.take()
def cycle():
    one = []
    one.append(one)
for _ in range(20_000):
    cycle()
taken = garbage.take()
print(text.partition(":")[0], gc.get_freeze_count() > 5000, gc.isenabled(), gc.collect() > 10_000,
      taken["engine.gc_runs"] > 0, taken["engine.gc_us"] > 0, garbage.take()["engine.gc_runs"],
      before["engine.gc_runs"])
"""


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("python", "python False True False True True 1 0"),
        ("frozen", "frozen True True False True True 1 0"),
        ("off", "off True False True False False 1 0"),
    ],
)
def test_each_mode_does_what_it_says(mode: str, told: str) -> None:
    """Frozen or not, whether collections run, whether cycles stay; then the program's own collection,
    and none of settling."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == told
