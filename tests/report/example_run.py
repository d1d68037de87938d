"""One replay and two profiles, made by hand: deterministic, plausible, and small enough to read.

40 requests of three classes go through a growing engine; the timeline is simulated step by step,
so that segments, samples, in-flight requests and outcomes agree with each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from memplan.records import (
    SCHEMA,
    EngineFacts,
    Finding,
    InFlight,
    MachineFacts,
    Recording,
    Request,
    RequestRecord,
    RunEnd,
    RunHeader,
    Sample,
    Segment,
    WorkloadFacts,
)
from memplan.stats.summary import (
    Attribution,
    ClassSummary,
    Fidelity,
    Overhead,
    Percentiles,
    PlaceMemory,
    Quantile,
    Rung,
    RunSummary,
    SoloCost,
    Timed,
    VariantFacts,
)
from memplan.units import GIB, MIB

IDLE_BYTES = 870 * MIB
PEAK_BYTES = round(1.21 * GIB)
KV_BYTES_PER_TOKEN = 23_040
METHOD = "nearest rank; 95 % interval from order statistics"
WITHHELD = Finding(
    code="p99_withheld",
    text="class long: 6 requests do not hold a 95 % bound for p99, so it is withheld.",
    hint="replay a longer slice: 299 requests of the class are enough",
)
LAG = Finding(
    code="schedule_lag",
    text="One send in a hundred left 84 ms late; the burst at 12 s was flatter than the trace's.",
    hint="run the replay with --dilation 1.2",
)
CLASSES = {
    "short": ("input ≤ 512", 22, (60, 512), (16, 120)),
    "medium": ("512 < input ≤ 2048", 12, (600, 2048), (40, 200)),
    "long": ("input > 2048", 6, (2600, 6800), (80, 320)),
}
PREFILL_PER_STEP, STEP_S = 512, 0.2


@dataclass(slots=True)
class _Live:
    request: Request
    read: int = 0
    decoded: int = 0
    sent_s: float = 0.0
    first_s: float | None = None


def _requests(seed: int) -> tuple[Request, ...]:
    rng = random.Random(seed)
    found = [
        Request(
            request_id=f"{name}-{number:02d}",
            wave="trace",
            arrival_s=round(rng.uniform(0, 46), 3),
            class_name=name,
            input_tokens=rng.randint(*inputs),
            output_tokens=rng.randint(*outputs),
        )
        for name, (_, count, inputs, outputs) in CLASSES.items()
        for number in range(count)
    ]
    return tuple(sorted(found, key=lambda request: request.arrival_s))


def _setup_segments() -> list[Segment]:
    """Start, load, warm-up and idle: 0 to 6 seconds."""
    edges = (
        ("start", 0.0, 1.2, 310, 305),
        ("load", 1.2, 4.0, 1105, 842),
        ("warmup", 4.0, 5.2, 968, 871),
        ("idle", 5.2, 6.0, 871, 870),
    )
    return [
        Segment(
            engine_start=0,
            kind=kind,  # type: ignore[arg-type]
            start_s=start_s,
            end_s=end_s,
            peak={"host.hwm": hwm * MIB},
            gauges={"host.rss": rss * MIB},
            close_s=1e-4,
        )
        for kind, start_s, end_s, hwm, rss in edges
    ]


def _simulate(
    requests: tuple[Request, ...],
) -> tuple[list[Segment], dict[str, RequestRecord]]:
    rng = random.Random(7)
    segments, outcomes = _setup_segments(), {}
    waiting, live, now_s = list(requests), [], 6.0
    while waiting or live:
        while waiting and waiting[0].arrival_s + 6.0 <= now_s and len(live) < 8:
            live.append(_Live(request=waiting.pop(0), sent_s=now_s))
        prefill = decode = 0
        in_flight = []
        for one in live:
            left = one.request.input_tokens - one.read
            if left > 0:
                took = min(left, PREFILL_PER_STEP)
                one.read += took
                prefill += took
            else:
                took = min(4, one.request.output_tokens - one.decoded)
                one.first_s = one.first_s or now_s + STEP_S
                one.decoded += took
                decode += took
            used = (one.read + one.decoded) * KV_BYTES_PER_TOKEN
            in_flight.append(
                InFlight(
                    request_id=one.request.request_id,
                    kv_used_bytes=used,
                    kv_reserved_bytes=-(-used // (MIB // 2)) * (MIB // 2),
                    tokens=took,
                )
            )
        resident = IDLE_BYTES + sum(part.kv_reserved_bytes for part in in_flight)
        spike = prefill * 9_000 + rng.randint(0, 2 * MIB)
        segments.append(
            Segment(
                engine_start=0,
                kind="step",
                start_s=round(now_s, 3),
                end_s=round(now_s + STEP_S, 3),
                peak={"host.hwm": resident + spike},
                gauges={"host.rss": resident + rng.randint(0, MIB)},
                in_flight=tuple(in_flight),
                prefill_tokens=prefill,
                decode_tokens=decode,
                close_s=1.2e-4,
            )
        )
        now_s += STEP_S
        for one in [x for x in live if x.decoded >= x.request.output_tokens]:
            live.remove(one)
            outcomes[one.request.request_id] = _completed(one, now_s)
    return segments, outcomes


def _completed(one: _Live, now_s: float) -> RequestRecord:
    return RequestRecord(
        request_id=one.request.request_id,
        outcome="completed",
        intended_s=one.request.arrival_s + 6.0,
        sent_s=one.sent_s,
        admitted_s=one.sent_s,
        first_token_s=one.first_s,
        end_s=now_s,
        input_tokens_run=one.read,
        output_tokens_run=one.decoded,
    )


def _samples(segments: list[Segment], count: int = 500) -> tuple[Sample, ...]:
    end_s = segments[-1].end_s
    found, at = [], 0
    for number in range(count):
        t_s = number * end_s / count
        while segments[at].end_s <= t_s:
            at += 1
        found.append(Sample(t_s=t_s, values={"host.rss": segments[at].gauges["host.rss"]}))
    return tuple(found)


def percentiles(values: list[float], *, withhold_p99: bool = False) -> Percentiles:
    """Nearest rank, with a made-up but ordered interval."""
    ordered = sorted(values)
    n = len(ordered)

    def quantile(p: float) -> Quantile:
        at = min(n - 1, int(p * n))
        low = ordered[max(0, at - 1 - n // 8)]
        high = ordered[at + 1 + n // 8] if at + 1 + n // 8 < n else None
        return Quantile(p=p, value=ordered[at], low=low, high=high)

    p99 = quantile(0.99)
    if withhold_p99:
        p99 = Quantile(p=0.99, value=None, low=None, high=None)
    return Percentiles(
        n=n, method=METHOD, p50=quantile(0.5), p95=quantile(0.95), p99=p99, peak=ordered[-1]
    )


def _class_summary(
    name: str, rule: str, segments: list[Segment], run: dict[str, RequestRecord]
) -> ClassSummary:
    mine = [record for key, record in run.items() if key.startswith(name)]
    owned: dict[str, float] = {}
    beside: list[float] = []
    for segment in segments:
        parts = [part for part in segment.in_flight if part.request_id.startswith(name)]
        for part in parts:
            before = owned.get(part.request_id, 0.0)
            owned[part.request_id] = max(before, part.kv_reserved_bytes + part.tokens * 9_000)
        if parts:
            beside.append(float(segment.gauges["host.rss"]))
    few = name == "long"

    def of(values: list[float]) -> Percentiles:
        return percentiles(values, withhold_p99=few)

    return ClassSummary(
        name=name,
        rule=rule,
        requests=len(mine) + (1 if few else 0),
        completed=len(mine),
        failed=0,
        rejected=1 if few else 0,
        cancelled=0,
        unfinished=0,
        not_sent=0,
        reasons={"exceeds_context": 1} if few else {},
        input_tokens=of([float(record.input_tokens_run) for record in mine]),
        output_tokens=of([float(record.output_tokens_run) for record in mine]),
        cpu=PlaceMemory(
            co_resident=of(beside[:: max(1, len(beside) // len(mine))]),
            co_resident_by_request=of(beside[:: max(1, len(beside) // len(mine))]),
            attributed=of(list(owned.values())),
        ),
        gpu=None,
        ttft_s=of([record.first_token_s - record.intended_s for record in mine]),  # type: ignore[operator]
        tpot_s=of([0.045 + 0.0004 * number for number, _ in enumerate(mine)]),
        e2e_s=of([record.end_s - record.intended_s for record in mine]),  # type: ignore[operator]
    )


def engine_facts(**changes: object) -> EngineFacts:
    facts: dict[str, object] = {
        "engine": "torch",
        "version": "2.15.0+cpu",
        "engine_start": 0,
        "ready_s": 5.2,
        "pids": (4242,),
        "device": "cpu",
        "vocab_tokens": 49_152,
        "context_tokens": 8192,
        "max_requests": 8,
        "kv_kind": "growing",
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "kv_pool_tokens": 32_768,
        "kv_block_tokens": 16,
        "weights_bytes": 269_030_016,
        "weights_mapped_bytes": 0,
        "start": {"host.rss": 305 * MIB},
        "loaded": {"host.rss": 842 * MIB},
        "load_peak": {"host.hwm": 1105 * MIB},
        "idle": {"host.rss": IDLE_BYTES},
        "load_s": 2.8,
        "settings": {"dtype": "bfloat16", "threads": "2", "MALLOC_ARENA_MAX": "2"},
    }
    return EngineFacts(**{**facts, **changes})  # type: ignore[arg-type]


def header(kind: str = "replay", variant: str = "base", **deployment: object) -> RunHeader:
    classes = [
        {
            "name": "short",
            "budget": {"cpu_bytes": 64 * MIB},
            "slo": {"ttft_s": 2.0, "tpot_s": 0.08, "e2e_s": 20.0},
        },
        {"name": "medium", "budget": {"cpu_bytes": 40 * MIB}, "slo": {"ttft_s": 5.0}},
        {"name": "long", "budget": {"cpu_bytes": 256 * MIB, "gpu_bytes": None}, "slo": {}},
    ]
    return RunHeader(
        schema=SCHEMA,
        kind=kind,  # type: ignore[arg-type]
        run_id="20260811-101500-3f2a",
        started_at="2026-08-11T10:15:00Z",
        memplan_version="0.1.0",
        command=("memplan", kind, "chat.jsonl", "--model", "model.yaml"),
        deployment_name="smollm2-135m",
        variant=variant,
        deployment={"name": "smollm2-135m", "classes": classes, **deployment},
        model_digest="sha256:5d1c7e0b9a3f4a62",
        workload=WorkloadFacts(
            source="chat.jsonl",
            format="mooncake",
            sha256="9f3c1b7a2d",
            rows_read=55,
            rows_kept=41,
            dropped={"no output length": 14},
            span_s=46.0,
            length_scale=0.5,
            dilation=1.0,
            class_rules={name: rule for name, (rule, *_) in CLASSES.items()},
        ),
        machine=MachineFacts(
            hostname="bench-1",
            kernel="6.8.0",
            cpu_model="AMD EPYC 9R14",
            cpu_count=8,
            memory_bytes=32 * GIB,
            swap_bytes=0,
            python="3.12.4",
            libc="glibc 2.39",
            transparent_hugepages="madvise",
            packages={"torch": "2.15.0", "transformers": "5.23.0"},
        ),
        sample_period_s=0.1,
        drift_bound_bytes=128 * 1024,
    )


def replay_recording() -> Recording:
    requests = _requests(seed=3)
    segments, outcomes = _simulate(requests)
    refused = Request(
        request_id="long-99",
        wave="trace",
        arrival_s=20.0,
        class_name="long",
        input_tokens=9000,
        output_tokens=10,
    )
    outcomes["long-99"] = RequestRecord(
        request_id="long-99", outcome="rejected", reason="exceeds_context", intended_s=26.0
    )
    return Recording(
        path="runs/20260811-101500-3f2a",
        header=header(),
        engines=(engine_facts(),),
        requests=(*requests, refused),
        outcomes=outcomes,
        segments=tuple(segments),
        samples=_samples(segments),
        planted=(),
        findings=(LAG,),
        end=RunEnd(
            reason="finished",
            ended_s=segments[-1].end_s,
            client_cpu_s=1.9,
            client_peak_bytes=96 * MIB,
            samples=500,
        ),
    )


def replay_summary(recording: Recording) -> RunSummary:
    segments = list(recording.segments)
    done = {k: r for k, r in recording.outcomes.items() if r.outcome == "completed"}
    peak = max(segments, key=lambda segment: segment.peak["host.hwm"])
    peak_bytes = peak.peak["host.hwm"]
    kv_bytes = sum(part.kv_reserved_bytes for part in peak.in_flight)
    unexplained_bytes = 9 * MIB
    known_bytes = 269_030_016 + kv_bytes + 21 * MIB + 46 * MIB + 88 * MIB + unexplained_bytes
    return RunSummary(
        path=recording.path,
        kind="replay",
        run_id=recording.header.run_id,
        deployment_name="smollm2-135m",
        variant="base",
        idle_bytes=IDLE_BYTES,
        peak_bytes=peak_bytes,
        gpu_idle_bytes=None,
        gpu_peak_bytes=None,
        load_peak_bytes=1105 * MIB,
        shared_bytes=0,
        classes=tuple(
            _class_summary(name, rule, segments, done) for name, (rule, *_) in CLASSES.items()
        ),
        attribution=Attribution(
            place="cpu",
            total_bytes=peak_bytes,
            at_s=peak.end_s,
            weights_bytes=269_030_016,
            kv_bytes=kv_bytes,
            activations_bytes=21 * MIB,
            runtime_bytes=peak_bytes - known_bytes,
            allocator_slack_bytes=46 * MIB,
            page_cache_bytes=88 * MIB,
            unexplained_bytes=unexplained_bytes,
            method="engine gauges at the segment of the peak",
        ),
        gpu_attribution=None,
        solo=(),
        rungs=(),
        fidelity=Fidelity(
            schedule_lag_s=percentiles([0.001 * number for number in range(41)]),
            peak_in_flight=max(len(segment.in_flight) for segment in segments),
            dilation=1.0,
            length_scale=0.5,
        ),
        overhead=Overhead(client_cpu_s=1.9, client_peak_bytes=96 * MIB, segment_median_s=1.2e-4),
        completed_per_s=0.62,
        output_tokens_per_s=61.5,
        duration_s=segments[-1].end_s,
        findings=(LAG, WITHHELD),
    )


def timed(median_s: float, n: int = 5) -> Timed:
    return Timed(n=n, median_s=median_s, low_s=median_s * 0.98, high_s=median_s * 1.02)


def profile_summary(
    variant: str = "base", *, scale: float = 1.0, step: int | None = None
) -> RunSummary:
    """``scale`` is the variant's KV size against the base; ``step`` its place in a stack."""
    per_token = KV_BYTES_PER_TOKEN * scale
    idle_bytes = round(IDLE_BYTES - (1 - scale) * 180 * MIB)
    solo = tuple(
        SoloCost(
            class_name=name,
            input_tokens=tokens,
            output_tokens=64,
            n=5,
            median_bytes=tokens * per_token * 1.06 + 6 * MIB,
            min_bytes=tokens * per_token * 1.03 + 5 * MIB,
            max_bytes=tokens * per_token * 1.10 + 9 * MIB,
            kv_bytes=round((tokens + 64) * per_token),
            place="cpu",
            ttft=timed(tokens / 2400),
            tpot=timed(0.045),
        )
        for name, tokens in (("short", 256), ("medium", 1400), ("long", 4800))
    )
    lengths = [("length", 1, tokens) for tokens in (128, 512, 1024, 2048, 4096, 6144)]
    batches = [("batch", count, 512) for count in (1, 2, 4, 8)]
    rungs = tuple(
        Rung(
            wave=f"{wave}-{requests}x{tokens}",
            requests=requests,
            tokens_per_request=tokens,
            idle_bytes=idle_bytes,
            peak_bytes=idle_bytes + round(requests * tokens * per_token * 1.05) + 11 * MIB,
            kv_bytes=round(requests * tokens * per_token),
            e2e_s=0.2 + tokens * requests / 2600,
            place="cpu",
            completed=requests,
            decode_step=timed(0.04 + 0.001 * requests, n=9) if wave == "batch" else None,
        )
        for wave, requests, tokens in [*lengths, *batches]
    )
    return RunSummary(
        path=f"runs/profile-{variant}",
        kind="profile",
        run_id=f"profile-{variant}",
        deployment_name="smollm2-135m",
        variant=variant,
        idle_bytes=idle_bytes,
        peak_bytes=max(rung.peak_bytes for rung in rungs),
        gpu_idle_bytes=None,
        gpu_peak_bytes=None,
        load_peak_bytes=1105 * MIB,
        shared_bytes=0,
        classes=(),
        attribution=None,
        gpu_attribution=None,
        solo=solo,
        rungs=rungs,
        fidelity=None,
        overhead=Overhead(client_cpu_s=0.8, client_peak_bytes=90 * MIB, segment_median_s=1.1e-4),
        completed_per_s=None,
        output_tokens_per_s=None,
        duration_s=64.0,
        findings=(),
        variant_facts=VariantFacts(
            settings={"weights": "bf16", "kv": "bf16" if scale == 1 else "int8"},
            stack_step=step,
            weights_bytes=269_030_016,
            kv_bytes_per_token=round(KV_BYTES_PER_TOKEN * scale),
            idle_bytes=idle_bytes,
            idle_low_bytes=idle_bytes - MIB,
            idle_high_bytes=idle_bytes + MIB,
            idle_n=16,
            drift_bound_bytes=128 * 1024,
        ),
    )


