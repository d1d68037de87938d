"""A command's words about limits, taken over the model.yaml's or refused."""

from dataclasses import replace

import pytest
from builders import scripted

from memplan.errors import InputError
from memplan.jobs import limited
from memplan.units import GIB, MIB

BALLAST = replace(scripted(memory_limit=f"{64 * MIB}B"), engine="ballast")


def test_the_option_replaces_the_limit_of_the_file() -> None:
    assert BALLAST.settings.memory_limit_bytes == 64 * MIB
    assert limited(BALLAST, None) is BALLAST
    changed = limited(BALLAST, "2GiB")
    assert changed.settings.memory_limit_bytes == 2 * GIB
    assert changed.resolved()["settings"]["memory_limit_bytes"] == 2 * GIB  # type: ignore[index]
    assert changed.settings.max_requests == BALLAST.settings.max_requests


def test_a_limit_needs_a_unit() -> None:
    with pytest.raises(InputError, match="--memory-limit: got '2', expected a size"):
        limited(BALLAST, "2")


def test_an_engine_without_memory_takes_no_limit() -> None:
    with pytest.raises(InputError, match="scripted allocates no memory"):
        limited(scripted(), "2GiB")
