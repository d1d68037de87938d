"""The one place where bytes, seconds and dollars become text, and text becomes bytes and seconds.

Inside the house there are only bytes, seconds, tokens and US dollars.
"""

from __future__ import annotations

import math
import re

from memplan.errors import InputError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

# "MB" is a million bytes and "MiB" is 2^20: both are accepted and never mixed up.
_BYTES_PER_UNIT = {
    "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB,
}  # fmt: skip
_SECONDS_PER_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

BYTES_PATTERN = r"^\s*\d+(\.\d+)?\s*(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)\s*$"
SECONDS_PATTERN = r"^\s*\d+(\.\d+)?\s*(us|ms|s|min|h)\s*$"


def parse_bytes(text: str) -> int:
    """``"512MB"`` → 512,000,000; ``"512MiB"`` → 536,870,912. A bare number is refused.

    Raises InputError when the unit is missing or unknown, or the number is past all counting.
    """
    return round(_parse(text, _BYTES_PER_UNIT, BYTES_PATTERN, "a size such as 512MiB or 2GB"))


def parse_seconds(text: str) -> float:
    """``"250ms"`` → 0.25. A bare number is refused. Raises InputError."""
    return _parse(text, _SECONDS_PER_UNIT, SECONDS_PATTERN, "a duration such as 250ms or 2s")


def _parse(text: str, factors: dict[str, float] | dict[str, int], pattern: str, want: str) -> float:
    hint = f"units: {', '.join(factors)}"
    match = re.match(r"^\s*([0-9.]+)\s*([A-Za-z]+)\s*$", text)
    if match is None or re.match(pattern, text) is None:
        raise InputError(f"got {text!r}, expected {want}", hint=hint)
    value = float(match.group(1)) * factors[match.group(2)]
    if math.isinf(value):  # hundreds of digits: more than a float can hold
        raise InputError(
            f"got a number of {len(match.group(1))} digits, expected {want}", hint=hint
        )
    return value


def bytes_text(value_bytes: float | None) -> str:
    """Binary units with three significant places; unknown is said, not drawn as zero."""
    if value_bytes is None:
        return "unknown"
    magnitude = abs(value_bytes)
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if magnitude >= factor:
            value = value_bytes / factor
            return f"{value:,.2f} {unit}" if abs(value) < 10 else f"{value:,.1f} {unit}"
    return f"{value_bytes:.0f} B"


def seconds_text(value_s: float | None) -> str:
    """Microseconds where a tenth of a millisecond would say nothing, milliseconds below a second, then
    seconds below two minutes, minutes below three hours, then hours."""
    if value_s is None:
        return "unknown"
    if 0 < abs(value_s) < 50e-6:
        return f"{value_s * 1e6:.0f} µs"
    if abs(value_s) < 1:
        return f"{value_s * 1e3:.1f} ms" if abs(value_s) < 0.1 else f"{value_s * 1e3:.0f} ms"
    if abs(value_s) < 120:
        return f"{value_s:.2f} s"
    if abs(value_s) < 3 * 3600:
        return f"{value_s / 60:.1f} min"
    return f"{value_s / 3600:.1f} h"


def usd_text(value_usd: float | None) -> str:
    """Dollars with enough places that a small price is not printed as zero."""
    if value_usd is None:
        return "unknown"
    if abs(value_usd) >= 100:
        return f"${value_usd:,.0f}"
    return f"${value_usd:,.2f}" if abs(value_usd) >= 1 else f"${value_usd:.4g}"
