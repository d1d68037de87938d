"""The allocators' own accounts, in processes that they really serve, around memory known to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from memplan.engines.allocator.preload import find_allocator, library_folders, preloading
from memplan.engines.allocator.trimming import Trimmer
from memplan.errors import MachineError
from memplan.units import MIB

HELD_BYTES = 100 * MIB
ALLOCATORS = ("system", "jemalloc", "tcmalloc")
INSIDE = """\
import ctypes, json, sys
from memplan.engines import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = (ctypes.c_void_p * (100 * 1024))()

def seen():
    with open("/proc/self/statm") as statm:
        rss = int(statm.read().split()[1]) * 4096
    return {**allocator.heap_gauges(), "rss": rss}

told = [seen()]
for at in range(len(blocks)):
    blocks[at] = libc.malloc(1024)
    ctypes.memset(blocks[at], 1, 1024)
told.append(seen())
for block in blocks:
    libc.free(block)
told.append(seen())
allocator.trim_heap()
told.append(seen())
print(json.dumps({
    "name": allocator.allocator_name(),
    "settings": dict(allocator.allocator_settings()),
    "check": {asked: allocator.check_allocator(asked) for asked in sys.argv[1:]},
    "seen": told,
}))
"""


def told_by(env: Mapping[str, str]) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, *ALLOCATORS],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **env},
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def preloaded(asked: str) -> dict[str, str]:
    try:
        return preloading(asked, {"LD_PRELOAD": ""})
    except MachineError as missing:
        pytest.skip(f"{missing.message}: {missing.hint}")


@pytest.mark.parametrize("asked", ALLOCATORS)
def test_a_hundred_mebibytes_are_counted_used_then_free_then_given_back(asked: str) -> None:
    told = told_by(preloaded(asked))
    before, held, freed, trimmed = told["seen"]
    if "host.heap_used" not in before:
        pytest.skip(f"{told['name']} {told['settings']['allocator_version']} gives no account")
    assert held["host.heap_used"] - before["host.heap_used"] == pytest.approx(HELD_BYTES, rel=0.02)
    assert freed["host.heap_used"] - before["host.heap_used"] < 0.02 * HELD_BYTES
    assert freed["host.heap_free"] - held["host.heap_free"] > 0.95 * HELD_BYTES
    assert freed["rss"] - before["rss"] > HELD_BYTES
    assert freed["rss"] - trimmed["rss"] > 0.95 * HELD_BYTES


@pytest.mark.parametrize("asked", ["jemalloc", "tcmalloc"])
def test_what_was_given_back_is_no_longer_free(asked: str) -> None:
    _, _, freed, trimmed = told_by(preloaded(asked))["seen"]
    assert freed["host.heap_free"] - trimmed["host.heap_free"] > 0.95 * HELD_BYTES


def test_glibc_calls_free_what_it_gave_back_too() -> None:
    """Why glibc's arenas are told apart by their resident pages, and not by its word."""
    told = told_by({})
    if told["name"] != "glibc":
        pytest.skip(f"the system's malloc is {told['name']}")
    _, _, freed, trimmed = told["seen"]
    assert freed["host.heap_free"] - trimmed["host.heap_free"] < 0.02 * HELD_BYTES
    assert freed["host.heap_arenas"] > HELD_BYTES
    assert freed["host.heap_mapped"] < 0.1 * HELD_BYTES


@pytest.mark.parametrize("asked", ALLOCATORS)
def test_only_the_allocator_that_serves_passes_for_it(asked: str) -> None:
    told = told_by(preloaded(asked))
    assert told["check"][asked] == ""
    assert asked in ("system", told["name"])
    for other in set(ALLOCATORS) - {asked}:
        assert told["check"][other].startswith(
            f"settings.allocator is {other}, but malloc is served by {told['name']} ("
        )


def test_a_library_that_is_preloaded_and_does_not_serve_is_seen_through() -> None:
    libraries = [preloaded(one)["LD_PRELOAD"] for one in ("jemalloc", "tcmalloc")]
    told = told_by({"LD_PRELOAD": " ".join(libraries)})
    assert told["name"] == "jemalloc"
    assert told["check"]["tcmalloc"] != ""


@pytest.mark.parametrize("asked", ALLOCATORS)
def test_the_settings_say_who_serves_and_what_moves_it(asked: str) -> None:
    moving = {"MALLOC_ARENA_MAX": "3", "MALLOC_CONF": "narenas:1", "TCMALLOC_RELEASE_RATE": "5"}
    told = told_by({**preloaded(asked), **moving, "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"})
    settings = told["settings"]
    assert settings["allocator"] == told["name"]
    assert settings["allocator_version"]
    assert settings["allocator_library"].startswith("libc" if asked == "system" else f"lib{asked}")
    assert moving.items() <= settings.items()
    assert settings["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"


def test_the_allocator_goes_before_what_is_preloaded_already() -> None:
    ours = preloaded("jemalloc")["LD_PRELOAD"]
    assert preloading("jemalloc", {"LD_PRELOAD": "theirs.so"}) == {
        "LD_PRELOAD": f"{ours} theirs.so"
    }
    assert preloading("system", {"LD_PRELOAD": "theirs.so"}) == {}


def test_the_first_folder_that_has_a_library_gives_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "libtcmalloc.so.4"), (second, "libtcmalloc_minimal.so.4")):
        folder.mkdir()
        (folder / name).touch()
    found = find_allocator("tcmalloc", [first, second])
    assert found == second / "libtcmalloc_minimal.so.4", "the smaller library is preferred"
    assert find_allocator("tcmalloc", [first]) == first / "libtcmalloc.so.4"


def test_a_library_that_is_not_installed_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        find_allocator("jemalloc", [tmp_path])
    assert caught.value.message == (
        "settings.allocator is jemalloc, and libjemalloc.so.2 is not installed"
    )
    assert "apt-get install libjemalloc2" in caught.value.hint
    with pytest.raises(MachineError, match=r"libtcmalloc_minimal\.so\.4 or libtcmalloc\.so\.4"):
        find_allocator("tcmalloc", [tmp_path])


def test_the_loaders_own_variable_is_searched_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:")
    assert library_folders()[0] == tmp_path


class Trims:
    """A clock and a heap that are told what to do."""

    def __init__(self, policy: str | float) -> None:
        self.at_s = 10.0
        self.done: list[float] = []
        self.trimmer = Trimmer(policy, lambda: self.at_s, lambda: self.done.append(self.at_s))

    def released_at(self, *times_s: float) -> list[bool]:
        said = []
        for self.at_s in times_s:
            said.append(self.trimmer.after_release())
        return said


def test_a_policy_trims_when_it_says() -> None:
    never, always, seldom = Trims("never"), Trims("after_release"), Trims(5.0)
    assert never.released_at(11.0, 99.0) == [False, False]
    assert always.released_at(11.0, 11.1) == [True, True]
    assert seldom.released_at(11.0, 15.0, 19.9, 20.0) == [False, True, False, True]
    assert (never.done, always.done, seldom.done) == ([], [11.0, 11.1], [15.0, 20.0])


def test_a_policy_that_no_model_file_can_hold_is_our_own_fault() -> None:
    with pytest.raises(AssertionError, match="sometimes"):
        Trims("sometimes")
