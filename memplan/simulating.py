"""From one run and traffic to what replicas of it would do with that traffic: laws are fitted to the
run, rules are its engine's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memplan.errors import InputError, RecordingError
from memplan.plan.memory_model import MemoryModel, Prediction, fit_memory, observations_of
from memplan.plan.request_memory import RequestMemory, features_of, fit_requests
from memplan.plan.simulation import (
    COMPLETED,
    NEVER,
    PS_PER_S,
    QUEUE_FULL,
    TOO_LONG,
    ReplicaRules,
    Served,
    StepLaw,
    Traffic,
)
from memplan.plan.step_law import StepFit, fit_steps
from memplan.records import EngineFacts, Finding, Recording, Request
from memplan.simulator import simulate

ENGINES = ("torch", "ballast", "scripted")
"""Whose rules are known to the step."""
FEWEST_FOR_P99 = 100
NOT_NEAR = 0.2
"""A mean end-to-end time of the run's own requests that is further off is a finding."""
_Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of completed requests; None: of none, or of too few for it."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedClass:
    name: str
    requests: int
    too_long: int
    """Could never run."""
    turned_away: int
    """The queue was full."""
    ttft_s: Spread
    e2e_s: Spread
    late: int
    """Of those that ran: beyond a service level objective of the class."""
    owned_p99_bytes: float | None
    """Of what its requests own at their largest, by the run's law of lengths; None where there is
    none."""
    owned_open_bytes: float | None
    """How far one request may be off that law, either way, in 95 of 100."""
    owned_beyond: float | None
    """By which factor the longest of them is longer than any measured; None where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The same traffic with one limit eased."""

    name: str
    failed: int
    """Late, turned away or too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthRange:
    """Requests of one class whose prompts lie between two quartiles of the class's."""

    class_name: str
    from_tokens: int
    to_tokens: int
    """Included."""
    requests: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    replicas: int
    requests: int
    requests_per_s: float
    """That came, to all replicas together."""
    duration_s: float
    classes: tuple[SimulatedClass, ...]
    failed: int
    preemptions: int
    busy_share: float
    """Of all replicas' time until the last request ended."""
    peak_kv_tokens: int
    """Of the replica that held the most."""
    pool_tokens: int
    most_running: int
    most_waiting: int
    memory: Prediction | None
    """Of that replica, by the run's fitted law; None where it holds none."""
    what_if: tuple[WhatIf, ...]
    """By what helps most; empty where nothing failed."""
    with_one_less: int | None
    """How many fail when one replica is lost and the others are dealt its requests; None for one."""
    by_length: tuple[LengthRange, ...]
    """Where requests fail, the worst share first; empty where none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRun:
    """The run's own requests, simulated: over measured."""

    requests: int
    ttft_ratio: float
    e2e_ratio: float
    """Of the means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """One run's laws and rules."""

    fit: StepFit
    rules: ReplicaRules
    expected_output_tokens: int | None
    """That a request is admitted for: None all of its own, 0 its prompt alone."""
    model: MemoryModel | None
    requests: RequestMemory | None
    objectives: dict[str, dict[str, float | None]]
    """Class → ttft_s, tpot_s, e2e_s."""
    engine: EngineFacts
    own: OwnRun
    findings: tuple[Finding, ...]


