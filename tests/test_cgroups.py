"""Control groups from the kernel's texts, and gauges from files as each version writes them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.cgroups import (
    GroupMemory,
    PeakMark,
    Place,
    fields_in,
    make_group,
    peak_mark_of,
    place_in,
    pressure_in,
)
from memplan.errors import MachineError
from memplan.units import MIB

V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
"""
V2_MOUNTS = """\
22 20 0:21 / /proc rw,nosuid shared:5 - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
CONTAINER = "35 31 0:32 /docker/ab12 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


def v1(folder: str) -> Place:
    return Place(version="v1", folder=Path(folder))


def v2(folder: str) -> Place:
    return Place(version="v2", folder=Path(folder))


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "place"),
    [
        ("4:memory:/jobs/a\n3:cpuset:/\n", V1_MOUNTS, v1("/sys/fs/cgroup/memory/jobs/a")),
        ("7:cpu,memory:/\n", V1_MOUNTS, v1("/sys/fs/cgroup/memory")),
        ("0::/user.slice/x.scope\n", V2_MOUNTS, v2("/sys/fs/cgroup/user.slice/x.scope")),
        # Hybrid: version 1 has the memory controller, whatever version 2 has beside it.
        ("4:memory:/a\n0::/b\n", V1_MOUNTS + UNIFIED, v1("/sys/fs/cgroup/memory/a")),
        # Hybrid the other way: version 1 is mounted for other controllers only.
        ("9:name=systemd:/\n0::/b\n", V2_MOUNTS, v2("/sys/fs/cgroup/b")),
        # A container sees its own part of the hierarchy only, by the host's path or by its own.
        ("4:memory:/docker/ab12\n", CONTAINER, v1("/sys/fs/cgroup/memory")),
        ("4:memory:/docker/ab12/x\n", CONTAINER, v1("/sys/fs/cgroup/memory/x")),
        ("4:memory:/docker/ab123\n", CONTAINER, v1("/sys/fs/cgroup/memory")),
        ("0::/a:b\n", V2_MOUNTS.replace("/cgroup rw", "/c\\040g rw"), v2("/sys/fs/c g/a:b")),
        ("3:cpuset:/\n", V1_MOUNTS, None),
        ("4:memory:/\n", "22 20 0:21 / /proc rw,nosuid - proc proc rw\n", None),
        ("", "", None),
    ],
)
def test_the_place_of_a_process_is_read_from_both_texts(
    cgroup: str, mountinfo: str, place: Place | None
) -> None:
    assert place_in(cgroup, mountinfo) == place


def test_fields_are_names_with_numbers() -> None:
    assert fields_in("oom_kill_disable 0\noom_kill 2\n") == {"oom_kill_disable": 0, "oom_kill": 2}
    assert fields_in("max max\n\nlow 1 2\n") == {}


def test_pressure_is_the_total_of_each_kind() -> None:
    text = "some avg10=0.00 avg60=1.00 avg300=0.00 total=123\nfull avg10=0.00 total=45\n"
    assert pressure_in(text) == {"some": 123, "full": 45}
    assert pressure_in("") == {}


def test_a_version_1_group_is_read_with_the_groups_below_it(tmp_path: Path) -> None:
    for name, text in {
        "memory.usage_in_bytes": "4096\n",
        "memory.max_usage_in_bytes": "8192\n",
        "memory.kmem.usage_in_bytes": "512\n",
        "memory.stat": "rss 1\ntotal_rss 11\ntotal_cache 22\ntotal_inactive_file 3\n"
        "total_shmem 4\ntotal_workingset_refault_file 5\ntotal_pgmajfault 6\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
    }.items():
        (tmp_path / name).write_text(text)
    memory = GroupMemory(Place(version="v1", folder=tmp_path))
    assert memory.read_charge() == {
        "cgroup.current": 4096,
        "cgroup.peak": 8192,
        "cgroup.kernel": 512,
    }
    detail = memory.read_detail()
    memory.close()
    known = {name: value for name, value in detail.items() if name.startswith("cgroup.")}
    assert known == {
        "cgroup.anon": 11,
        "cgroup.file": 22,
        "cgroup.inactive_file": 3,
        "cgroup.shmem": 4,
        "cgroup.refaults": 5,
        "cgroup.major_faults": 6,
        "cgroup.oom_kills": 7,
    }, "pressure is the machine's, and never under the group's name"


def test_a_version_2_group_of_an_old_kernel_leaves_out_what_it_does_not_say(tmp_path: Path) -> None:
    for name, text in {
        "memory.current": "4096\n",
        "memory.stat": "anon 11\nfile 22\npgmajfault 6\n",
        "memory.events": "low 0\noom 1\noom_kill 1\n",
        "memory.pressure": "some avg10=0.00 total=9\nfull avg10=0.00 total=8\n",
    }.items():
        (tmp_path / name).write_text(text)
    memory = GroupMemory(Place(version="v2", folder=tmp_path))
    assert memory.read_charge() == {"cgroup.current": 4096}
    assert memory.read_detail() == {
        "cgroup.anon": 11,
        "cgroup.file": 22,
        "cgroup.major_faults": 6,
        "cgroup.oom_kills": 1,
        "cgroup.psi_some_us": 9,
        "cgroup.psi_full_us": 8,
    }
    memory.close()


def test_a_groups_mark_is_read_and_set_back_through_one_file(tmp_path: Path) -> None:
    """On version 2 a second open file has a mark of its own; a rename shows which one is read."""
    place = Place(version="v2", folder=tmp_path)
    assert peak_mark_of(place) is None
    (tmp_path / "memory.peak").write_text("8\n")
    mark = peak_mark_of(place)
    assert mark is not None
    (tmp_path / "memory.peak").rename(tmp_path / "gone")
    (tmp_path / "memory.peak").write_text("1\n")
    assert peak_mark_of(place) is mark
    memory = GroupMemory(place)
    assert memory.read_charge() == {"cgroup.peak": 8}
    assert mark.reset()
    assert memory.read_charge() == {"cgroup.peak": 0}
    memory.close()


def test_a_mark_that_nobody_holds_is_opened_anew(tmp_path: Path) -> None:
    (tmp_path / "memory.max_usage_in_bytes").write_text("1\n")
    place = Place(version="v1", folder=tmp_path)
    first = peak_mark_of(place)
    assert first is not None and first.read() == 1
    (tmp_path / "memory.max_usage_in_bytes").unlink()
    assert first.read() == 1
    del first
    assert peak_mark_of(place) is None


def test_a_mark_that_may_not_be_written_stays_that_of_the_life(tmp_path: Path) -> None:
    """As before Linux 6.12, where the file takes no writing."""
    (tmp_path / "memory.peak").write_text("8192\n")
    fd = os.open(tmp_path / "memory.peak", os.O_RDONLY)
    mark = PeakMark(fd)
    assert mark.reset() is False
    assert mark.read() == 8192


def test_a_version_2_group_gets_its_limit_and_no_swap(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    group = make_group(64 * MIB, above=Place(version="v2", folder=tmp_path))
    assert (group.place.folder / "memory.max").read_text() == str(64 * MIB)
    assert (group.place.folder / "memory.swap.max").read_text() == "0"
    assert group.place.folder.parent == tmp_path
    assert group.text() == "v2, of the engine alone, limit 67,108,864 bytes"
    assert (group.pids(), group.oom_kills(), group.peak_bytes()) == ((), 0, None)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"cgroup.controllers": "hugetlb\n"}, "has no memory controller"),
        ({}, os.strerror(errno.ENOENT)),
    ],
)
def test_where_no_group_can_be_made_the_error_says_why(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(MachineError, match="gets no control group of its own") as raised:
        make_group(None, above=Place(version="v2", folder=tmp_path))
    assert reason in raised.value.message
    assert "memory limit" in raised.value.hint


def test_only_groups_of_dead_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"memplan-{dead.pid}-a1", f"memplan-{os.getpid()}-a1", "memplan-x-a1", "other"):
        (tmp_path / name).mkdir()
    group = make_group(None, above=Place(version="v2", folder=tmp_path))
    group.remove()
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {f"memplan-{os.getpid()}-a1", "memplan-x-a1", "other"}


def test_a_command_that_may_not_join_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    group = make_group(None, above=Place(version="v2", folder=tmp_path))
    (group.place.folder / "cgroup.procs").mkdir()  # no shell can write to it
    code = 'import os, sys; print(os.getpid(), sys.argv[1]); print("said", file=sys.stderr)'
    with subprocess.Popen(
        group.joining([sys.executable, "-c", code, "a b'c"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate()
    assert (out, err) == (f"{process.pid} a b'c\n", "said\n")
