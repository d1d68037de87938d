"""What stands behind a key of model.yaml: sizes, durations, rules and names, as people write them.

Each type reads one value into the house's units, refuses it in words, and knows its JSON Schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from memplan.errors import InputError
from memplan.units import BYTES_PATTERN, SECONDS_PATTERN, parse_bytes, parse_seconds

MOST_TOKENS = 2**31 - 1
MOST_LAYERS = 4096
MOST_NAME_LETTERS = 100
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_VARIANT_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ENV_VALUE = r"^[^\x00]*$"
_MODULE_PATTERN = r"^[A-Za-z0-9_.*?\[\]!-]+$"
PATTERN_WORDS = {
    _NAME: "a name of letters, digits, '.', '_' and '-'",
    _VARIANT_NAME: "a name of a-z, 0-9, '.', '_' and '-' that starts with a letter or digit "
    "(it names a folder)",
    _ENV_NAME: "the name of an environment variable",
    _ENV_VALUE: "text without NUL bytes",
    _MODULE_PATTERN: "a pattern over the names of a model's modules, such as *.mlp.*",
}
_RANGE_PATTERN = (
    r"^\s*(?:(<=|<|>=|>)\s*([0-9]{1,10})|([0-9]{1,10})\s*\.\.\s*([0-9]{1,10})|([0-9]{1,10}))\s*$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRange:
    """Both ends included. A request has at least one token."""

    low: int = 1
    high: int | None = None

    def contains(self, tokens: int) -> bool:
        return self.low <= tokens and (self.high is None or tokens <= self.high)

    def covers(self, other: TokenRange) -> bool:
        ends_within = self.high is None or (other.high is not None and other.high <= self.high)
        return self.low <= other.low and ends_within

    @property
    def typical(self) -> int:
        """The middle of a closed range; half as much again as the start of an open one."""
        if self.high is None:
            return self.low + self.low // 2
        return (self.low + self.high) // 2

    def __str__(self) -> str:
        if self.high is None:
            return f">={self.low}"
        return f"<={self.high}" if self.low == 1 else f"{self.low}..{self.high}"


def _bytes_of(value: object) -> int:
    if isinstance(value, str):
        try:
            return parse_bytes(value)
        except InputError:
            pass  # told below, in the words of the file
    raise _expected("a size with its unit, such as 64MiB or 64MB, which differ")


def _seconds_of(value: object) -> float:
    if isinstance(value, str):
        try:
            seconds = parse_seconds(value)
        except InputError:
            seconds = 0.0  # told below, in the words of the file
        if seconds > 0:
            return seconds
    raise _expected("a duration above zero with its unit, such as 250ms or 2s")


def _trim_of(value: object) -> str | float:
    if value in ("never", "after_release"):
        return str(value)
    try:
        return _seconds_of(value)
    except PydanticCustomError:
        raise _expected("never, after_release, or a duration above zero such as 5s") from None


def _layers_of(value: object) -> str | int:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if value == "all" or (is_count and 0 <= int(str(value)) <= MOST_LAYERS):
        return "all" if value == "all" else int(str(value))
    raise _expected(f"all, or a whole number from 0 to {MOST_LAYERS}")


def _range_of(value: object) -> TokenRange:
    if isinstance(value, TokenRange):
        return value
    rule = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = re.match(_RANGE_PATTERN, rule) if isinstance(rule, str) else None
    if match is None:
        raise _expected('a rule such as "<512", "<=511", ">=4096", "512..4095" or 512')
    sign, bound, low, high, exact = match.groups()
    match sign:
        case "<":
            made = TokenRange(high=int(bound) - 1)
        case "<=":
            made = TokenRange(high=int(bound))
        case ">":
            made = TokenRange(low=int(bound) + 1)
        case ">=":
            made = TokenRange(low=max(1, int(bound)))
        case _:
            made = TokenRange(low=max(1, int(low or exact)), high=int(high or exact))
    if made.high is not None and made.high < made.low:
        raise _expected("a rule that some request can meet: this range is empty")
    return made


def number_of(value: object) -> object:
    if isinstance(value, bool):  # YAML reads "yes" as true, and Python takes true for 1
        raise _expected("1")
    return value


def off_of(value: object) -> object:
    """YAML 1.1 reads a bare ``off`` as false."""
    return "off" if value is False else value


def tuple_of(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _words_of(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple_of(value)


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("memplan", "{what}", {"what": what})


Bytes = Annotated[
    int,
    PlainValidator(_bytes_of),
    WithJsonSchema({"type": "string", "pattern": BYTES_PATTERN, "examples": ["64MiB", "64MB"]}),
]
Seconds = Annotated[
    float,
    PlainValidator(_seconds_of),
    WithJsonSchema({"type": "string", "pattern": SECONDS_PATTERN, "examples": ["250ms", "2s"]}),
]
Trim = Annotated[
    Literal["never", "after_release"] | float,
    PlainValidator(_trim_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["never", "after_release"]},
                {"type": "string", "pattern": SECONDS_PATTERN, "examples": ["5s"]},
            ]
        }
    ),
]
"""When an engine's heap is trimmed; a number is seconds."""
Range = Annotated[
    TokenRange,
    PlainValidator(_range_of),
    PlainSerializer(str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": _RANGE_PATTERN, "examples": ["<512", "512..4095"]},
            ]
        }
    ),
]
Operations = Annotated[
    tuple[str, ...],
    BeforeValidator(_words_of),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
GpuLayers = Annotated[
    Literal["all"] | int,
    PlainValidator(_layers_of),
    WithJsonSchema(
        {"anyOf": [{"const": "all"}, {"type": "integer", "minimum": 0, "maximum": MOST_LAYERS}]}
    ),
]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=_NAME, max_length=MOST_NAME_LETTERS)]
VariantName = Annotated[str, Field(pattern=_VARIANT_NAME, max_length=MOST_NAME_LETTERS)]
EnvName = Annotated[str, Field(pattern=_ENV_NAME)]
EnvValue = Annotated[str, Field(pattern=_ENV_VALUE)]
ModulePattern = Annotated[str, Field(pattern=_MODULE_PATTERN)]


class Part(BaseModel):
    # No docstring: its parts would carry it into the JSON Schema as their description.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
