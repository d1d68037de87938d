"""Small whole values for tests: every field has a plain default, and a test names what it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memplan.records import (
    SCHEMA,
    EngineFacts,
    InFlight,
    MachineFacts,
    Quality,
    Recording,
    Request,
    RequestRecord,
    RunEnd,
    RunHeader,
    Sample,
    Segment,
    SegmentKind,
    WorkloadFacts,
)
from memplan.specs import ClassSpec, ClassWhen, Deployment, TokenRange
from memplan.specs.settings import Script, Settings
from memplan.units import MIB

IDLE_BYTES = 100 * MIB
KV_BYTES_PER_TOKEN = 1000
CLASSES = (
    ClassSpec(name="short", when=ClassWhen(input_tokens=TokenRange(high=99))),
    ClassSpec(name="long", when=ClassWhen(input_tokens=TokenRange(low=100))),
)


def workload(**changes: Any) -> WorkloadFacts:
    facts = WorkloadFacts(
        source="trace.jsonl",
        format="memplan",
        sha256="ab" * 32,
        rows_read=2,
        rows_kept=2,
        dropped={},
        span_s=1.0,
        class_rules={spec.name: spec.rule for spec in CLASSES},
    )
    return replace(facts, **changes)


def machine() -> MachineFacts:
    return MachineFacts(
        hostname="bench",
        kernel="6.8.0",
        cpu_model="a CPU",
        cpu_count=2,
        memory_bytes=2**34,
        swap_bytes=0,
        python="3.12.4",
        libc="glibc 2.39",
        transparent_hugepages="madvise",
    )


def header(**changes: Any) -> RunHeader:
    made = RunHeader(
        schema=SCHEMA,
        kind="replay",
        run_id="0123456789ab",
        started_at="2026-08-11T10:15:00.000+00:00",
        memplan_version="0.1.0",
        command=("replay", "trace.jsonl"),
        deployment_name="tiny",
        variant="base",
        deployment={"name": "tiny"},
        model_digest=None,
        workload=workload(),
        machine=machine(),
        sample_period_s=0.1,
        drift_bound_bytes=MIB,
    )
    return replace(made, **changes)


def engine(**changes: Any) -> EngineFacts:
    facts = EngineFacts(
        engine="scripted",
        version="1",
        engine_start=0,
        ready_s=0.0,
        pids=(),
        device="cpu",
        vocab_tokens=100,
        context_tokens=1000,
        max_requests=4,
        kv_kind="growing",
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        kv_pool_tokens=4000,
        kv_block_tokens=16,
        weights_bytes=60 * MIB,
        weights_mapped_bytes=0,
        start={"host.rss": 30 * MIB},
        loaded={"host.rss": 90 * MIB},
        load_peak={"host.hwm": 95 * MIB},
        idle={"host.rss": IDLE_BYTES, "engine.weights_resident": 60 * MIB},
        load_s=0.0,
    )
    return replace(facts, **changes)


def request(request_id: str = "a", **changes: Any) -> Request:
    made = Request(
        request_id=request_id,
        wave="trace",
        arrival_s=0.0,
        class_name="short",
        input_tokens=10,
        output_tokens=2,
    )
    return replace(made, **changes)


def completed(request: Request, **changes: Any) -> RequestRecord:
    """Sent at its time, first token after 0.1 s, over after 0.2 s."""
    at_s = request.arrival_s
    record = RequestRecord(
        request_id=request.request_id,
        outcome="completed",
        intended_s=at_s,
        sent_s=at_s,
        admitted_s=at_s,
        first_token_s=at_s + 0.1,
        end_s=at_s + 0.2,
        input_tokens_run=request.input_tokens,
        output_tokens_run=request.output_tokens,
    )
    return replace(record, **changes)


def flight(request_id: str = "a", **changes: Any) -> InFlight:
    made = InFlight(
        request_id=request_id, kv_used_bytes=10_000, kv_reserved_bytes=16_000, tokens=10
    )
    return replace(made, **changes)


def segment(kind: SegmentKind = "step", **changes: Any) -> Segment:
    """A step of 0.1 s that peaked 2 MiB over what stayed resident, 1 MiB over idle."""
    made = Segment(
        engine_start=0,
        kind=kind,
        start_s=0.0,
        end_s=0.1,
        peak={"host.hwm": IDLE_BYTES + 3 * MIB},
        gauges={"host.rss": IDLE_BYTES + MIB, "engine.kv_blocks": MIB},
    )
    return replace(made, **changes)


def end(**changes: Any) -> RunEnd:
    made = RunEnd(
        reason="finished", ended_s=1.0, client_cpu_s=0.1, client_peak_bytes=MIB, samples=0
    )
    return replace(made, **changes)


def samples(*resident_bytes: int, period_s: float = 0.1) -> tuple[Sample, ...]:
    return tuple(
        Sample(t_s=number * period_s, values={"host.rss": bytes_})
        for number, bytes_ in enumerate(resident_bytes)
    )


def recording(**changes: Any) -> Recording:
    """One engine, one completed request, one step with it in flight; nothing about it is doubtful."""
    only = request()
    made = Recording(
        path="runs/tiny",
        header=header(),
        engines=(engine(),),
        requests=(only,),
        outcomes={only.request_id: completed(only)},
        segments=(segment(in_flight=(flight(),), prefill_tokens=10),),
        samples=(),
        planted=(),
        findings=(),
        end=end(),
    )
    return replace(made, **changes)


def scripted(*, script: dict[str, Any] | None = None, **settings: Any) -> Deployment:
    """10 MiB of weights, 5 MiB of runtime, 1000 B a KV token; 1000 prompt tokens/s, 20 ms a decode."""
    plain = {
        "weights": "10MiB",
        "runtime": "5MiB",
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "prefill_tokens_per_s": 1000.0,
        "decode_s_per_step": "20ms",
        "activation_bytes_per_token": 100,
        "vocab_tokens": 100,
        "context_tokens": 1000,
    }
    return Deployment(
        name="tiny",
        engine="scripted",
        settings=Settings(
            **{
                "device": "cpu",
                "max_requests": 4,
                "max_kv_tokens": 1600,
                "max_batch_tokens": 64,
                **settings,
            }
        ),
        classes=CLASSES,
        script=Script.model_validate({**plain, **(script or {})}),
    )


def quality(**changes: Any) -> Quality:
    """Nearly the reference's answers over 1,000 positions."""
    made = Quality(
        text="quality_text.txt",
        text_sha256="cd" * 32,
        reference="the same model in fp32",
        tokens=1000,
        perplexity=10.1,
        reference_perplexity=10.0,
        top1_same=980,
        kl_mean=0.002,
        kl_p99=0.01,
        answers=8,
        answer_tokens=32,
        same_answers=5,
        same_tokens=200,
        kl_by_position=(0.001, 0.003) * 500,
        lost_by_position=(0.03, -0.01) * 500,
    )
    return replace(made, **changes)
