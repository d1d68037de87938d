"""Pools and routes that do not go together, or that no request could use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memplan.specs.classes import BUILTIN_CLASSES, UNKNOWN_CLASS
from memplan.specs.model_file import ModelFile
from memplan.specs.model_source import model_faults
from memplan.specs.places import Fault, Location
from memplan.specs.pools import BY_CLASS, RouteSpec, RouteWhen


def pool_faults(file: ModelFile) -> Iterator[Fault]:
    if file.pools == BY_CLASS:
        if file.routes:
            yield (
                ("routes",),
                "pools: by_class routes every class to its own pool; leave routes out",
            )
        return
    names = [pool.name for pool in file.pools]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("pools", index, "name"), f'there is a pool "{name}" above already'
    if file.pools and not file.routes:
        yield ("routes",), "missing: they say which pool a request goes to"
    if file.pools and (file.variants or file.matrix or file.stack):
        yield (
            ("pools",),
            "a gateway's engines are its pools; variants, matrix and stack belong to one engine",
        )
    if not file.pools and file.gateway is not None:
        yield ("gateway",), "there are no pools, so there is no gateway"
    pressure = file.gateway.pressure if file.gateway is not None else None
    used = {name for route in file.routes for name in (*route.to, *route.under_pressure)}
    for index, name in enumerate(names):
        if file.routes and name not in used:
            yield ("pools", index, "name"), f'no route leads to pool "{name}"'
    for index, route in enumerate(file.routes):
        yield from _route_faults(file, index, route, names, has_pressure=pressure is not None)
    if pressure is not None and not any(route.under_pressure for route in file.routes):
        yield (
            ("gateway", "pressure"),
            "no route has under_pressure, so nothing would change when memory is short",
        )


def pool_model_faults(file: ModelFile, folder: Path) -> Iterator[Fault]:
    """Models of pools that are not there; paths start at ``folder``."""
    for index, pool in enumerate(file.pools if file.pools != BY_CLASS else ()):
        for place, text in model_faults(pool.model, folder):
            yield ("pools", index, *place), text


def _route_faults(
    file: ModelFile, index: int, route: RouteSpec, pools: list[str], *, has_pressure: bool
) -> Iterator[Fault]:
    here: Location = ("routes", index)
    for key in ("to", "under_pressure"):
        for name in getattr(route, key):
            if name not in pools:
                known = ", ".join(pools) or "none"
                yield (*here, key), f'there is no pool "{name}", expected one of {known}'
    if route.name in (other.name for other in file.routes[:index]):
        yield (*here, "name"), f'there is a route "{route.name}" above already'
    classes = [spec.name for spec in file.classes or BUILTIN_CLASSES]
    for name in route.when.classes:
        if name not in (*classes, UNKNOWN_CLASS):
            yield (
                (*here, "when", "class"),
                f'there is no class "{name}", expected one of {", ".join(classes)}',
            )
    taker = next((o for o in file.routes[:index] if _covers(o.when, route.when)), None)
    if taker is not None:
        yield (
            (*here, "when"),
            f'route "{route.name}" can never be taken: "{taker.name}" above it takes every request '
            "that it matches",
        )
    if "defer_s" in route.model_fields_set and "deferred" not in route.when_full:
        yield (*here, "defer"), 'nothing is deferred: add "deferred" to when_full'
    if route.cascade_below is not None and len(route.to) < 2:
        yield (
            (*here, "cascade_below"),
            "an answer that is not sure enough goes on to the next pool, and there is only one",
        )
    if route.under_pressure and not has_pressure:
        yield (
            (*here, "under_pressure"),
            "nothing says when memory is short: add gateway: {pressure: {available_below: 2GiB}}",
        )


def _covers(ours: RouteWhen, theirs: RouteWhen) -> bool:
    of_classes = not ours.classes or (
        bool(theirs.classes) and set(theirs.classes) <= set(ours.classes)
    )
    return of_classes and ours.covers(theirs)
