"""A YAML file in, its plain values out, each with the line it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memplan.errors import InputError
from memplan.specs.places import SECOND, Fault, Location, shown
from memplan.units import MIB

_LARGEST_FILE_BYTES = 1 * MIB
_MOST_NODES = 20_000
_DEEPEST_NODE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlSource:
    data: dict[str, Any]
    lines: dict[Location, int]
    """Where each key or list item starts, counted from 1."""
    faults: list[Fault]

    def line_of(self, location: Location) -> int:
        """Of the nearest thing that is in the file: a missing key has its parent's line."""
        while location not in self.lines:
            location = location[:-1]
        return self.lines[location]


def read_yaml(path: Path) -> YamlSource:
    source = YamlSource(data={}, lines={(): 1}, faults=[])
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
        got = "an empty file" if value is None else shown(value)
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


def _plain(node: yaml.Node, location: Location, source: YamlSource) -> Any:
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


def _plain_mapping(
    node: yaml.MappingNode, location: Location, source: YamlSource
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a key must be a word", problem_mark=key_node.start_mark
            )
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in mapping:
            second: Location = (*location, key, SECOND)
            source.lines[second] = line
            source.faults.append(
                (second, f"key is also on line {source.lines[*location, key]}, expected once")
            )
            continue
        source.lines[*location, key] = line
        mapping[key] = _plain(value_node, (*location, key), source)
    return mapping
