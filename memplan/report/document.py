"""Summaries, recordings and a node catalog in, one frozen Document out: the report, not yet drawn.

It computes no statistic and opens no file; what the summaries do not know it says is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memplan.plan.density import HEADROOM_RATIO, ReplicaNeed, need_of
from memplan.plan.nodes import NodeSpec
from memplan.records import Recording
from memplan.report.comparison import comparison_section, run_names
from memplan.report.density_section import LIMIT_NAMES, NodeOffer, density_section, offers_of
from memplan.report.method_section import basis_section, origin_section, words_section
from memplan.report.paths_section import paths_section
from memplan.report.pieces import Document, FindingList, KeyFigure, Section
from memplan.report.profile_sections import profile_sections
from memplan.report.quality_section import quality_section
from memplan.report.replay_sections import main_memory, main_place, replay_sections
from memplan.report.truths_section import truths_section
from memplan.report.variants_section import variants_section
from memplan.report.variants_wording import first_text
from memplan.report.wording import interval_text, range_text
from memplan.stats.first_technique import first_technique
from memplan.stats.paths import GatewaySummary
from memplan.stats.summary import ClassSummary, RunSummary
from memplan.stats.variants import base_of, variant_figures
from memplan.units import bytes_text, usd_text

Runs = Sequence[tuple[RunSummary, Recording]]
_MOST_NAMED = 6
"""Variants, in the line below the title."""


def document_of(
    runs: Runs,
    nodes: Sequence[NodeSpec] = (),
    *,
    headroom_ratio: float = HEADROOM_RATIO,
    gateways: Sequence[GatewaySummary] = (),
) -> Document:
    """Which way requests went, then replays, then profiles, each in the order given.

    Density and cost need a replay and a catalog: a ladder's peak is not the peak of any traffic.
    """
    replays = [run for run in runs if run[0].kind == "replay"]
    profiles = [run for run in runs if run[0].kind != "replay"]
    offers = [_offers(run, nodes, headroom_ratio) for run in replays]
    sections: list[Section | None] = [paths_section(gateway) for gateway in gateways]
    sections.append(comparison_section(replays, offers))
    for number, (run, offered) in enumerate(zip(replays, offers, strict=True)):
        prefix = f"run{number + 1}-"
        title = f"{run_names(replays)[number]}: " if len(replays) > 1 else ""
        found = _replay_part(run, nodes, offered, headroom_ratio, prefix)
        sections.extend(_retitled(section, title) for section in found)
    if profiles:
        sections.append(variants_section([summary for summary, _ in profiles]))
        sections.extend(profile_sections([summary for summary, _ in profiles]))
    for number, run in enumerate(profiles):
        title = f"{run_names(profiles)[number]}: " if len(profiles) > 1 else ""
        found = _evidence_part(run, f"profile{number + 1}-")
        sections.extend(_retitled(section, title) for section in found)
    sections.append(words_section())
    first = (replays or profiles)[0]
    best = next((one for one in offers[0] if one.density.replicas), None) if offers else None
    return Document(
        title=f"{_deployments(runs)}: what each request class costs in memory",
        subtitle=_subtitle(runs),
        answer=_first_of(replays) + _replay_answer(first[0], best)
        if replays
        else _profile_answer(profiles),
        figures=_figures(first[0], best),
        sections=tuple(section for section in sections if section is not None),
    )


def _need(run: tuple[RunSummary, Recording]) -> ReplicaNeed | None:
    """None where its peak is unknown, or is not the trace's."""
    summary, recording = run
    if summary.not_the_trace is not None:
        return None
    threads = recording.engines[-1].settings.get("threads", "") if recording.engines else ""
    return need_of(summary, (int(threads) or None) if threads.isdecimal() else None)


def _offers(
    run: tuple[RunSummary, Recording], nodes: Sequence[NodeSpec], headroom_ratio: float
) -> tuple[NodeOffer, ...]:
    need = _need(run)
    return offers_of(need, run[0], nodes, headroom_ratio) if need else ()


def _replay_part(
    run: tuple[RunSummary, Recording],
    nodes: Sequence[NodeSpec],
    offers: Sequence[NodeOffer],
    headroom_ratio: float,
    prefix: str,
) -> tuple[Section, ...]:
    summary, recording = run
    need = _need(run)
    priced = density_section(need, summary, nodes, offers, headroom_ratio, prefix) if need else None
    return (
        *replay_sections(summary, recording, prefix),
        *((priced,) if priced and nodes else ()),
        *_evidence_part(run, prefix),
    )


def _evidence_part(run: tuple[RunSummary, Recording], prefix: str) -> tuple[Section, ...]:
    summary, recording = run
    doubts = Section(
        id=f"{prefix}findings",
        title="What to doubt",
        paragraphs=() if summary.findings else ("Nothing was found that weakens these figures.",),
        blocks=(
            (FindingList(id=f"{prefix}finding-list", findings=summary.findings),)
            if summary.findings
            else ()
        ),
    )
    truths = truths_section(summary, prefix)
    quality = quality_section(summary, prefix)
    return (
        *((quality,) if quality else ()),
        *((truths,) if truths else ()),
        doubts,
        basis_section(summary, prefix),
        origin_section(summary, recording, prefix),
    )


def _retitled(section: Section, before: str) -> Section:
    return replace(section, title=f"{before}{section.title}")


def _first_of(replays: Runs) -> str:
    """Whose the answer is, where there are several."""
    return f"{run_names(replays)[0]}, the first of {len(replays)}: " if len(replays) > 1 else ""


