"""model.yaml in, one frozen Deployment out; or every fault of the file at once, with its line."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memplan.errors import InputError
from memplan.specs.adapter_source import adapter_faults, with_absolute_adapters
from memplan.specs.classes import BUILTIN_CLASSES
from memplan.specs.combinations import impossible
from memplan.specs.deployment import Deployment, pools_by_class
from memplan.specs.faults import fault_of
from memplan.specs.matrix import matrix_variants
from memplan.specs.model_file import ModelFile
from memplan.specs.model_source import model_faults, with_absolute_paths
from memplan.specs.places import Fault, Location, json_path
from memplan.specs.pool_faults import pool_model_faults
from memplan.specs.pools import BY_CLASS, GatewaySpec
from memplan.specs.server import ServerSpec
from memplan.specs.settings import SERVER_ENGINES, Script
from memplan.specs.yaml_source import YamlSource, read_yaml

_HINT = "correct these lines; docs/model-yaml.md lists every key with its unit and default"


def load_deployment(path: Path) -> Deployment:
    """Read model.yaml; paths in it start at its folder. Raises InputError with every fault."""
    source = read_yaml(path)
    file, faults = _validated(source.data)
    if file is not None:
        faults += model_faults(file.model, path.parent)
        faults += adapter_faults(file, path.parent)
        faults += pool_model_faults(file, path.parent)
    faults += source.faults
    if faults or file is None:
        raise InputError.of_faults(str(path), _fault_lines(path, source, faults), hint=_HINT)
    classes = file.classes or BUILTIN_CLASSES
    pools, routes = (
        pools_by_class(classes)
        if file.pools == BY_CLASS
        else (
            tuple(
                pool.model_copy(
                    update={
                        "model": with_absolute_paths(pool.model, path.parent),
                        "settings": with_absolute_adapters(pool.settings, path.parent),
                    }
                )
                for pool in file.pools
            ),
            file.routes,
        )
    )
    return Deployment(
        name=file.name,
        engine=file.engine,
        model=with_absolute_paths(file.model, path.parent),
        settings=with_absolute_adapters(file.settings, path.parent),
        classes=classes,
        variants=tuple(
            with_absolute_adapters(one, path.parent)
            for one in (*file.variants, *matrix_variants(file.settings, file.matrix))
        ),
        stack=tuple(with_absolute_adapters(one, path.parent) for one in file.stack),
        server=(file.server or ServerSpec()) if file.engine in SERVER_ENGINES else None,
        script=(file.script or Script()) if file.engine in ("scripted", "ballast") else None,
        self_test=file.self_test,
        pools=pools,
        routes=routes,
        gateway=file.gateway or GatewaySpec(),
    )


def _fault_lines(path: Path, source: YamlSource, faults: Iterable[Fault]) -> list[str]:
    placed = sorted((source.line_of(place), json_path(place), text) for place, text in faults)
    return [f"{path}:{line} {where}: {text}" for line, where, text in placed]


def _validated(data: dict[str, Any]) -> tuple[ModelFile | None, list[Fault]]:
    """The file, with its faults. A faulty file comes back without its faulty parts, so that what
    remains can be checked for impossible combinations in the same pass."""
    try:
        file = ModelFile.model_validate(data)
        return file, list(impossible(file, settings_are_whole=True))
    except ValidationError as error:
        details = error.errors()
    faults = [fault_of(detail) for detail in details]
    dropped = {_dropped_with(location) for location, _ in faults}
    try:
        file = ModelFile.model_validate(_without(data, dropped))
    except ValidationError:
        return None, faults
    whole = not any(location[:1] == ("settings",) for location in dropped)
    for location, text in impossible(file, settings_are_whole=whole):
        faults.append((_location_in_file(location, dropped), text))
    return file, faults


def _dropped_with(location: Location) -> Location:
    """Half a rule or half a variant would mean something else, so it goes as a whole."""
    match location:
        case ("classes", int(index), ("name" | "when"), *_):
            return ("classes", index)
        case ("variants", int(index), *_):
            return ("variants", index)
        case (("model" | "self_test" | "stack") as part, *_):
            return (part,)  # of a stack too: what stands on a faulty step is another stack
        case ("server", "memory", *_):
            return ("server", "memory")
        case ("matrix", str(key), *_):
            return ("matrix", key)
        case _:
            return location


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
