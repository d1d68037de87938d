"""The node catalog: the text of a CSV file in, frozen NodeSpecs out.

A blank cell is unknown and stays unknown: no price and no memory size is ever guessed from another.
Opening the file is the caller's business.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

from memplan.errors import InputError
from memplan.units import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One kind of machine that can be rented; prices in US dollars per hour."""

    provider: str
    instance: str
    kind: str
    """``cpu``, ``gpu`` or ``bare-metal gpu``, as the catalog says."""
    region: str | None
    vcpu: int
    memory_nominal_bytes: int
    """The figure on the price list."""
    memory_measured_bytes: int | None
    """What the guest's kernel, or the cluster's allocatable, was seen to offer."""
    memory_note: str | None
    gpu: str | None
    gpu_count: int | None
    gpu_memory_bytes_each: int | None
    usd_per_h_on_demand: float | None
    usd_per_h_1y: float | None
    usd_per_h_3y: float | None
    usd_per_h_spot: float | None
    price_source: str | None
    shape_source: str | None
    date: str | None
    """As the source states it; not every source gives a day."""

    @property
    def memory_bytes(self) -> int:
        """Measured where known: a price list's figure is 2-6 % more than a guest can use."""
        return self.memory_measured_bytes or self.memory_nominal_bytes

    @property
    def has_gpu(self) -> bool:
        return "gpu" in self.kind


COLUMNS = (
    "provider", "instance", "kind", "region", "vcpu", "mem_gib_nominal",
    "mem_gib_measured_or_allocatable", "mem_note", "gpu", "gpu_count", "gpu_mem_mib_each",
    "usd_h_ondemand", "usd_h_1y", "usd_h_3y", "usd_h_spot", "source_price", "source_shape", "date",
)  # fmt: skip


def parse_nodes(text: str, where: str) -> tuple[NodeSpec, ...]:
    """The catalog's nodes in the order of the file; ``where`` names the file in messages.

    Raises InputError with every fault of the file at once.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{where}:1: got a header without {', '.join(missing)}, "
            f"expected the columns {', '.join(COLUMNS)}",
            hint="leave a cell blank where a value is unknown, but keep its column",
        )
    nodes: list[NodeSpec] = []
    faults: list[str] = []
    line_of: dict[tuple[str, str, str | None], int] = {}
    for cells in reader:
        row = _Row(cells, f"{where}:{reader.line_num}", faults)
        node = _node_of(row)
        key = (node.provider, node.instance, node.region)
        if key in line_of:
            row.fault(f"{node.instance} in {node.region} is already on line {line_of[key]}")
        line_of.setdefault(key, reader.line_num)
        nodes.append(node)
    if faults:
        raise InputError.of_faults(
            where, faults, hint="correct these cells; a blank cell means unknown"
        )
    return tuple(nodes)


def _node_of(row: _Row) -> NodeSpec:
    return NodeSpec(
        provider=row.word("provider"),
        instance=row.word("instance"),
        kind=row.word("kind"),
        region=row.maybe_word("region"),
        vcpu=int(row.number("vcpu")),
        memory_nominal_bytes=round(row.number("mem_gib_nominal") * GIB),
        memory_measured_bytes=_times(row.maybe_number("mem_gib_measured_or_allocatable"), GIB),
        memory_note=row.maybe_word("mem_note"),
        gpu=row.maybe_word("gpu"),
        gpu_count=_times(row.maybe_number("gpu_count", zero_is_fine=True), 1),
        gpu_memory_bytes_each=_times(row.maybe_number("gpu_mem_mib_each"), MIB),
        usd_per_h_on_demand=row.maybe_number("usd_h_ondemand"),
        usd_per_h_1y=row.maybe_number("usd_h_1y"),
        usd_per_h_3y=row.maybe_number("usd_h_3y"),
        usd_per_h_spot=row.maybe_number("usd_h_spot"),
        price_source=row.maybe_word("source_price"),
        shape_source=row.maybe_word("source_shape"),
        date=row.maybe_word("date"),
    )


def _times(value: float | None, factor: int) -> int | None:
    return None if value is None else round(value * factor)


class _Row:
    """One line of the file; what is wrong with it goes to the shared list of faults."""

    def __init__(self, cells: Mapping[str, str | None], where: str, faults: list[str]) -> None:
        self._cells = cells
        self._where = where
        self._faults = faults

    def fault(self, text: str) -> None:
        self._faults.append(f"{self._where}: {text}")

    def maybe_word(self, column: str) -> str | None:
        return (self._cells[column] or "").strip() or None

    def word(self, column: str) -> str:
        word = self.maybe_word(column)
        if word is None:
            self.fault(f"{column}: got a blank cell, expected a name")
        return word or ""

    def number(self, column: str) -> float:
        if self.maybe_word(column) is None:
            self.fault(f"{column}: got a blank cell, expected a number")
        return self.maybe_number(column) or 0.0

    def maybe_number(self, column: str, *, zero_is_fine: bool = False) -> float | None:
        word = self.maybe_word(column)
        if word is None:
            return None
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        # float() also reads "nan", "inf" and negative numbers; none of them is a size or a price.
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_is_fine):
            self.fault(f"{column}: got {word!r}, expected a positive number or a blank cell")
            return None
        return value
