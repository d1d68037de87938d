"""Simulated replicas as a document that any renderer draws, and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from memplan.plan.simulation import PS_PER_S, StepLaw
from memplan.report.pieces import (
    Cell,
    Column,
    Document,
    Fact,
    Facts,
    FindingList,
    KeyFigure,
    Section,
    Table,
)
from memplan.report.wording import NOTHING
from memplan.simulating import SimulatedClass, Simulation, Simulator
from memplan.units import bytes_text


def simulation_document(name: str, simulator: Simulator, found: Simulation) -> Document:
    return Document(
        title=f"{name}, simulated: {found.replicas:,} replica{'s'[: found.replicas > 1]}",
        subtitle=f"{found.requests:,} requests, {found.requests_per_s:.3g} a second to all of them, in "
        f"{found.duration_s:,.0f} s of simulated time. Nothing here was measured but the run that the "
        "laws come from.",
        answer=_answer(found),
        figures=(
            KeyFigure(
                name="fail their objective", text=f"{found.failed:,}", detail="late or turned away"
            ),
            KeyFigure(name="busy", text=f"{found.busy_share:.0%}", detail="of all replicas' time"),
            KeyFigure(
                name="KV pool",
                text=f"{found.peak_kv_tokens / found.pool_tokens:.0%}",
                detail="at its fullest, in the fullest replica",
            ),
        ),
        sections=(
            *(
                [
                    Section(
                        id="findings",
                        title="Findings",
                        blocks=(FindingList(id="finding-list", findings=simulator.findings),),
                    )
                ]
                if simulator.findings
                else []
            ),
            Section(id="classes", title="By class", blocks=(_class_table(found),)),
            Section(id="limits", title="What limits", blocks=_limits(found)),
            Section(id="laws", title="Laws and rules", blocks=(_laws(simulator, found),)),
        ),
    )


def simulation_json(path: str, simulator: Simulator, found: Simulation) -> dict[str, Any]:
    """``memplan.simulation/1``: docs/plan-json.md."""
    return {
        "schema": "memplan.simulation/1",
        "run": path,
        "step_law": dataclasses.asdict(simulator.fit),
        "rules": {
            key: value
            for key, value in dataclasses.asdict(simulator.rules).items()
            if key not in ("law", "over_blocks")
        },
        "own_run": dataclasses.asdict(simulator.own),
        **dataclasses.asdict(found),
        "findings": [dataclasses.asdict(one) for one in simulator.findings],
    }


def _answer(found: Simulation) -> str:
    if not found.failed:
        who = "1 replica keeps" if found.replicas == 1 else f"{found.replicas:,} replicas keep"
        return f"{who} every objective of this traffic."
    best = found.what_if[0]
    share = found.failed / found.requests
    if best.failed >= found.failed:
        return f"{found.failed:,} requests ({share:.1%}) fail, and no single limit is why."
    return (
        f"{found.failed:,} requests ({share:.1%}) fail. What helps most: {best.name} leaves "
        f"{best.failed:,}."
    )


def _class_table(found: Simulation) -> Table:
    return Table(
        id="simulated-classes",
        title="Simulated requests",
        columns=(
            Column(title="class", align="left"),
            Column(title="requests"),
            Column(title="TTFT p50"),
            Column(title="p95", is_spare=True),
            Column(title="p99"),
            Column(title="end to end p50"),
            Column(title="p99"),
            Column(title="owns p99"),
            Column(title="late"),
            Column(title="turned away"),
        ),
        rows=tuple(_class_row(one) for one in found.classes),
        notes=(
            "Late: beyond an objective (slo) of its class. A quantile is the exact one of all requests "
            "that ran; p95 is withheld below 20 of them, p99 below 100.",
            "Owns: its KV and its share of steps at their largest, by a law of lengths that was fitted "
            "to the run; ± holds 95 of 100 requests.",
        ),
    )


def _class_row(one: SimulatedClass) -> tuple[Cell, ...]:
    refused = one.turned_away + one.too_long
    return (
        Cell(text=one.name),
        Cell(text=f"{one.requests:,}"),
        *(_seconds(value) for value in (one.ttft_s.p50, one.ttft_s.p95, one.ttft_s.p99)),
        *(_seconds(value) for value in (one.e2e_s.p50, one.e2e_s.p99)),
        _owned(one),
        Cell(text=f"{one.late:,}", tone="bad" if one.late else "plain"),
        Cell(
            text=f"{refused:,}",
            detail=f"{one.too_long} too long for the pool" if one.too_long else "",
            tone="bad" if refused else "plain",
        ),
    )


def _owned(one: SimulatedClass) -> Cell:
    if one.owned_p99_bytes is None or one.owned_open_bytes is None:
        return NOTHING
    beyond = f", {one.owned_beyond:.3g} x as long as measured" if one.owned_beyond else ""
    return Cell(
        text=bytes_text(round(one.owned_p99_bytes)),
        detail=f"± {bytes_text(round(one.owned_open_bytes))}{beyond}",
    )


def _seconds(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(text=f"{value:.3g} s")


def _limits(found: Simulation) -> tuple[Facts | Table, ...]:
    memory = found.memory
    beyond = (
        " (beyond what the run measured: "
        + ", ".join(f"{name} by {times:.2g} x" for name, times in memory.beyond.items())
        + ")"
        if memory and memory.beyond
        else ""
    )
    facts = Facts(
        id="simulated-load",
        title="The fullest replica",
        facts=(
            Fact(
                name="KV",
                text=f"{found.peak_kv_tokens:,} of {found.pool_tokens:,} tokens of the pool",
            ),
            Fact(
                name="requests at once",
                text=f"{found.most_running} ran, {found.most_waiting} waited",
            ),
            Fact(name="preempted", text=f"{found.preemptions:,} times, all replicas"),
            *(
                [
                    Fact(
                        name="one replica lost",
                        text=f"{found.with_one_less:,} requests fail instead of {found.failed:,}, "
                        f"dealt to {found.replicas - 1:,} replicas from the start",
                    )
                ]
                if found.with_one_less is not None
                else []
            ),
            Fact(
                name="resident memory",
                text="unknown: the run is too short for a law"
                if memory is None
                else f"{bytes_text(round(memory.resident_bytes))}, at most "
                f"{bytes_text(round(memory.upper_bytes))} in 95 of 100 steps{beyond}",
            ),
        ),
    )
    if not found.what_if:
        return (facts,)
    return (
        facts,
        Table(
            id="what-if",
            title="The same traffic with one limit eased",
            columns=(Column(title="with", align="left"), Column(title="requests that fail")),
            rows=tuple(
                (Cell(text=one.name), Cell(text=f"{one.failed:,}")) for one in found.what_if
            ),
        ),
        Table(
            id="by-length",
            title="Which requests fail",
            columns=(
                Column(title="class", align="left"),
                Column(title="prompt tokens"),
                Column(title="requests"),
                Column(title="fail"),
            ),
            rows=tuple(
                (
                    Cell(text=one.class_name),
                    Cell(text=f"{one.from_tokens:,} to {one.to_tokens:,}"),
                    Cell(text=f"{one.requests:,}"),
                    Cell(text=f"{one.failed:,}", detail=f"{one.failed / one.requests:.0%}"),
                )
                for one in found.by_length
                if one.failed
            ),
            notes=("Quarters of each class by the length of its prompts, the worst first.",),
        ),
    )


def _laws(simulator: Simulator, found: Simulation) -> Facts:
    rules, fit, own = simulator.rules, simulator.fit, simulator.own
    return Facts(
        id="laws-and-rules",
        title="From the run",
        facts=(
            Fact(name="a step takes", text=_law_text(fit.law)),
            Fact(
                name="held out",
                text=f"{fit.held_out_error:+.1%} of the time of the second half's steps by a law of the "
                f"first; a single step is {fit.held_out_median_error:.1%} off in the median; "
                f"{fit.steps:,} steps",
            ),
            Fact(
                name="the run itself",
                text=f"its {own.requests:,} requests, simulated: {own.ttft_ratio:.2f} of the measured "
                f"mean TTFT, {own.e2e_ratio:.2f} of the mean end to end",
            ),
            Fact(
                name="rules",
                text=f"{rules.max_requests} requests, {rules.pool_blocks:,} blocks of "
                f"{rules.block_tokens} tokens, {rules.batch_tokens:,} tokens a step, "
                f"{_reserved_text(simulator.expected_output_tokens)} reserved; "
                f"requests are dealt to replicas in turn",
            ),
        ),
    )


def _reserved_text(expected_output_tokens: int | None) -> str:
    if expected_output_tokens is None:
        return "all blocks"
    if expected_output_tokens == 0:
        return "the prompt only"
    return f"the prompt and {expected_output_tokens} output tokens"


def _law_text(law: StepLaw) -> str:
    parts = (
        (law.step_ps, ""),
        (law.prompt_token_ps, " a prompt token"),
        (law.decode_ps, " a decode"),
        (law.kv_token_ps, " a token read"),
        (law.pair_ps, " a prompt token and token before it"),
    )
    return " + ".join(f"{_time_text(ps / PS_PER_S)}{what}" for ps, what in parts if ps)


def _time_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
