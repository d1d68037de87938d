"""Two replicas on one weight file, known to the byte, each in a control group of its own.

The replicas share no code with memplan. What memplan says of them is held against arithmetic on the
two sizes below: the difference between a bare interpreter and one that holds its memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from builders import engine

from memplan.cgroups import Group, make_group
from memplan.errors import MachineError
from memplan.page_cache import cached_bytes
from memplan.probes.cgroup import CgroupProbe
from memplan.probes.host import HostProbe
from memplan.records import EngineFacts
from memplan.stats.truths import Truths, truths_at
from memplan.units import MIB

FILE_BYTES = 256 * MIB
PRIVATE_BYTES = 96 * MIB
TOLERANCE = 0.02

# Says "ready" bare, when it holds the file (mapped, or read into memory) and its own memory, and when
# it has given the latter back.
REPLICA = """
import mmap, os, sys
path, mode, private = sys.argv[1], sys.argv[2], int(sys.argv[3])
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
size = os.stat(path).st_size
print("ready", flush=True)
sys.stdin.readline()
own = mmap.mmap(-1, private, flags=anonymous)
file = open(path, "rb", buffering=0)
if mode == "mapped":
    held = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    held.madvise(mmap.MADV_POPULATE_READ if hasattr(mmap, "MADV_POPULATE_READ") else 22)
else:
    held = mmap.mmap(-1, size, flags=anonymous)
    assert file.readinto(held) == size
