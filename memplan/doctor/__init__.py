"""What can be measured on this machine, and what a missing source no longer proves.

Every check tries the thing itself, on processes and files of memplan's own; none reads a version to
guess from.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplan.doctor.check import Check
from memplan.doctor.engine import allocator, demo_weights, tensor_hook, torch_engine
from memplan.doctor.machine import cores, gpu, huge_pages, swap
from memplan.doctor.outside import control_group, memory_pressure, other_processes
from memplan.doctor.pages import page_cache, page_map, page_scan, proportional_size
from memplan.doctor.peaks import closing_in_c, exact_peaks
from memplan.doctor.witness import fast_sampler
from memplan.machine import read_machine

__all__ = ["Check", "examine", "print_checks"]


def examine() -> tuple[Check, ...]:
    """All checks, most important first. Takes a third of a second and loads no engine."""
    machine = read_machine()
    return (
        exact_peaks(machine),
        closing_in_c(),
        control_group(),
        other_processes(),
        memory_pressure(),
        fast_sampler(),
        page_map(),
        page_scan(),
        proportional_size(),
        page_cache(),
        allocator(),
        tensor_hook(),
        torch_engine(),
        demo_weights(),
        gpu(),
        cores(machine),
        swap(machine),
        huge_pages(machine),
    )


def print_checks(checks: Sequence[Check]) -> None:
    """One paragraph a check: what was found, what that means, what would mend it."""
    console = Console()
    colours = {"yes": "green", "no": "bold red", "note": "yellow"}
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        told = Text.assemble(check.found, "\n", (check.means, "dim"))
        if check.remedy:
            told.append(f"\n→ {check.remedy}")
        table.add_row(Text(check.state, style=colours[check.state]), Text(check.name), told)
    console.print(table)