def profile_recording(variant: str = "base", *, scale: float = 1.0) -> Recording:
    segments = _setup_segments()
    return Recording(
        path=f"runs/profile-{variant}",
        header=header("profile", variant),
        engines=(engine_facts(kv_bytes_per_token=round(KV_BYTES_PER_TOKEN * scale)),),
        requests=(),
        outcomes={},
        segments=tuple(segments),
        samples=_samples(segments, 50),
        planted=(),
        findings=(),
        end=None,
    )


NODES_CSV = """\
provider,instance,kind,region,vcpu,mem_gib_nominal,mem_gib_measured_or_allocatable,mem_note,gpu,\
gpu_count,gpu_mem_mib_each,usd_h_ondemand,usd_h_1y,usd_h_3y,usd_h_spot,source_price,source_shape,\
date
aws,r8g.24xlarge,cpu,us-east-1,96,768.0,742.2,MemTotal measured,,0,,5.65536,,,,aws prices,aws \
shapes,2026-07-20
gcp,c4-highmem-192,cpu,us-central1,192,1488.0,,,,0,,12.5125,7.8831,5.6306,7.5078,gcp prices,gcp \
shapes,2026-07-30
aws,tiny.large,cpu,us-east-1,2,1.0,,,,0,,0.05,,,,aws prices,aws shapes,2026-07-20
oci,quiet.standard,cpu,eu,8,64.0,,,,0,,,,,,oci prices,oci shapes,2026
aws,g6.2xlarge,gpu,us-east-1,8,32.0,30.2,MemTotal measured,l4,1,22888,0.9776,,,,aws prices,aws \
shapes,2026-07-20
azure,ND_H200,gpu,eastus2,96,1850,,,h200,8,,84.8,,,,azure prices,azure shapes,2026-06-18
"""
