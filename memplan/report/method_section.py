"""What the figures rest on: what the words mean, how it was measured, on what, and at what cost."""

from __future__ import annotations

from memplan.records import EngineFacts, Recording, RunHeader
from memplan.report.on_demand_facts import on_demand_facts
from memplan.report.pieces import Fact, Facts, Section
from memplan.report.truths_section import charged_facts
from memplan.report.wording import interval_text
from memplan.stats.kv_slope import KV_SLOPE_BAND
from memplan.stats.summary import Fidelity, Quantile, RunSummary, WitnessSummary
from memplan.units import bytes_text, seconds_text

WORDS = (
    Fact(
        name="co-resident",
        text="What the process held in memory while at least one request of the class was in "
        "flight. This is what an operator sees; several classes share it. By time, a long request "
        "counts for longer: use it for capacity. By request, each counts once, with the most that "
        "the process held during it: use it beside latency.",
    ),
    Fact(
        name="attributed",
        text="What a request owned at its peak: its KV cache, its share of activations and of KV "
        "reserved but unused. This is what admission needs. It comes on top of idle.",
    ),
    Fact(
        name="solo",
        text="Peak less idle when one request of the class ran alone in a fresh process. This is "
        "what a formula should predict.",
    ),
    Fact(name="idle", text="The process with its model loaded, warmed up, and nothing in flight."),
    Fact(
        name="withheld",
        text="The run holds too few requests for this percentile; a finding says how many it "
        "would take. Nothing is extrapolated.",
    ),
    Fact(
        name="segment",
        text="The engine's life is cut into segments. When one opens, the kernel's and the "
        "allocator's high-water marks are reset; when it closes, they are read. A spike between "
        "two samples is therefore still counted.",
    ),
)


def words_section() -> Section:
    return Section(
        id="words",
        title="What the words mean",
        blocks=(Facts(id="words-facts", title="Words", facts=WORDS),),
        in_terminal=False,
    )


def basis_section(summary: RunSummary, prefix: str) -> Section:
    blocks = [
        Facts(id=f"{prefix}process", title="The process", facts=_process_facts(summary)),
        Facts(
            id=f"{prefix}fidelity",
            title="The measurement",
            facts=(*_fidelity_facts(summary), *_overhead_facts(summary)),
        ),
    ]
    return Section(id=f"{prefix}basis", title="How true the measurement was", blocks=tuple(blocks))


def origin_section(summary: RunSummary, recording: Recording, prefix: str) -> Section:
    """Machine, model, engine and workload: what is needed to believe the run in two years."""
    header = recording.header
    return Section(
        id=f"{prefix}origin",
        title="How it was measured",
        blocks=(
            Facts(id=f"{prefix}how", title="Method", facts=_method_facts(summary, recording)),
            Facts(id=f"{prefix}workload", title="Workload", facts=_workload_facts(header)),
            *(
                Facts(
                    id=f"{prefix}engine{engine.engine_start}",
                    title="Engine" if len(recording.engines) == 1 else f"Engine start {at + 1}",
                    facts=_engine_facts(engine, header),
                )
                for at, engine in enumerate(recording.engines)
            ),
            Facts(id=f"{prefix}machine", title="Machine", facts=_machine_facts(header)),
        ),
        in_terminal=False,
    )


def _process_facts(summary: RunSummary) -> tuple[Fact, ...]:
    facts = [
        Fact(name="idle", text=bytes_text(summary.idle_bytes)),
        Fact(name="peak", text=bytes_text(summary.peak_bytes)),
        Fact(name="peak while loading", text=bytes_text(summary.load_peak_bytes)),
        *charged_facts(summary.truths),
        Fact(
            name="shared between replicas",
            text=f"{bytes_text(summary.shared_bytes)} of mapped weights",
        ),
    ]
    if summary.gpu_peak_bytes is not None:
        facts.append(Fact(name="GPU idle", text=bytes_text(summary.gpu_idle_bytes)))
        facts.append(Fact(name="GPU peak", text=bytes_text(summary.gpu_peak_bytes)))
    return (*facts, *on_demand_facts(summary))


