"""An engine without a group of its own is not read: the group it is in holds others' memory too."""

import os

from builders import engine

from memplan.probes.cgroup import CgroupProbe


def test_nothing_is_read_of_a_group_that_others_share() -> None:
    probe = CgroupProbe()
    assert probe.read() == {}
    for settings in ({}, {"cgroup": "none: no permission"}):
        probe.attach(engine(pids=(os.getpid(),), settings=settings))
        assert probe.read() == {}


def test_nothing_is_read_of_an_engine_that_is_gone() -> None:
    probe = CgroupProbe()
    probe.attach(engine(pids=(2**22 + 1,), settings={"cgroup": "v1, of the engine alone"}))
    assert probe.read() == {}


def test_a_quiet_moment_is_read_in_full() -> None:
    probe = CgroupProbe()
    probe.attach(engine(pids=(os.getpid(),), settings={"cgroup": "v1 or v2, for a test"}))
    readings = [probe.read(is_quiet=True) for _ in range(3)]
    assert len({"cgroup.anon" in reading for reading in readings}) == 1


def test_what_it_consists_of_is_read_now_and_then_only() -> None:
    probe = CgroupProbe()
    probe.attach(engine(pids=(os.getpid(),), settings={"cgroup": "v1 or v2, for a test"}))
    readings = [probe.read() for _ in range(20)]
    detailed = [reading for reading in readings if "cgroup.anon" in reading]
    assert len(detailed) <= 2
