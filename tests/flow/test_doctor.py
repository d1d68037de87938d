"""What doctor says of this machine must be what the machine does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pynvml
import pytest
from hidden_processes import run_where_hidden, why_nothing_can_be_hidden

from memplan.cgroups import Place, place_of
from memplan.cli import run
from memplan.doctor import Check, examine, print_checks
from memplan.doctor.machine import gpu
from memplan.doctor.outside import control_group, memory_pressure
from memplan.engines.native_cuts import OFF as SEGMENTS_OFF
from memplan.engines.torch.live_tensors import OFF


def by_name() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def test_the_planted_allocation_is_seen_and_forgotten() -> None:
    check = by_name()["exact peaks"]
    assert check.state == "yes"
    assert "of 32.0 MiB" in check.found


def test_a_source_that_is_missing_says_what_it_no_longer_proves_and_what_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(OFF, "1")
    check = by_name()["tensor hook"]
    assert check.state == "no"
    assert "lower bound" in check.means or "nothing to count" in check.means
    assert check.remedy


def test_segments_that_cannot_be_closed_in_c_say_what_that_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert by_name()["closing in C"].state == "yes"
    monkeypatch.setenv(SEGMENTS_OFF, "1")
    check = by_name()["closing in C"]
    assert check.state == "no"
    assert f"in Python: {SEGMENTS_OFF} is set" in check.found
    assert check.remedy


def test_the_fast_sampler_is_tried_and_its_pace_told() -> None:
    check = by_name()["fast sampler"]
    assert check.state in ("yes", "note")
    assert "readings at" in check.found


def test_every_check_that_fails_has_a_remedy() -> None:
    assert all(check.remedy for check in examine() if check.state == "no")


def test_terminal_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.doctor/1"
    assert all(check["name"] in told for check in document["checks"])


def test_every_check_has_a_name_of_its_own_and_says_what_it_means() -> None:
    checks = examine()
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.found and check.means for check in checks)


def test_no_line_is_wider_than_a_terminal_and_no_word_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    checks = examine()
    print_checks(checks)
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    assert all(check.means in words for check in checks)


def test_a_group_that_can_be_made_sees_the_planted_bytes_and_is_gone_afterwards() -> None:
    above = place_of()
    check = control_group()
    if above is None or check.state == "no":
        pytest.skip(f"no control group here: {check.found}")
    own = f"memplan-{os.getpid()}-*"  # other tests beside this one have groups of their own
    before = set(above.folder.glob(own))
    check = control_group()
    assert "for 16.0 MiB" in check.found
    assert set(above.folder.glob(own)) == before


def test_without_a_group_the_second_witness_and_the_limit_are_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io\n")
    check = control_group(Place(version="v2", folder=tmp_path))
    assert check.state == "no"
    assert "no memory controller" in check.found
    assert "second witness" in check.means and "--memory-limit" in check.means
    assert check.remedy


def test_pressure_that_cannot_be_read_says_what_looks_like_what(tmp_path: Path) -> None:
    check = memory_pressure(tmp_path / "memory")
    assert (check.state, "slow engine" in check.means) == ("no", True)
    (tmp_path / "memory").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
    assert memory_pressure(tmp_path / "memory").state == "no"
    with (tmp_path / "memory").open("a") as file:
        file.write("full avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n")
    check = memory_pressure(tmp_path / "memory")
    assert (check.state, "1.50 s" in check.found) == ("yes", True)


def test_a_gpu_whose_memory_cannot_be_asked_for_is_not_one_that_is_absent() -> None:
    def lost() -> tuple[tuple[str, int, int], ...]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def no_driver() -> tuple[tuple[str, int, int], ...]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    assert gpu(lost).state == "no" and gpu(lost).remedy
    assert gpu(no_driver).state == "note"
    assert gpu(lambda: (("H100", 1 << 30, 80 << 30),)).found == "H100, 1.00 GiB of 80.0 GiB used"


ALONE = """
from memplan.doctor.outside import other_processes
from hidden_processes import become_nobody
become_nobody()
print(other_processes().state)
"""


@pytest.mark.parametrize(("hidepid", "state"), [(0, "yes"), (2, "note")])
def test_where_the_first_process_is_our_own_there_is_nobody_to_try_it_on(
    hidepid: int, state: str
) -> None:
    if reason := why_nothing_can_be_hidden():
        pytest.skip(reason)
    assert run_where_hidden(hidepid, ALONE).strip() == state


AS_NOBODY = """
import dataclasses, json, os
from memplan.doctor.outside import control_group, other_processes
from hidden_processes import become_nobody

if os.fork():  # the first process stays root's: there must be somebody to hide
    os.wait()
else:
    become_nobody()
    print(json.dumps([dataclasses.asdict(check()) for check in (other_processes, control_group)]))
"""


@pytest.mark.parametrize("hidepid", [0, 1, 2])
def test_another_user_is_told_what_proc_hides_from_it(hidepid: int) -> None:
    if reason := why_nothing_can_be_hidden():
        pytest.skip(reason)
    others, group = json.loads(run_where_hidden(hidepid, AS_NOBODY))
    assert others["state"] == ("no" if hidepid else "yes")
    assert ("process_hidden" in others["means"]) == bool(hidepid)
    # What the kernel makes of hidepid=0, 1 and 2 in mountinfo (Linux 5.8; numbers before).
    words = ("no hidepid", "hidepid=noaccess", "hidepid=invisible")
    assert any(word in others["found"] for word in (words[hidepid], f"hidepid={hidepid}"))
    assert group["state"] == "no" and group["remedy"]
