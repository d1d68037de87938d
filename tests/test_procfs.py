"""What the kernel says of a process, held against memory of known size in a child process."""

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.pages import PAGE_BYTES
from memplan.procfs import (
    ProcessMemory,
    drift_bound_bytes,
    proportional_bytes,
)
from memplan.units import MIB

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
CHILD = """
import mmap, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = []
print("ready", flush=True)
for line in sys.stdin:
    word, size = line.split()
    match word:
        case "hold":
            held.append(mmap.mmap(-1, int(size), flags=flags))
        case "spike":
            mmap.mmap(-1, int(size), flags=flags).close()
        case "drop":
            held.pop().close()
    print("done", flush=True)
"""


class Child:
    """A process that holds what it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self._hear()

    def tell(self, word: str, size_bytes: int = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word} {size_bytes}\n")
        self._process.stdin.flush()
        self._hear()

    def end(self) -> None:
        """Ends, and is not waited for: a zombie until ``bury``."""
        self._process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def bury(self) -> None:
        self._process.wait()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()


@pytest.fixture
def child() -> Iterator[Child]:
    command = [sys.executable, "-S", "-c", CHILD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Child(process)
        process.kill()


def small_pages(size_bytes: int) -> mmap.mmap:
    """Anonymous memory, untouched, that the kernel may not back with huge pages."""
    memory = mmap.mmap(-1, size_bytes, flags=PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_resident_bytes_follow_what_the_process_holds(child: Child) -> None:
    with ProcessMemory(child.pid) as memory:
        before = memory.read()
        child.tell("hold", 64 * MIB)
        holding = memory.read()
        child.tell("drop")
        after = memory.read()
    for gauge in ("host.rss", "host.anon"):
        assert holding[gauge] - before[gauge] == pytest.approx(64 * MIB, abs=MIB)
        assert after[gauge] == pytest.approx(before[gauge], abs=MIB)
    assert holding["host.file"] == pytest.approx(before["host.file"], abs=MIB)


def test_a_peak_between_two_readings_is_the_spikes_and_is_gone_after_a_reset(child: Child) -> None:
    with ProcessMemory(child.pid) as memory:
        memory.reset_peak()
        before = memory.read()
        assert before["host.hwm"] == pytest.approx(before["host.rss"], abs=MIB)
        child.tell("spike", 80 * MIB)
        after = memory.read()
        assert after["host.rss"] == pytest.approx(before["host.rss"], abs=MIB)
        assert after["host.hwm"] - before["host.rss"] == pytest.approx(80 * MIB, abs=MIB)
        memory.reset_peak()
        assert memory.read()["host.hwm"] == pytest.approx(after["host.rss"], abs=MIB)


def test_the_parts_of_resident_bytes_add_up_to_them(child: Child) -> None:
    child.tell("hold", 16 * MIB)
    with ProcessMemory(child.pid) as memory:
        gauges = memory.read()
    parts = ("host.anon", "host.file", "host.shmem")
    assert sum(gauges[part] for part in parts) == gauges["host.rss"]
    assert {"host.page_tables", "host.swap", "host.hwm"} <= set(gauges)


def test_a_process_reads_itself() -> None:
    with ProcessMemory() as mine, ProcessMemory(os.getpid()) as same:
        assert mine.read()["host.rss"] == pytest.approx(same.read()["host.rss"], abs=MIB)


@pytest.mark.parametrize("ending", [[Child.end], [Child.end, Child.bury]], ids=["zombie", "gone"])
def test_a_dead_process_is_said_to_be_gone(child: Child, ending: list) -> None:  # type: ignore[type-arg]
    with ProcessMemory(child.pid) as memory:
        memory.reset_peak()
        for step in ending:
            step(child)
        with pytest.raises(ProcessLookupError):
            memory.read()


def test_the_peak_of_a_process_that_is_gone_cannot_be_reset(child: Child) -> None:
    with ProcessMemory(child.pid) as opened, ProcessMemory(child.pid) as unopened:
        opened.reset_peak()
        child.end()
        child.bury()
        with pytest.raises(ProcessLookupError):
            opened.reset_peak()
        with pytest.raises(ProcessLookupError):
            unopened.reset_peak()


def test_a_process_that_never_was_cannot_be_opened() -> None:
    with pytest.raises(ProcessLookupError):
        ProcessMemory(2**30)


def test_closing_twice_is_no_fault() -> None:
    memory = ProcessMemory()
    memory.reset_peak()
    memory.close()
    memory.close()


def test_a_page_that_two_processes_map_is_half_each(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(32 * MIB))
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); "
        "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); "
        "print(sum(held[i] for i in range(0, len(held), 4096)), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-c", code, str(path)]
    before = proportional_bytes()
    assert before is not None
    with path.open("rb") as data, mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert sum(memory[at] for at in range(0, len(memory), PAGE_BYTES)) == 0
        alone = proportional_bytes()
        assert alone == pytest.approx(before + 32 * MIB, abs=MIB)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            both = proportional_bytes()
            theirs = proportional_bytes(other.pid)
            other.communicate()
    assert alone is not None and both is not None and theirs is not None
    assert alone - both >= 15 * MIB
    assert theirs >= 16 * MIB


def test_a_process_that_is_gone_has_no_share() -> None:
    with pytest.raises(ProcessLookupError, match="is gone"):
        proportional_bytes(2**22 + 1)


@pytest.mark.parametrize(("cpus", "pages"), [(2, 3 * 2 * 32), (64, 3 * 64 * 128)])
def test_the_drift_bound_is_three_counters_of_every_cpus_batch(cpus: int, pages: int) -> None:
    assert drift_bound_bytes(cpus) == pages * PAGE_BYTES
