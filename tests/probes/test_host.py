"""The process tree of an engine, as the kernel sees it from outside."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from builders import engine

from memplan.probes.host import HostProbe
from memplan.process_tree import family_by_search, family_of, is_alive
from memplan.procfs import ProcessMemory
from memplan.units import MIB

PARENT = """
import mmap, subprocess, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = mmap.mmap(-1, 16 << 20, flags=flags)
code = sys.argv[1] if len(sys.argv) > 1 else ""
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) if code else None
if child:
    child.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
if child:
    child.kill()
    child.wait()
"""
CHILD = """
import mmap, time
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = mmap.mmap(-1, 32 << 20, flags=flags)
print("ready", flush=True)
time.sleep(60)
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: subprocess.Popen[str]) -> None:
    with process:
        process.communicate(timeout=10)


@pytest.fixture
def alone() -> Iterator[subprocess.Popen[str]]:
    process = started()
    yield process
    ended(process)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = started(CHILD)
    yield process
    ended(process)


def attached(*pids: int) -> HostProbe:
    probe = HostProbe()
    probe.attach(engine(pids=pids))
    return probe


def test_one_process_reads_as_the_kernel_says(alone: subprocess.Popen[str]) -> None:
    with ProcessMemory(alone.pid) as memory:
        truth = memory.read()
    found = attached(alone.pid).read()
    assert found["host.rss"] == pytest.approx(truth["host.rss"], abs=MIB // 4)
    assert found["host.anon"] >= 16 * MIB
    assert "host.hwm" not in found


def test_proportional_memory_is_read_at_quiet_moments_only(
    alone: subprocess.Popen[str], family: subprocess.Popen[str]
) -> None:
    assert "host.pss" not in attached(alone.pid).read()
    found = attached(family.pid).read(is_quiet=True)
    assert 48 * MIB <= found["host.pss"] <= found["host.rss"]


def test_children_of_an_engine_are_part_of_it(family: subprocess.Popen[str]) -> None:
    found = attached(family.pid).read()
    assert found["host.anon"] >= 48 * MIB
    with ProcessMemory(family.pid) as memory:
        assert found["host.rss"] - memory.read()["host.rss"] >= 32 * MIB


def test_the_tree_is_found_from_the_kernels_list_and_by_a_search_of_all_processes(
    family: subprocess.Popen[str],
) -> None:
    found = family_of(family.pid)
    assert len(found) == 2
    assert found == family_by_search(family.pid)
    assert all(is_alive(pid) for pid in found)


def test_a_process_that_is_gone_is_a_family_of_one_and_not_alive() -> None:
    process = started()
    ended(process)
    assert family_of(process.pid) == family_by_search(process.pid) == [process.pid]
    assert not is_alive(process.pid)


def test_several_processes_are_summed(
    alone: subprocess.Popen[str], family: subprocess.Popen[str]
) -> None:
    separate = attached(alone.pid).read()["host.rss"] + attached(family.pid).read()["host.rss"]
    together = attached(alone.pid, family.pid).read()["host.rss"]
    assert together == pytest.approx(separate, abs=MIB // 4)


def test_memplan_itself_is_not_in_the_sum(alone: subprocess.Popen[str]) -> None:
    with ProcessMemory() as own:
        assert attached(alone.pid).read()["host.rss"] < own.read()["host.rss"]


def test_a_dead_engine_reads_as_nothing(alone: subprocess.Popen[str]) -> None:
    probe = attached(alone.pid)
    alone.kill()
    os.waitid(os.P_PID, alone.pid, os.WEXITED | os.WNOWAIT)
    assert probe.read() == {}
    alone.wait()
    assert probe.read() == {}


def test_an_engine_that_was_gone_before_it_could_be_read_reads_as_nothing() -> None:
    process = started()
    ended(process)
    assert attached(process.pid).read() == {}


def test_an_engine_without_a_process_reads_as_nothing() -> None:
    assert attached().read() == {}


def test_attaching_again_follows_the_new_engine_only(
    alone: subprocess.Popen[str], family: subprocess.Popen[str]
) -> None:
    probe = attached(family.pid)
    probe.attach(engine(pids=(alone.pid,), engine_start=1))
    truth = attached(alone.pid).read()["host.rss"]
    assert probe.read()["host.rss"] == pytest.approx(truth, abs=MIB // 4)
