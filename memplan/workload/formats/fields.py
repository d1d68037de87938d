"""One field of one row, checked: a number of tokens, a text, a time; or a BadFieldError."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_MOST_TOKENS = 2**31 - 1
UTC_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
)


class BadFieldError(Exception):
    """One field of one row cannot be used; caught where the row's line is known."""


def tokens_of(record: Mapping[str, Any], key: str, *, least: int) -> int:
    if key not in record:
        raise BadFieldError(f"{key}: missing, expected a number of tokens")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadFieldError(f"{key}: got {got(value)}, expected a whole number of tokens")
    if not least <= value <= _MOST_TOKENS:
        raise BadFieldError(f"{key}: got {got(value)}, expected {least} to {_MOST_TOKENS:,}")
    return value


def text_of(record: Mapping[str, Any], key: str) -> str | None:
    """None where it is absent or empty; a whole number is taken as its digits."""
    value = record.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.isprintable():
        raise BadFieldError(f"{key}: got {got(value)}, expected printable text")
    return value


def ns_of(match: re.Match[str], name: str) -> int:
    """Nanoseconds since 1970 of a UTC_TIME; ``name`` is the field that a fault names."""
    day, clock, fraction = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}+00:00")
    except ValueError as error:
        raise BadFieldError(f"{name}: got {got(match.group())}: {error}") from error
    return int(moment.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0"))


def json_value(text: str) -> Any:
    """None where the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_object(text: str) -> dict[str, Any] | None:
    value = json_value(text)
    return value if isinstance(value, dict) else None


def got(value: Any) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}…"
