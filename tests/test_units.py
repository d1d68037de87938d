"""Text to bytes and seconds and back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.units import (
    bytes_text,
    parse_bytes,
    parse_seconds,
    seconds_text,
    usd_text,
)

SIZES = st.integers(min_value=0, max_value=2**53)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0B", 0),
        ("64MB", 64_000_000),
        ("64MiB", 67_108_864),
        (" 1.5 GiB ", 1_610_612_736),
        ("2kB", 2000),
        ("2KB", 2000),
        ("2KiB", 2048),
        ("1TB", 10**12),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units_apart(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250ms", 0.25), ("2s", 2.0), ("1.5 min", 90.0), ("1h", 3600.0), ("10us", 1e-5)],
)
def test_durations_are_read(text: str, expected: float) -> None:
    assert parse_seconds(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "64", "MiB", "64 Mb", "64mib", "-1MiB", "1.2.3MiB", "1e3MB", "64 MiB each", "٣MiB"]
)
def test_a_size_without_a_known_unit_is_refused_and_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.message
    assert "MiB" in caught.value.hint


@pytest.mark.parametrize("digits", [308, 400])
def test_a_size_or_duration_past_all_counting_is_refused(digits: int) -> None:
    for parse, unit in ((parse_bytes, "TiB"), (parse_seconds, "h")):
        with pytest.raises(InputError) as caught:
            parse("9" * digits + unit)
        assert f"{digits} digits" in caught.value.message
        assert unit in caught.value.hint


@pytest.mark.parametrize("text", ["", "2", "2 sec", "2m", "-2s", "1..5s"])
def test_a_duration_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_seconds(text)
    assert "ms" in caught.value.hint


@given(SIZES)
def test_bytes_round_trip_through_every_exact_unit(size: int) -> None:
    assert parse_bytes(f"{size}B") == size
    assert parse_bytes(f"{size // 2**20}MiB") == size // 2**20 * 2**20
    assert parse_bytes(f"{size // 10**6}MB") == size // 10**6 * 10**6


@given(SIZES, SIZES)
def test_parsing_keeps_the_order(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert parse_bytes(f"{small}KiB") <= parse_bytes(f"{large}KiB")
    assert parse_seconds(f"{small}ms") <= parse_seconds(f"{large}ms")


@given(SIZES)
def test_shown_sizes_read_back_within_what_they_show(size: int) -> None:
    shown = bytes_text(size).replace(",", "")
    assert math.isclose(parse_bytes(shown), size, rel_tol=0.006, abs_tol=0.5)


@given(st.floats(min_value=1e-4, max_value=1e6))
def test_shown_durations_read_back_within_what_they_show(duration_s: float) -> None:
    shown = seconds_text(duration_s)
    assert math.isclose(parse_seconds(shown), duration_s, rel_tol=0.05, abs_tol=1e-4)


def test_unknown_is_said_and_zero_is_shown() -> None:
    assert (seconds_text(32e-6), seconds_text(50e-6)) == ("32 µs", "0.1 ms")
    assert {bytes_text(None), seconds_text(None), usd_text(None)} == {"unknown"}
    assert (bytes_text(0), seconds_text(0), usd_text(0)) == ("0 B", "0.0 ms", "$0")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.000012, "$1.2e-05"), (0.5, "$0.5"), (12.345, "$12.35"), (12345.6, "$12,346")],
)
def test_small_prices_are_not_shown_as_zero(value: float, expected: str) -> None:
    assert usd_text(value) == expected