def _fidelity_facts(summary: RunSummary) -> tuple[Fact, ...]:
    fidelity = summary.fidelity
    if fidelity is None:
        return ()
    lag = fidelity.schedule_lag_s
    return (
        Fact(name="send lag p50", text=_quantile_text(lag.p50)),
        Fact(name="send lag p99", text=_quantile_text(lag.p99)),
        Fact(name="most in flight", text=f"{fidelity.peak_in_flight:,} requests"),
        Fact(name="time dilation", text=f"{fidelity.dilation:g} × the trace's time"),
        Fact(name="length scale", text=f"{fidelity.length_scale:g} × the trace's tokens"),
        *_recycling_facts(fidelity),
    )


def _recycling_facts(fidelity: Fidelity) -> tuple[Fact, ...]:
    if not fidelity.recyclings:
        return ()
    times = "once" if fidelity.recyclings == 1 else f"{fidelity.recyclings:,} times"
    text = f"{times}, {seconds_text(fidelity.recycling_s)} without an engine, inside the latencies"
    if fidelity.recycled_after.get("bytes"):
        text += f"; {fidelity.recycled_after['bytes']:,} because it had grown by its bytes"
    return (Fact(name="engine recycled", text=text),)


def _quantile_text(quantile: Quantile) -> str:
    if quantile.value is None:
        return "withheld"
    return f"{seconds_text(quantile.value)} ({interval_text(quantile, seconds_text)})"


def _overhead_facts(summary: RunSummary) -> tuple[Fact, ...]:
    overhead = summary.overhead
    return (
        Fact(name="duration", text=seconds_text(summary.duration_s)),
        Fact(
            name="memplan's own cost",
            text=f"{seconds_text(overhead.client_cpu_s)} of CPU and "
            f"{bytes_text(overhead.client_peak_bytes)} at its peak, in a process of its own and "
            "in none of the figures",
        ),
        Fact(name="closing a segment", text=f"{seconds_text(overhead.segment_median_s)}, median"),
        *_witness_facts(summary.witness, summary.duration_s),
    )


def _witness_facts(witness: WitnessSummary | None, duration_s: float) -> tuple[Fact, ...]:
    if witness is None:
        return ()
    gaps = (witness.gap_p50_s, witness.gap_p99_s, witness.gap_max_s)
    p50, p99, most = (seconds_text(gap) for gap in gaps)
    priority = f" at {witness.policy} priority" if witness.policy else ""
    share = (
        f"; {witness.cpu_s / duration_s:.1%} of one core" if witness.cpu_s and duration_s else ""
    )
    return (
        Fact(
            name="1 kHz witness",
            text=f"{witness.n:,} readings{priority}, {p50} apart (p50), {p99} (p99), {most} at most; "
            f"it saw {bytes_text(witness.max_bytes)} at most{share}",
        ),
    )


def _method_facts(summary: RunSummary, recording: Recording) -> tuple[Fact, ...]:
    header = recording.header
    return (
        Fact(
            name="peaks",
            text=f"exact within each of {len(recording.segments):,} segments; the kernel may "
            f"report one too low by at most {bytes_text(header.drift_bound_bytes)}",
        ),
        Fact(
            name="samples",
            text=f"{len(recording.samples):,}, one every {seconds_text(header.sample_period_s)}",
        ),
        Fact(name="run", text=f"{header.run_id}, started {header.started_at}"),
        Fact(name="run folder", text=recording.path),
        Fact(name="command", text=" ".join(header.command)),
        *_kv_slope_facts(summary),
        Fact(name="memplan", text=header.memplan_version),
        Fact(
            name="ended",
            text=recording.end.reason.replace("_", " ") if recording.end else "cut off",
        ),
    )


def _kv_slope_facts(summary: RunSummary) -> tuple[Fact, ...]:
    found = summary.kv_slope
    if found is None:
        return ()
    low, high = KV_SLOPE_BAND
    return (
        Fact(
            name="self-test of KV",
            text=f"for each byte of KV cache given back resident memory fell by {found.slope:.3f} "
            f"({found.low:.3f} to {found.high:.3f}, {found.n:,} times); {low:g} to {high:g} passes",
        ),
    )


