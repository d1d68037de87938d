"""A command's words about limits and repeats: taken over, refused, or made into waves."""

from dataclasses import replace

import pytest
from builders import request, scripted

from memplan.errors import InputError
from memplan.jobs import limited, repeated
from memplan.units import GIB, MIB
from memplan.workload.prompts import prompt_token_ids

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


def test_one_replay_is_the_trace_as_it_is() -> None:
    requests = (request("a"), request("b", arrival_s=1.0))
    (wave,) = repeated(requests, 1)
    assert (wave.name, wave.fresh, wave.requests) == ("trace", False, requests)


def test_each_replay_is_the_whole_trace_on_a_fresh_engine() -> None:
    requests = (request("a"), request("b", arrival_s=1.0))
    waves = repeated(requests, 3)
    assert [(wave.name, wave.fresh) for wave in waves] == [
        ("replay 1", True),
        ("replay 2", True),
        ("replay 3", True),
    ]
    assert [one.request_id for wave in waves for one in wave.requests] == [
        "a", "b", "a#2", "b#2", "a#3", "b#3",
    ]  # fmt: skip
    for wave in waves:
        assert {one.wave for one in wave.requests} == {wave.name}
        assert [replace(one, request_id="", wave="") for one in wave.requests] == [
            replace(one, request_id="", wave="") for one in requests
        ]


def test_ids_stay_unique_where_a_trace_has_such_names_itself() -> None:
    requests = (request("a"), request("a#2"), request("a#2#2"))
    ids = [one.request_id for wave in repeated(requests, 3) for one in wave.requests]
    assert len(set(ids)) == 9


def test_a_shared_prefix_is_the_same_in_every_replay() -> None:
    shared = request("a", input_tokens=40, prefix_ids=(7, 9), prefix_block_tokens=16)
    first, second = (
        prompt_token_ids(wave.requests[0], vocab_tokens=49_152) for wave in repeated((shared,), 2)
    )
    assert len(first) == len(second) == 40
    assert first[:32] == second[:32]