def _deployments(runs: Runs) -> str:
    return ", ".join(dict.fromkeys(summary.deployment_name for summary, _ in runs))


def _subtitle(runs: Runs) -> str:
    summary, recording = runs[0]
    header = recording.header
    variants = list(dict.fromkeys(one.variant for one, _ in runs))
    named = f"variant{'s' if len(variants) > 1 else ''} {', '.join(variants)}"
    if len(variants) > _MOST_NAMED:
        named = f"{len(variants)} variants"
    kinds = " and ".join(dict.fromkeys(one.kind for one, _ in runs))
    return (
        f"{kinds} of {header.workload.source}, {named}, on {header.machine.hostname} "
        f"({header.machine.cpu_model}), {header.started_at[:10]}, run {summary.run_id}"
    )


_OTHER_STATES = "what was in flight is too far from the reference, so nothing is planned from it."


def _heaviest(summary: RunSummary) -> ClassSummary | None:
    """The class with the request that owned most; its p95 may well be withheld."""
    known = [one for one in summary.classes if main_memory(one).attributed.peak is not None]
    return max(known, key=lambda one: main_memory(one).attributed.peak or 0, default=None)


def _replay_answer(summary: RunSummary, best: NodeOffer | None) -> str:
    heaviest = _heaviest(summary)
    on_gpu = main_place(summary) == "gpu"
    idle_bytes = summary.gpu_idle_bytes if on_gpu else summary.idle_bytes
    idle = "an unknown idle memory"
    if idle_bytes is not None:
        idle = f"the {bytes_text(idle_bytes)} that the process holds idle"
    peaked = bytes_text(summary.peak_bytes)
    if on_gpu:
        peaked = f"{bytes_text(summary.gpu_peak_bytes)} on the GPU and {peaked} on the host"
    if heaviest is None:
        held = bytes_text(idle_bytes)
        sentence = f"No request ran. Idle, the process holds {held}; it peaked at {peaked}."
    else:
        owned = _owned_text(heaviest, " of GPU memory" if on_gpu else "")
        sentence = f"{owned} on top of {idle}; the process peaked at {peaked}."
    if summary.not_the_trace is not None:
        return f"{sentence} This is not the trace: {_OTHER_STATES}"
    if best is None:
        return sentence
    limit = LIMIT_NAMES[best.density.limited_by]
    return (
        f"{sentence} The cheapest node for it, {best.node.instance}, would hold "
        f"{best.density.replicas:,} such replicas "
        f"({limit}-limited, not yet checked)."
    )


def _owned_text(one: ClassSummary, of_what: str) -> str:
    attributed = main_memory(one).attributed
    if attributed.p95.value is not None:
        return f"At p95 a {one.name} request owns {bytes_text(attributed.p95.value)}{of_what}"
    return (
        f"The largest {one.name} request owned {bytes_text(attributed.peak)}{of_what} "
        f"({attributed.n:,} are too few for a p95)"
    )


def _profile_answer(profiles: Runs) -> str:
    first = base_of([summary for summary, _ in profiles])
    sentence = f"Idle, {first.variant} holds {bytes_text(first.idle_bytes)}."
    if first.solo:
        most = max(first.solo, key=lambda solo: solo.median_bytes)
        sentence += (
            f" Alone, a {most.class_name} request of {most.input_tokens:,} tokens adds "
            f"{bytes_text(most.median_bytes)}, where the KV formula says "
            f"{bytes_text(most.kv_bytes)}."
        )
    found = first_technique(variant_figures([summary for summary, _ in profiles]))
    if found is not None:
        sentence += f" {first_text(found)}"
    return sentence


def _figures(summary: RunSummary, best: NodeOffer | None) -> tuple[KeyFigure, ...]:
    figures = [
        KeyFigure(name="idle", text=bytes_text(summary.idle_bytes), detail="nothing in flight"),
        KeyFigure(name="peak", text=bytes_text(summary.peak_bytes), detail="the largest ever seen"),
    ]
    if summary.gpu_peak_bytes is not None:
        idle = f"{bytes_text(summary.gpu_idle_bytes)} idle"
        figures.append(
            KeyFigure(name="GPU peak", text=bytes_text(summary.gpu_peak_bytes), detail=idle)
        )
    heaviest = _heaviest(summary)
    if heaviest is not None:
        owned = main_memory(heaviest).attributed
        is_known = owned.p95.value is not None
        interval = f"{interval_text(owned.p95, bytes_text)}, " if is_known else ""
        figures.append(
            KeyFigure(
                name=f"one {heaviest.name} request, {'p95' if is_known else 'largest'}",
                text=bytes_text(owned.p95.value if is_known else owned.peak),
                detail=f"{interval}n {owned.n:,}",
            )
        )
    if summary.solo:
        most = max(summary.solo, key=lambda solo: solo.median_bytes)
        spread = range_text(most.min_bytes, most.max_bytes, bytes_text)
        figures.append(
            KeyFigure(
                name=f"one {most.class_name} request alone",
                text=bytes_text(most.median_bytes),
                detail=f"{spread}, n {most.n:,}",
            )
        )
    if best is not None and best.usd_per_replica_month is not None:
        figures.append(
            KeyFigure(
                name="one replica, a month",
                text=usd_text(best.usd_per_replica_month),
                detail=f"{best.density.replicas:,} on {best.node.instance}, on demand",
            )
        )
    return tuple(figures)
