"""What malloc mapped one by one, in a process whose allocations are all known."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.allocator.mapped_chunks import Span, parts_outside
from memplan.units import MIB

ALLOCATE = """
import ctypes, json
from memplan.engines.allocator import allocator_name
from memplan.engines.composition import HostComposition

libc = ctypes.CDLL(None)
for call in (libc.malloc, libc.memalign, libc.realloc):
    call.restype = ctypes.c_void_p
composition = HostComposition(pool=None, interpreter_bytes=None)

def read():
    return dict(composition.read())

found = {"allocator": allocator_name(), "before": read()}
plain = libc.malloc(ctypes.c_size_t(40 << 20))
aligned = libc.memalign(ctypes.c_size_t(64), ctypes.c_size_t(24 << 20))
found["untouched"] = read()
ctypes.memset(plain, 1, 10 << 20)
ctypes.memset(aligned + (12 << 20), 1, 4 << 20)
found["touched"] = read()
libc.free(ctypes.c_void_p(plain))
found["freed"] = read()
libc.realloc(ctypes.c_void_p(aligned), ctypes.c_size_t(48 << 20))
found["moved"] = read()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    done = subprocess.run([sys.executable, "-c", ALLOCATE], capture_output=True, check=True)
    read = json.loads(done.stdout)
    if read["allocator"] != "glibc" or "host.heap_untouched" not in read["before"]:
        pytest.skip("needs glibc, and Linux 6.7 or later")
    return read


@pytest.mark.parametrize(
    ("moment", "mapped_mib", "untouched_mib"),
    [("untouched", 64, 64), ("touched", 64, 50), ("freed", 24, 20)],
)
def test_what_was_never_written_to_is_told_apart(
    found: Any, moment: str, mapped_mib: int, untouched_mib: int
) -> None:
    grown = {name: found[moment][name] - size for name, size in found["before"].items()}
    assert grown["host.heap_mapped"] == pytest.approx(mapped_mib * MIB, abs=64 << 10)
    assert grown["host.heap_untouched"] == pytest.approx(untouched_mib * MIB, abs=64 << 10)


def test_where_a_header_was_moved_nothing_is_claimed(found: Any) -> None:
    """realloc of an aligned chunk rewrites its inner header and leaves the first one stale."""
    assert found["moved"]["host.heap_mapped"] > found["freed"]["host.heap_mapped"]
    assert "host.heap_untouched" not in found["moved"]


SPANS = st.sets(st.integers(0, 40), max_size=12).map(
    lambda cuts: list(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
)


@given(SPANS, SPANS)
def test_parts_outside_hold_what_only_the_first_holds(spans: list[Span], known: list[Span]) -> None:
    def places(of: list[Span]) -> list[int]:
        return [place for start, end in of for place in range(start, end)]

    outside = list(parts_outside(spans, known))
    assert places(outside) == [place for place in places(spans) if place not in places(known)]
    assert all(start < end for start, end in outside)
