"""The profile's ladder: which waves, how long, and within every bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.specs import BUILTIN_CLASSES, ClassSpec, Typical
from memplan.workload.ladder import Wave, ladder_requests


def test_the_ladder_of_a_small_model() -> None:
    waves = ladder_requests(
        BUILTIN_CLASSES,
        context_tokens=8192,
        max_requests=12,
        max_kv_tokens=32768,
        solo_repeats=2,
    )
    assert [shape(wave) for wave in waves] == [
        ("prompt-128", 1, 128, 4),
        ("prompt-256", 1, 256, 4),
        ("prompt-512", 1, 512, 4),
        ("prompt-1024", 1, 1024, 4),
        ("prompt-2048", 1, 2048, 4),
        ("prompt-4096", 1, 4096, 4),
        ("one-long-prompt", 1, 8176, 8),
        ("batch-1", 1, 256, 16),
        ("batch-2", 2, 256, 16),
        ("batch-4", 4, 256, 16),
        ("batch-8", 8, 256, 16),
        ("batch-12", 12, 256, 16),
        ("solo:short:0", 1, 256, 64),
        ("solo:medium:0", 1, 2303, 64),
        ("solo:long:0", 1, 6144, 64),
        ("solo:short:1", 1, 256, 64),
        ("solo:medium:1", 1, 2303, 64),
        ("solo:long:1", 1, 6144, 64),
    ]
    assert [wave.name for wave in waves if wave.fresh] == [wave.name for wave in waves[-6:]]
    assert {r.class_name for wave in waves[:-6] for r in wave.requests} == {"ladder"}
    assert [wave.requests[0].class_name for wave in waves[-3:]] == ["short", "medium", "long"]
    ids = [r.request_id for wave in waves for r in wave.requests]
    assert len(set(ids)) == len(ids)


def shape(wave: Wave) -> tuple[str, int, int, int]:
    (lengths,) = {(r.input_tokens, r.output_tokens) for r in wave.requests}
    return (wave.name, len(wave.requests), *lengths)


def test_a_shorter_ladder_has_no_longer_prompt() -> None:
    waves = ladder_requests(
        BUILTIN_CLASSES,
        context_tokens=8192,
        max_requests=2,
        max_kv_tokens=32768,
        solo_repeats=1,
        longest_tokens=200,
    )
    assert [shape(wave) for wave in waves] == [
        ("prompt-128", 1, 128, 4),
        ("one-long-prompt", 1, 200, 8),
        ("batch-1", 1, 200, 16),
        ("batch-2", 2, 200, 16),
        ("solo:short:0", 1, 200, 64),
        ("solo:medium:0", 1, 200, 64),
        ("solo:long:0", 1, 200, 64),
    ]


@given(st.integers(64, 20_000), st.integers(1, 100), st.integers(64, 60_000), st.integers(0, 3),
       st.none() | st.integers(16, 30_000))  # fmt: skip
def test_every_wave_fits_its_bounds(
    context_tokens: int,
    max_requests: int,
    max_kv_tokens: int,
    solo_repeats: int,
    longest_tokens: int | None,
) -> None:
    classes = (
        *BUILTIN_CLASSES,
        ClassSpec(name="huge", typical=Typical(input_tokens=10**6, output_tokens=10**6)),
    )
    waves = ladder_requests(
        classes,
        context_tokens=context_tokens,
        max_requests=max_requests,
        max_kv_tokens=max_kv_tokens,
        solo_repeats=solo_repeats,
        longest_tokens=longest_tokens,
    )
    for wave in waves:
        assert 1 <= len(wave.requests) <= max_requests
        assert sum(r.input_tokens + r.output_tokens for r in wave.requests) <= max_kv_tokens
        for request in wave.requests:
            assert 1 <= request.input_tokens <= (longest_tokens or request.input_tokens)
            assert request.output_tokens >= 1
            assert request.input_tokens + request.output_tokens <= context_tokens
            assert (request.wave, request.arrival_s) == (wave.name, 0.0)
    assert len([wave for wave in waves if wave.fresh]) == solo_repeats * len(classes)
    prompts = [wave for wave in waves if "prompt" in wave.name]
    lengths = [wave.requests[0].input_tokens for wave in prompts]
    assert lengths == sorted(set(lengths)), "a step after a larger one meets its leftovers"
    assert prompts[-1].name == "one-long-prompt"
    assert waves[: len(prompts)] == tuple(prompts)


def test_too_little_room_is_said() -> None:
    with pytest.raises(InputError, match="got 63"):
        ladder_requests((), context_tokens=8192, max_requests=1, max_kv_tokens=63, solo_repeats=1)
