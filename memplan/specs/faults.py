"""What pydantic found wrong, in the words of the file, with a guess at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from pydantic_core import ErrorDetails

from memplan.specs.model_file import json_schema
from memplan.specs.places import Fault, Location, shown
from memplan.specs.values import PATTERN_WORDS

_MOST_KEYS = 16


def fault_of(detail: ErrorDetails) -> Fault:
    return _location_of(detail), text_of(detail, _keys_at)


def text_of(detail: ErrorDetails, keys_at: Callable[[Location], list[str]]) -> str:
    """``keys_at``: the keys that may stand at a place of that kind of file."""
    if detail["type"] == "extra_forbidden":
        return _unknown_key(_location_of(detail), keys_at)
    return _text_of(detail)


def _location_of(detail: ErrorDetails) -> Location:
    return tuple(part for part in detail["loc"] if part != "[key]")


def _text_of(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "missing, it is required"
        case "memplan":
            expected = str(context["what"])
        case "literal_error":
            expected = str(context["expected"]).replace("'", "")
        case "int_type" | "int_from_float" | "int_parsing":
            expected = "a whole number"
        case "float_type" | "float_parsing":
            expected = "a number"
        case "string_type":
            expected = "text" if detail["input"] is None else "text in quotes"
        case "string_pattern_mismatch":
            expected = PATTERN_WORDS[str(context["pattern"])]
        case "greater_than_equal":
            expected = f"at least {context['ge']:,}"
        case "greater_than":
            expected = f"more than {context['gt']:g}"
        case "less_than_equal":
            expected = f"at most {context['le']:,}"
        case "too_short":
            expected = "at least one item, or no such key"
        case "model_type" | "dict_type":
            expected = "a mapping of keys"
        case "tuple_type":
            expected = "a list"
        case _:
            expected = detail["msg"]
    return f"got {shown(detail['input'])}, expected {expected}"


def _unknown_key(location: Location, keys_at: Callable[[Location], list[str]]) -> str:
    known = keys_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    if near and len(known) > _MOST_KEYS:  # a list so long would hide the guess
        return f'unknown key; did you mean "{near[0]}"?'
    guess = f'; did you mean "{near[0]}"?' if near else ""
    return f"unknown key, expected one of {', '.join(known)}{guess}"


def _keys_at(location: Location) -> list[str]:
    """The keys that may stand here, read from the schema."""
    schema = json_schema()
    here = schema
    for part in location:
        here = here["items"] if isinstance(part, int) else here["properties"][part]
        for option in here.get("anyOf", ()):
            if option.get("type") != "null":
                here = option
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].removeprefix("#/$defs/")]
    return list(here["properties"])
