"""What doctor says of this machine must be what the machine does."""

from __future__ import annotations

import json

import pytest

from memplan.cli import run
from memplan.doctor import Check, examine
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


def test_every_check_that_fails_has_a_remedy() -> None:
    assert all(check.remedy for check in examine() if check.state == "no")


def test_terminal_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.doctor/1"
    assert all(check["name"] in told for check in document["checks"])