def simulator_of(path: str, recording: Recording) -> Simulator:
    """Raises RecordingError for a run whose engine's rules are not simulated, or that shows too
    little."""
    deployment: Mapping[str, Any] = recording.header.deployment
    settings = deployment.get("settings", {})
    if deployment.get("engine") not in ENGINES or not recording.engines:
        raise RecordingError(
            f"{path}: its engine is {deployment.get('engine')!r}, and the rules of "
            f"{', '.join(ENGINES)} are those that can be simulated",
            hint="replay the trace on engine torch",
        )
    if unknown := _not_simulated(settings, deployment.get("classes", ())):
        raise RecordingError(
            f"{path}: its engine ran with {', '.join(unknown)}, which is not simulated",
            hint="replay a variant without it, and simulate that run",
        )
    fit = fit_steps(recording)
    if fit is None or not _done(recording):
        raise RecordingError(
            f"{path}: too few steps ran to say how long one takes, or none of its requests was "
            "completed",
            hint="replay more requests",
        )
    facts = recording.engines[-1]
    rules = ReplicaRules(
        pool_blocks=max(1, facts.kv_pool_tokens // facts.kv_block_tokens),
        block_tokens=facts.kv_block_tokens,
        max_requests=facts.max_requests,
        batch_tokens=settings["max_batch_tokens"],
        law=fit.law,
        queue_limit=settings.get("queue_limit") or 0,
    )
    expected = {"whole": None, "prompt": 0}.get(
        settings.get("kv_reserve", "whole"), settings.get("expected_output_tokens")
    )
    own = _own_run(recording, rules, expected)
    return Simulator(
        fit=fit,
        rules=rules,
        expected_output_tokens=expected,
        model=fit_memory(list(observations_of(recording))),
        requests=fit_requests(recording, recording.requests, rules.batch_tokens),
        engine=facts,
        objectives={one["name"]: one.get("slo", {}) for one in deployment.get("classes", ())},
        own=own,
        findings=_doubts(fit, own),
    )


def simulate_requests(
    simulator: Simulator, requests: Sequence[Request], replicas: int, rate: float | None
) -> Simulation:
    """Round robin over the replicas; ``rate``: requests a second to all of them, by stretching the time
    between arrivals. Raises InputError for a rate that these requests cannot have."""
    requests = sorted(requests, key=lambda one: one.arrival_s)  # those of several waves overlap
    arrival_s = np.array([one.arrival_s for one in requests])
    if rate is not None:
        span_s = float(arrival_s[-1] - arrival_s[0])
        if span_s <= 0:
            raise InputError(
                f"--rate {rate:g}: these {len(requests)} requests all come at once, so no rate "
                "stretches them",
                hint="leave --rate out, or take more rows of the trace",
            )
        arrival_s = (arrival_s - arrival_s[0]) * ((len(requests) - 1) / rate / span_s)
    traffic = _traffic(
        requests, arrival_s, np.arange(len(requests)) % replicas, simulator.expected_output_tokens
    )
    served = simulate(traffic, simulator.rules, replicas)
    late = _late(simulator, requests, traffic, served)
    has_failed = late | (served.status != COMPLETED)
    failed = int(has_failed.sum())
    last_ps = int(served.last_ps.max())
    came_s = float(arrival_s[-1] - arrival_s[0])
    peak_tokens = int(served.peak_blocks.max()) * simulator.rules.block_tokens
    return Simulation(
        replicas=replicas,
        requests=len(requests),
        requests_per_s=(len(requests) - 1) / came_s if came_s else 0.0,
        duration_s=last_ps / PS_PER_S,
        classes=_classes(simulator, requests, traffic, served, late),
        failed=failed,
        preemptions=int(served.preemptions.sum()),
        busy_share=float(served.busy_ps.sum()) / (last_ps * replicas) if last_ps else 0.0,
        peak_kv_tokens=peak_tokens,
        pool_tokens=simulator.rules.pool_blocks * simulator.rules.block_tokens,
        most_running=int(served.most_running.max()),
        most_waiting=int(served.most_waiting.max()),
        memory=None
        if simulator.model is None
        else simulator.model.predict(
            kv_bytes=peak_tokens * simulator.engine.kv_bytes_per_token,
            sequences=int(served.most_running.max()),
            largest_step_tokens=min(
                simulator.rules.batch_tokens, simulator.model.measured["largest_step_tokens"][1]
            ),
            chunk_lengths=max(
                _chunk_lengths(traffic, simulator.rules.batch_tokens),
                simulator.model.measured["chunk_lengths"][1],
            ),
        ),
        what_if=_what_if(simulator, requests, traffic, replicas) if failed else (),
        with_one_less=_failed(
            simulator, requests, _dealt(traffic, replicas - 1), simulator.rules, replicas - 1
        )
        if replicas > 1
        else None,
        by_length=_by_length(requests, has_failed),
    )


# --- steps ------------------------------------------------------------------------------------------


def _not_simulated(settings: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> list[str]:
    plain: dict[str, tuple[Any, ...]] = {
        "prefix_sharing": ("off",),
        "batching": ("continuous",),
        "overload": ("wait", "reject"),
        "preempt": ("recompute",),
        "offload": ("never",),
        "chunk_prompts": (True,),
        "lanes": ([], ()),
        "adapters": ({},),
        "degrade": ([], ()),
        "memory_budget_bytes": (None,),
    }
    return [
        f"{name}: {settings[name]}"
        for name, known in plain.items()
        if name in settings and settings[name] not in known
    ] + [
        f"budget.in_flight of class {one['name']}"
        for one in classes
        if one.get("budget", {}).get("in_flight_bytes")
    ]


def _traffic(
    requests: Sequence[Request],
    arrival_s: _Seconds,
    replica: npt.NDArray[Any],
    expected: int | None,
) -> Traffic:
    prompts = np.array([max(1, one.input_tokens) for one in requests], dtype=np.int64)
    outputs = np.array([max(1, one.output_tokens) for one in requests], dtype=np.int64)
    return Traffic(
        arrival_ps=(arrival_s * PS_PER_S).astype(np.int64),
        prompt_tokens=prompts,
        output_tokens=outputs,
        reserved_tokens=_reserved(prompts, outputs, expected),
        replica=replica.astype(np.int64),
    )


def _reserved(
    prompts: npt.NDArray[np.int64], outputs: npt.NDArray[np.int64], expected: int | None
) -> npt.NDArray[np.int64]:
    if expected == 0:
        return np.zeros_like(prompts)
    allowed = outputs if expected is None else np.minimum(outputs, expected)
    return prompts + allowed - 1


def _chunk_lengths(traffic: Traffic, batch_tokens: int) -> int:
    """Different lengths of what is left of a prompt for its last step, of the replica that reads most;
    what decodes beside it takes of a step makes more."""
    pairs = np.unique(traffic.replica * batch_tokens + traffic.prompt_tokens % batch_tokens)
    return int(np.bincount(pairs // batch_tokens).max())


def _late(
    simulator: Simulator, requests: Sequence[Request], traffic: Traffic, served: Served
) -> npt.NDArray[np.bool_]:
    ran = served.end_ps != NEVER
    spent = {
        "ttft_s": (served.first_token_ps - traffic.arrival_ps) / PS_PER_S,
        "e2e_s": (served.end_ps - traffic.arrival_ps) / PS_PER_S,
        "tpot_s": (served.end_ps - served.first_token_ps)
        / PS_PER_S
        / np.maximum(traffic.output_tokens - 1, 1),
    }
    late = np.zeros(len(requests), dtype=bool)
    for name, taken_s in spent.items():
        allowed_s = np.array(
            [simulator.objectives.get(one.class_name, {}).get(name) or np.inf for one in requests]
        )
        late |= ran & (taken_s > allowed_s)
    return late


def _classes(
    simulator: Simulator,
    requests: Sequence[Request],
    traffic: Traffic,
    served: Served,
    late: npt.NDArray[np.bool_],
) -> tuple[SimulatedClass, ...]:
    names = np.array([one.class_name for one in requests])
    found = []
    for name in dict.fromkeys(one.class_name for one in requests):
        mine = names == name
        ran = mine & (served.end_ps != NEVER)
        found.append(
            SimulatedClass(
                name=name,
                requests=int(mine.sum()),
                too_long=int(np.sum(mine & (served.status == TOO_LONG))),
                turned_away=int(np.sum(mine & (served.status == QUEUE_FULL))),
                ttft_s=_spread((served.first_token_ps - traffic.arrival_ps)[ran] / PS_PER_S),
                e2e_s=_spread((served.end_ps - traffic.arrival_ps)[ran] / PS_PER_S),
                late=int(np.sum(mine & late)),
                **_owned(simulator, name, [one for one in requests if one.class_name == name]),
            )
        )
    return tuple(found)


def _owned(simulator: Simulator, name: str, mine: Sequence[Request]) -> dict[str, float | None]:
    law = simulator.requests
    if law is None:
        return {"owned_p99_bytes": None, "owned_open_bytes": None, "owned_beyond": None}
    kv_bytes, step_tokens = features_of(mine, simulator.engine, simulator.rules.batch_tokens)
    beyond = float(kv_bytes.max()) / law.most_kv_bytes
    return {
        "owned_p99_bytes": law.quantile_bytes(name, kv_bytes, step_tokens, 0.99),
        "owned_open_bytes": law.open_of(name),
        "owned_beyond": beyond if beyond > 1 else None,
    }


def _spread(values: _Seconds) -> Spread:
    if not len(values):
        return Spread(p50=None, p95=None, p99=None)
    p50, p95, p99 = (float(one) for one in np.quantile(values, (0.5, 0.95, 0.99), method="higher"))
    return Spread(
        p50=p50,
        p95=p95 if len(values) >= FEWEST_FOR_P99 // 5 else None,
        p99=p99 if len(values) >= FEWEST_FOR_P99 else None,
    )


def _what_if(
    simulator: Simulator, requests: Sequence[Request], traffic: Traffic, replicas: int
) -> tuple[WhatIf, ...]:
    rules, law = simulator.rules, simulator.rules.law
    eased = {
        "twice the KV pool": dataclasses.replace(rules, pool_blocks=2 * rules.pool_blocks),
        "twice the requests in flight": dataclasses.replace(
            rules, max_requests=2 * rules.max_requests
        ),
        "twice the tokens of a step": dataclasses.replace(
            rules, batch_tokens=2 * rules.batch_tokens
        ),
        "steps in half the time": dataclasses.replace(rules, law=_half(law)),
    }
    found = [
        WhatIf(name=name, failed=_failed(simulator, requests, traffic, changed, replicas))
        for name, changed in eased.items()
    ]
    more = _dealt(traffic, 2 * replicas)
    failed = _failed(simulator, requests, more, rules, 2 * replicas)
    found.append(WhatIf(name="twice the replicas", failed=failed))
    return tuple(sorted(found, key=lambda one: one.failed))


def _failed(
    simulator: Simulator,
    requests: Sequence[Request],
    traffic: Traffic,
    rules: ReplicaRules,
    replicas: int,
) -> int:
    """The same traffic by other rules."""
    served = simulate(traffic, rules, replicas)
    late = _late(simulator, requests, traffic, served)
    return int(np.sum(late | (served.status != COMPLETED)))


def _dealt(traffic: Traffic, replicas: int) -> Traffic:
    """In turn, to so many."""
    return dataclasses.replace(traffic, replica=np.arange(len(traffic)) % replicas)


def _by_length(
    requests: Sequence[Request], has_failed: npt.NDArray[np.bool_]
) -> tuple[LengthRange, ...]:
    if not has_failed.any():
        return ()
    prompts = np.array([one.input_tokens for one in requests])
    names = np.array([one.class_name for one in requests])
    found = []
    for name in dict.fromkeys(one.class_name for one in requests):
        mine = names == name
        ends = np.unique(np.quantile(prompts[mine], (0.25, 0.5, 0.75, 1), method="higher"))
        begin = int(prompts[mine].min())
        for end in ends.tolist():
            here = mine & (prompts >= begin) & (prompts <= end)
            if here.any():
                found.append(
                    LengthRange(
                        class_name=name,
                        from_tokens=begin,
                        to_tokens=int(end),
                        requests=int(here.sum()),
                        failed=int(np.sum(here & has_failed)),
                    )
                )
            begin = int(end) + 1
    return tuple(sorted(found, key=lambda one: -one.failed / one.requests))


def _half(law: StepLaw) -> StepLaw:
    return StepLaw(
        **{one.name: max(getattr(law, one.name) // 2, 0) for one in dataclasses.fields(StepLaw)}
    )


def _own_run(recording: Recording, rules: ReplicaRules, expected: int | None) -> OwnRun:
    """Each wave on an engine of its own, as it was."""
    waves = {name: at for at, name in enumerate(dict.fromkeys(r.wave for r in recording.requests))}
    done = sorted(_done(recording), key=lambda one: one.arrival_s)
    arrival_s = np.array([one.arrival_s for one in done])
    traffic = _traffic(done, arrival_s, np.array([waves[one.wave] for one in done]), expected)
    served = simulate(traffic, rules, len(waves))
    ran = served.end_ps != NEVER
    records = [recording.outcomes[one.request_id] for one in done]
    measured_s = np.array(
        [
            (
                (one.first_token_s or 0.0) - (one.intended_s or 0.0),
                (one.end_s or 0.0) - (one.intended_s or 0.0),
            )
            for one in records
        ]
    )[ran]
    simulated_s = (
        np.column_stack([served.first_token_ps, served.end_ps])[ran]
        - traffic.arrival_ps[ran][:, None]
    ) / PS_PER_S
    ratios = simulated_s.mean(axis=0) / measured_s.mean(axis=0)
    return OwnRun(requests=int(ran.sum()), ttft_ratio=float(ratios[0]), e2e_ratio=float(ratios[1]))


def _done(recording: Recording) -> list[Request]:
    return [
        one
        for one in recording.requests
        if recording.outcomes[one.request_id].outcome == "completed" and one.cancel_after_s is None
    ]


def _doubts(fit: StepFit, own: OwnRun) -> tuple[Finding, ...]:
    found = []
    if not abs(own.e2e_ratio - 1) <= NOT_NEAR:
        found.append(
            Finding(
                code="simulation_not_near",
                text=f"The run's own {own.requests} requests take {own.e2e_ratio:.2f} of their measured "
                "end-to-end time when they are simulated: latencies below are no better than that.",
                hint="Replay on a quiet machine, or more requests.",
            )
        )
    if abs(fit.held_out_error) > NOT_NEAR:
        found.append(
            Finding(
                code="step_law_is_weak",
                text=f"A law of the run's first half misses the time of its second half's steps by "
                f"{fit.held_out_error:+.0%}.",
                hint="Replay traffic that varies more, or on a quiet machine.",
            )
        )
    return tuple(found)
