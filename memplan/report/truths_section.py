"""The same memory by five definitions, and which decision each of them is for."""

from __future__ import annotations

from collections.abc import Callable

from memplan.report.pieces import Cell, Column, Fact, Facts, Section, Table
from memplan.report.wording import NOTHING
from memplan.stats.summary import RunSummary
from memplan.stats.truths import RunTruths, Truths
from memplan.units import bytes_text

Read = Callable[[Truths], int | None]

_ROWS: tuple[tuple[str, str, Read], ...] = (
    ("resident", "what a class costs", lambda t: t.resident_bytes),
    ("proportional", "who pays, as shared now", lambda t: t.proportional_bytes),
    ("charged", "a limit, the OOM kill", lambda t: t.charged_bytes),
    ("working set", "an eviction", lambda t: t.working_set_bytes),
    ("demand, alone", "the node plan", lambda t: t.demand_alone_bytes),
    ("– private", "", lambda t: t.demand_private_bytes),
    ("– weights, shared", "", lambda t: t.demand_shared_bytes),
    ("– libraries, shared", "", lambda t: t.demand_libraries_bytes),
)
_DIFFERENCE: Read = lambda t: t.charged_less_demand_bytes  # noqa: E731 - a row like the others
_MEANINGS = (
    "Resident: pages present in the process; every replica counts shared pages in full. Classes and "
    "parts of the peak are counted in it.",
    "Proportional (PSS): each page divided by the processes that map it; it moves when a neighbour "
    "starts. For splitting a bill, not for a limit.",
    "Charged: what the kernel counts against a container's limit, and kills for; page cache, tmpfs "
    "and kernel memory too. Set limits by it.",
    "Working set: charged less inactive file pages; the kubelet evicts by it. It can leave mapped "
    "weights out, so nothing should be sized by it.",
    "Demand: anonymous and shared memory, page tables, swap and mapped file pages. Plan nodes with "
    "it: N replicas need N × private + weights + libraries, the last where they run one image.",
)


def truths_section(summary: RunSummary, prefix: str) -> Section | None:
    truths = summary.truths
    if truths is None:
        return None
    return Section(
        id=f"{prefix}truths",
        title="One memory, five truths",
        blocks=(
            _table(truths, f"{prefix}truths-table"),
            Facts(id=f"{prefix}truths-facts", title="Beside them", facts=_facts(truths)),
        ),
    )


def charged_facts(truths: RunTruths | None) -> tuple[Fact, ...]:
    """The second witness of the peaks, to stand beside the first; none without a real engine."""
    if truths is None:
        return ()
    if truths.no_group is not None:
        return (Fact(name="charged peak", text=f"not measured: {truths.no_group}"),)
    if truths.charged_peak_bytes is None:
        return (Fact(name="charged peak", text="not measured: this kernel keeps no mark of it"),)
    load = bytes_text(truths.charged_load_peak_bytes)
    return (
        Fact(
            name="charged peak",
            text=f"{bytes_text(truths.charged_peak_bytes)}, {truths.charged_since or 'of its life'}",
        ),
        Fact(name="charged while loading", text=load),
    )


def _table(truths: RunTruths, id: str) -> Table:
    rows = [
        (Cell(text=name), *_cells(truths, read), Cell(text=decides))
        for name, decides, read in (*_ROWS, ("charged − demand", "never hidden", _DIFFERENCE))
    ]
    return Table(
        id=id,
        title="The process by five definitions",
        columns=(
            Column(title="truth", align="left"),
            Column(title="idle"),
            Column(title="peak while serving"),
            Column(title="after the last request"),
            Column(title="decides", align="left", is_spare=True),
        ),
        rows=tuple(rows),
        notes=(
            *_MEANINGS,
            "Charged − demand is page cache that nothing maps and other kernel memory, less mapped "
            "pages that another group was charged for because it touched them first.",
            "Under “peak” resident and demand are those of the worst segment, charged is the kernel's "
            f"own mark ({truths.charged_since or 'of its life'}), the working set is the largest "
            "sampled: not one instant.",
            *_gaps(truths),
        ),
    )


def _cells(truths: RunTruths, read: Read) -> tuple[Cell, Cell, Cell]:
    idle, peak, after = (_cell(one, read) for one in (truths.idle, truths.peak, truths.after))
    return idle, peak, after


def _cell(truths: Truths | None, read: Read) -> Cell:
    if truths is None:
        return NOTHING
    value = read(truths)
    if value is None:
        return Cell(text="not measured", tone="muted")
    return Cell(text=bytes_text(value).replace("-", "−"))


def _gaps(truths: RunTruths) -> tuple[str, ...]:
    """Why a cell says that it was not measured."""
    gaps = ["Proportional is never read while requests run: it would stall the engine."]
    if truths.idle.proportional_bytes is None:
        gaps.append("Proportional at idle: the kernel does not tell it here.")
    if truths.no_group is not None:
        gaps.append(f"Charged and working set: no control group of its own ({truths.no_group}).")
    elif truths.charged_peak_bytes is None:
        gaps.append("Charged, peak: this kernel keeps no mark of it.")
    if truths.idle.demand_alone_bytes is None:
        gaps.append("Demand: page tables are not in the recording.")
    if truths.after is None:
        gaps.append(
            "After the last request: the run ended with requests in flight, or was cut off."
        )
    return tuple(gaps)


def _facts(truths: RunTruths) -> tuple[Fact, ...]:
    facts = []
    if truths.weight_files_bytes is not None:
        facts.append(Fact(name="weight files", text=_files_text(truths)))
    idle = truths.idle
    if idle.other_kernel_bytes is not None and idle.file_balance_bytes is not None:
        text = (
            f"file pages charged less mapped {bytes_text(idle.file_balance_bytes)}, kernel memory "
            f"beside page tables {bytes_text(idle.other_kernel_bytes)}"
        ).replace("-", "−")
        facts.append(Fact(name="charged − demand, idle", text=text))
    busiest = truths.peak or idle
    two, ten = busiest.demand_of_replicas(2), busiest.demand_of_replicas(10)
    if two is not None:
        text = f"2 of them {bytes_text(two)}, 10 of them {bytes_text(ten)}, each at its own peak"
        facts.append(Fact(name="demand on one node", text=text))
    return tuple(facts)


def _files_text(truths: RunTruths) -> str:
    size = bytes_text(truths.weight_files_bytes)
    if truths.weight_files_cached_bytes is None:
        return f"{size}; whether the page cache held them before is not known"
    cached = bytes_text(truths.weight_files_cached_bytes)
    return f"{size}, of them {cached} in the page cache before the first engine start"