print("ready", flush=True)
sys.stdin.readline()
own.close()
print("ready", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    process: subprocess.Popen[str]
    group: Group
    host: HostProbe
    cgroup: CgroupProbe

    def go_on(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ready\n"

    def truths(self, *, weights_mapped_bytes: int) -> Truths:
        gauges = {**self.host.read(is_quiet=True), **self.cgroup.read(is_quiet=True)}
        return truths_at(gauges, facts(self.process.pid, weights_mapped_bytes))


def facts(pid: int, weights_mapped_bytes: int) -> EngineFacts:
    return engine(
        engine="torch",
        pids=(pid,),
        settings={"cgroup": "v1 or v2, of the engine alone"},
        idle={"engine.weight_files_resident": weights_mapped_bytes},
    )


@pytest.fixture(autouse=True)
def _needs_groups() -> None:
    try:
        make_group(None).remove()
    except MachineError as error:
        pytest.skip(error.message)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Whole on disk, and none of it in the page cache."""
    path = tmp_path / "weights"
    with path.open("wb") as out:
        for _ in range(FILE_BYTES // MIB):
            out.write(os.urandom(MIB))
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes([path]) != 0:
        pytest.skip("this file system keeps its files in memory")
    return path


@pytest.fixture
def start(file: Path) -> Iterator[Callable[[str], Replica]]:
    started: list[Replica] = []

    def begin(mode: str) -> Replica:
        group = make_group(None)
        command = [sys.executable, "-S", "-c", REPLICA, str(file), mode, str(PRIVATE_BYTES)]
        process = subprocess.Popen(
            group.joining(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        replica = Replica(process=process, group=group, host=HostProbe(), cgroup=CgroupProbe())
        replica.host.attach(facts(process.pid, 0))
        replica.cgroup.attach(facts(process.pid, 0))
        started.append(replica)
        return replica

    yield begin
    for replica in started:
        with replica.process:
            replica.process.kill()
        replica.group.remove()


def grown(after: int | None, before: int | None) -> int:
    assert after is not None and before is not None
    return after - before


def close_to(expected_bytes: int) -> object:
    return pytest.approx(expected_bytes, rel=TOLERANCE)


def test_two_replicas_that_map_one_file(start: Callable[[str], Replica], file: Path) -> None:
    first, second = start("mapped"), start("mapped")
    bare_1, bare_2 = (one.truths(weights_mapped_bytes=0) for one in (first, second))
    first.go_on()
    alone = first.truths(weights_mapped_bytes=FILE_BYTES)
    assert cached_bytes([file]) == FILE_BYTES
    second.go_on()
    held_1, held_2 = (one.truths(weights_mapped_bytes=FILE_BYTES) for one in (first, second))

    whole = PRIVATE_BYTES + FILE_BYTES
    for held, bare in ((held_1, bare_1), (held_2, bare_2)):
        assert grown(held.resident_bytes, bare.resident_bytes) == close_to(whole)
        assert grown(held.proportional_bytes, bare.proportional_bytes) == close_to(
            PRIVATE_BYTES + FILE_BYTES // 2
        )
        assert grown(held.demand_alone_bytes, bare.demand_alone_bytes) == close_to(whole)
        assert grown(held.demand_private_bytes, bare.demand_private_bytes) == close_to(
            PRIVATE_BYTES
        )
        assert held.demand_shared_bytes == FILE_BYTES
    assert grown(alone.proportional_bytes, bare_1.proportional_bytes) == close_to(whole)
    # Whoever touched the file first is charged for it, and the other is not.
    assert grown(held_1.charged_bytes, bare_1.charged_bytes) == close_to(whole)
    assert grown(held_2.charged_bytes, bare_2.charged_bytes) == close_to(PRIVATE_BYTES)
    assert held_1.working_set_bytes == working_set_of(first.group)
    assert held_2.working_set_bytes == working_set_of(second.group)
    two, bare_two = held_1.demand_of_replicas(2), bare_1.demand_of_replicas(2)
    assert grown(two, bare_two) == close_to(2 * PRIVATE_BYTES + FILE_BYTES)
    both = grown(held_1.proportional_bytes, bare_1.proportional_bytes) + grown(
        held_2.proportional_bytes, bare_2.proportional_bytes
    )
    assert grown(two, bare_two) == pytest.approx(both, rel=TOLERANCE)


def test_two_replicas_that_read_one_file(start: Callable[[str], Replica], file: Path) -> None:
    first, second = start("read"), start("read")
    bare_1, bare_2 = (one.truths(weights_mapped_bytes=0) for one in (first, second))
    first.go_on()
    second.go_on()
    held_1, held_2 = (one.truths(weights_mapped_bytes=0) for one in (first, second))

    whole = PRIVATE_BYTES + FILE_BYTES
    for held, bare in ((held_1, bare_1), (held_2, bare_2)):
        for read in (
            lambda t: t.resident_bytes,
            lambda t: t.proportional_bytes,
            lambda t: t.demand_alone_bytes,
            lambda t: t.demand_private_bytes,
        ):
            assert grown(read(held), read(bare)) == close_to(whole)
        assert held.demand_shared_bytes == 0
    # The first reader is charged twice: for its copy and for the page cache, which nothing maps.
    assert grown(held_1.charged_bytes, bare_1.charged_bytes) == close_to(whole + FILE_BYTES)
    assert grown(held_2.charged_bytes, bare_2.charged_bytes) == close_to(whole)
    assert grown(held_1.file_balance_bytes, bare_1.file_balance_bytes) == close_to(FILE_BYTES)
    assert held_1.working_set_bytes == working_set_of(first.group)
    two, bare_two = held_1.demand_of_replicas(2), bare_1.demand_of_replicas(2)
    assert grown(two, bare_two) == close_to(2 * whole)


def working_set_of(group: Group) -> object:
    """As the kubelet computes it, from the files themselves (version 1 or 2)."""
    folder = group.place.folder
    usage = folder / "memory.usage_in_bytes"
    usage = usage if usage.exists() else folder / "memory.current"
    lines = (folder / "memory.stat").read_text().splitlines()
    stat = dict(line.split() for line in lines)
    inactive = int(stat.get("total_inactive_file", stat["inactive_file"]))
    return pytest.approx(int(usage.read_text()) - inactive, abs=MIB)


def test_the_charged_mark_is_set_back_when_loading_ends(start: Callable[[str], Replica]) -> None:
    replica = start("mapped")
    replica.go_on()
    replica.go_on()
    loaded_bytes, peak_bytes = replica.cgroup.read()["cgroup.current"], replica.group.peak_bytes()
    assert peak_bytes is not None
    assert peak_bytes - loaded_bytes == close_to(PRIVATE_BYTES)
    if not replica.group.end_loading():
        pytest.skip("this kernel cannot set the mark back")
    # The group and the probe read the same mark.
    assert replica.group.peak_bytes() == replica.cgroup.read()["cgroup.peak"]
    assert replica.group.peak_bytes() == pytest.approx(loaded_bytes, abs=MIB)