def _workload_facts(header: RunHeader) -> tuple[Fact, ...]:
    workload = header.workload
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(workload.dropped.items()))
    return (
        Fact(name="source", text=f"{workload.source} ({workload.format})"),
        Fact(name="SHA-256", text=workload.sha256 or "unknown"),
        Fact(
            name="rows",
            text=f"{workload.rows_kept:,} of {workload.rows_read:,} kept"
            + (f"; dropped: {dropped}" if dropped else ""),
        ),
        Fact(name="span", text=seconds_text(workload.span_s)),
        Fact(
            name="scaling",
            text=f"lengths × {workload.length_scale:g}, time × {workload.dilation:g}"
            + (", turns sent when the one before was answered" if workload.is_closed_loop else ""),
        ),
        *(
            (Fact(name="asked again", text=f"what failed or was rejected: {workload.retries}"),)
            if workload.retries
            else ()
        ),
        *(Fact(name=f"class {name}", text=rule) for name, rule in workload.class_rules.items()),
    )


def _engine_facts(engine: EngineFacts, header: RunHeader) -> tuple[Fact, ...]:
    device = engine.device + (f" ({engine.device_name})" if engine.device_name else "")
    return (
        Fact(name="deployment", text=f"{header.deployment_name}, variant {header.variant}"),
        Fact(name="model digest", text=header.model_digest or "unknown"),
        Fact(name="engine", text=f"{engine.engine} {engine.version} on {device}"),
        Fact(
            name="weights",
            text=f"{bytes_text(engine.weights_bytes)} as stored, of them "
            f"{bytes_text(engine.weights_mapped_bytes)} mapped from a file",
        ),
        Fact(
            name="KV cache",
            text=f"{engine.kv_kind}, {bytes_text(engine.kv_bytes_per_token)} a token, at most "
            f"{engine.kv_pool_tokens:,} tokens in blocks of {engine.kv_block_tokens}",
        ),
        Fact(
            name="limits",
            text=f"{engine.max_requests:,} requests at once, {engine.context_tokens:,} tokens "
            "of context",
        ),
        Fact(name="load time", text=seconds_text(engine.load_s)),
        *(Fact(name=name, text=text) for name, text in sorted(engine.settings.items())),
        *_predicted_facts(engine),
    )


def _predicted_facts(engine: EngineFacts) -> tuple[Fact, ...]:
    """What the engine itself foretold, beside what was measured at rest."""
    if not engine.predicted:
        return ()
    parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in engine.predicted.items())
    total = sum(engine.predicted.values())
    measured = engine.idle.get("host.rss")
    beside = "resident memory was not measured"
    if measured is not None:
        beside = (
            f"{bytes_text(measured)} were resident at rest, {measured / total:.2f} times that"
            if total
            else f"{bytes_text(measured)} were resident at rest"
        )
    return (Fact(name="foretold by the engine", text=f"{parts}: {bytes_text(total)}; {beside}"),)


def _machine_facts(header: RunHeader) -> tuple[Fact, ...]:
    machine = header.machine
    packages = ", ".join(f"{name} {version}" for name, version in sorted(machine.packages.items()))
    return (
        Fact(name="host", text=f"{machine.hostname}, kernel {machine.kernel}"),
        Fact(name="CPU", text=f"{machine.cpu_model}, {machine.cpu_count} CPUs"),
        Fact(
            name="memory",
            text=f"{bytes_text(machine.memory_bytes)}, swap {bytes_text(machine.swap_bytes)}",
        ),
        Fact(name="GPUs", text=", ".join(machine.gpus) or "none"),
        Fact(name="huge pages", text=machine.transparent_hugepages),
        Fact(name="software", text=f"Python {machine.python}, {machine.libc}"),
        *((Fact(name="packages", text=packages),) if packages else ()),
    )
