"""Where something stands in model.yaml, and how a sentence names it and what was found there."""

from __future__ import annotations

import json
import re

Location = tuple[str | int, ...]
Fault = tuple[Location, str]
SECOND = -1
"""Ends the location of a key's second appearance, which has a line of its own."""


def json_path(location: Location) -> str:
    path = "$"
    for part in location:
        if isinstance(part, int):
            path += "" if part == SECOND else f"[{part}]"
        else:
            path += f".{part}" if re.fullmatch(r"[\w-]+", part) else f"[{json.dumps(part)}]"
    return path


def shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case str():
            text = json.dumps(value, ensure_ascii=not value.isprintable())
        case bool():
            text = str(value).lower()
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
