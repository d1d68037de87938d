"""The matrix of a model.yaml: settings with several values each, every combination a variant."""

from __future__ import annotations

import json
import math
import re
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import BeforeValidator, Field, create_model

from memplan.specs.settings import Settings, Variant
from memplan.specs.values import Part, tuple_of
from memplan.units import GIB, KIB, MIB, TIB

MOST_COMBINATIONS = 256
"""Already half a day of measuring at two minutes each; more is a slip of the pen."""
_UNITS = (
    *(("tib", TIB), ("tb", 10**12), ("gib", GIB), ("gb", 10**9)),
    *(("mib", MIB), ("mb", 10**6), ("kib", KIB), ("kb", 10**3)),
)

if TYPE_CHECKING:

    class Matrix(Part):
        """Every setting, each with the list of its values; made below from Settings itself."""

else:

    def _list_of(name: str) -> tuple[Any, Any]:
        info = Settings.model_fields[name]
        hint = get_type_hints(Settings, include_extras=True)[name]
        one = Annotated[hint, Field(json_schema_extra=info.json_schema_extra)]
        several = Annotated[tuple[one, ...], BeforeValidator(tuple_of), Field(min_length=1)]
        return several, Field(default=(), alias=info.alias, json_schema_extra={"minItems": 1})

    Matrix = create_model(
        "Matrix", __base__=Part, **{name: _list_of(name) for name in Settings.model_fields}
    )


def combination_count(matrix: Matrix) -> int:
    return math.prod(len(values) for values in values_of(matrix).values())


def matrix_variants(settings: Settings, matrix: Matrix | None) -> tuple[Variant, ...]:
    """A variant for every combination, the last setting changing fastest; none for one that comes to
    ``settings`` as they are, or to the same as a combination before it. None at all where there are
    more than MOST_COMBINATIONS, which is a fault."""
    values = values_of(matrix) if matrix is not None else {}
    if matrix is None or not values or combination_count(matrix) > MOST_COMBINATIONS:
        return ()
    found: list[Variant] = []
    known = {_applied(settings)}
    for places in product(*(range(len(one)) for one in values.values())):
        chosen = {field: one[at] for (field, one), at in zip(values.items(), places, strict=True)}
        applied = _applied(settings.model_copy(update=chosen))
        if applied not in known:
            known.add(applied)
            name = "-".join(
                f"{Settings.model_fields[field].alias or field}-{value_name(field, value, at + 1)}"
                for (field, value), at in zip(chosen.items(), places, strict=True)
            )
            found.append(Variant.model_construct(name=name).model_copy(update=chosen))
    return tuple(found)


def _applied(settings: Settings) -> str:
    return json.dumps(settings.applied)


def values_of(matrix: Matrix) -> dict[str, tuple[object, ...]]:
    """The settings that the file names, in the order of Settings, so that names do not depend on
    the order in which a file was written."""
    return {
        name: getattr(matrix, name)
        for name in Settings.model_fields
        if name in matrix.model_fields_set
    }


def value_name(field: str, value: object, place: int) -> str:
    """A value as part of a folder's name: ``int8``, ``64mib``, ``5s``; lists and mappings by their place
    in the matrix, counted from 1."""
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case int() if field.endswith("_bytes"):
            return _size_name(value)
        case float() if field.endswith("_s") or field == "trim":
            return f"{value:.12g}s".replace("+", "")
        case int() | float():
            return re.sub(r"[^a-z0-9.]+", "-", f"{value:.12g}")
        case str():
            return re.sub(r"[^a-z0-9._]+", "-", value.lower())
        case _:
            return str(place)


def _size_name(size_bytes: int) -> str:
    """Exact: in the largest unit that divides it."""
    for unit, factor in _UNITS:
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}b"
