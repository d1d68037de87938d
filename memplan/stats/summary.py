"""A recording in, one RunSummary out: what each request class cost in memory, and what that rests on.

It holds no opinion about money or nodes, reads no file, and never invents a percentile: one that
the run cannot support is None and leaves a Finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from memplan.records import Finding, Quality
from memplan.stats.degradations import Degraded
from memplan.stats.quality import QualityFigures
from memplan.stats.truths import RunTruths

IntervalBasis = Literal["ranks", "blocks", "replays"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """One percentile with its interval; ``value`` None means withheld, see the findings."""

    p: float
    """0..1"""
    value: float | None
    low: float | None
    high: float | None
    """Two-sided 95 % bounds; None where the sample holds no such bound."""
    basis: IntervalBasis | None = None
    """Which of the intervals found was the widest; None where there is none."""
    replays_low: float | None = None
    replays_high: float | None = None
    """Between replays of this same trace: what the machine alone varies. None of one replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """p50, p95, p99 and the largest value seen, over ``n`` requests, by ``method``."""

    n: int
    """Requests of one replay, not samples; one that was replayed five times counts once."""
    method: str
    p50: Quantile
    p95: Quantile
    p99: Quantile
    peak: float | None
    """The largest value observed: an observation of this run, not a statistic."""
    excursions: int | None = None
    """How often a replay went above the p99 independently; None where requests are the unit."""
    replays: int = 1
    """Whole replays of the trace behind the figures."""
    block_s: float | None = None
    """Seconds of the trace that count as one independent unit of the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceMemory:
    """Memory of one class in one place: ``cpu`` (host) or ``gpu``. All values are bytes."""

    co_resident: Percentiles
    """The process's resident bytes while at least one request of the class was in flight, by time."""
    co_resident_by_request: Percentiles
    """The process's largest resident bytes while a request was in flight, one value a request."""
    attributed: Percentiles
    """Each request's own KV and its share of activations and of reserved, unused KV, at its peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One thing that requests of a class waited for in the engine's queue."""

    reason: str
    requests: int
    """Those that waited for it."""
    total_s: float
    waited_s: Percentiles
    """Of those requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAdmission:
    """How the requests of a class came into the engine, and what sharing and making way came to.

    Counts are of all replays. A request that never entered has no known wait.
    """

    entered: int
    waited_s: Percentiles
    """In the queue, for everything, of every request that entered; 0 for one that did not wait."""
    waits: tuple[Wait, ...]
    """What took the most time first."""
    rejected: Mapping[str, int]
    """Reason → requests that the engine did not take."""
    shortened: int
    """Requests that were answered with fewer tokens than they asked for."""
    shortened_tokens: int
    """Output tokens that they did not get."""
    preempted: int
    """Requests that had to make way after they had entered."""
    preemptions: int
    prompt_tokens: int
    """Of all that entered."""
    shared_tokens: int
    """Of these, tokens whose KV was there already."""
    pulled_back: int
    """Requests for which KV came back from the offload tier."""
    pulled_back_bytes: int
    pull_back_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMost:
    """The most bytes of KV blocks at once while serving, each at its own time; None where the engine
    neither shares nor keeps blocks."""

    held_bytes: int
    """By running requests, whole blocks, each counted once."""
    shared_bytes: int | None
    """Of them, by several."""
    kept_bytes: int | None
    """By nobody, for who may come."""
    offloaded_bytes: int | None
    """In the offload tier, which is not in the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """What it cost that not all weights stay in memory."""

    steps: int
    bytes_per_step: float
    s_per_step: float
    """That a step waited for them, or gave them back."""
    ratio: float
    """Of the time of all steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAdmission:
    """What the engine's memory policy did in the whole run."""

    kv: KvMost | None
    """None where the engine does not say."""
    streaming: Streaming | None
    """None where all weights stay."""
    degraded: Degraded | None
    """None where nothing is to be given up when memory is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    name: str
    rule: str
    requests: int
    completed: int
    failed: int
    rejected: int
    cancelled: int
    """Their users gave up, as the trace says."""
    unfinished: int
    not_sent: int
    reasons: Mapping[str, int]
    """Why requests failed or were rejected."""
    input_tokens: Percentiles
    output_tokens: Percentiles
    cpu: PlaceMemory
    gpu: PlaceMemory | None
    ttft_s: Percentiles
    tpot_s: Percentiles
    e2e_s: Percentiles
    """From the intended send time, so that a late sender does not flatter the engine."""
    admission: ClassAdmission | None = None
    """None in a summary made without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Where the peak went. The parts and ``unexplained_bytes`` add up to ``total_bytes``."""

    place: str
    """``cpu`` or ``gpu``"""
    total_bytes: int
    at_s: float
    """When the segment that holds the peak closed."""
    weights_bytes: int
    kv_bytes: int
    activations_bytes: int
    runtime_bytes: int
    allocator_slack_bytes: int
    page_cache_bytes: int
    unexplained_bytes: int
    method: str
    runtime_parts: Mapping[str, int] = field(default_factory=dict)
    """What ``runtime_bytes`` is the sum of; empty where it is a difference."""
    kv_parts: Mapping[str, int] = field(default_factory=dict)
    """What ``kv_bytes`` is the sum of; empty where blocks are neither shared nor kept."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """Live tensors at the instant of their own peak in the same segment, by the part of the model that
    made them; weights left out."""
    peak_module: str | None = None
    """The module that was running at that instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSlope:
    """By how many bytes resident memory falls for each byte of KV cache given back: 1 if KV is
    accounted for, and a test of the attribution by a source that it does not use."""

    slope: float
    low: float
    high: float
    """95 % bounds."""
    n: int
    """Times that KV was given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFigures:
    """Of what was in flight, weighted by time."""

    mean: float
    p50: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFit:
    """One quantity in flight, as the reference has it and as the replay reached it."""

    name: str
    reference: StateFigures
    reached: StateFigures
    w1_ratio: float | None
    """Wasserstein-1 distance over the reference's mean; None where that is zero."""
    reference_curve: tuple[float, ...]
    """Quantiles at even steps, the last the largest; ``reached_curve`` likewise."""
    reached_curve: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFit:
    """How near a replay came to what the trace's own fleet had in flight."""

    reference: str
    is_paced: bool
    windows: tuple[str, ...]
    judged_s: float
    """Of the run."""
    running: StateFit
    kv_tokens: StateFit | None
    """In tokens of the trace; None where the engine tells no KV bytes per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How well the replay kept the schedule."""

    schedule_lag_s: Percentiles
    peak_in_flight: int
    dilation: float
    length_scale: float
    recyclings: int = 0
    """Engines stopped on purpose after so many requests, and replaced."""
    recycling_s: float = 0.0
    """Seconds without an engine because of them, in all; they are inside the latencies."""
    recycled_after: Mapping[str, int] = field(default_factory=dict)
    """How many of them for which limit: ``requests`` or ``bytes``."""
    against_reference: ReferenceFit | None = None
    """None without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUse:
    """A LoRA adapter in one run."""

    name: str
    requests: int
    waited: int
    """Of them, those in front of whose steps it had to be loaded."""
    longest_load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemand:
    """What an engine loads when it is first needed."""

    adapters: tuple[AdapterUse, ...]
    """Those that requests named."""
    adapters_peak_bytes: int | None
    """Resident at the end of a segment, the most; None where the engine has none."""
    tokenizer_bytes: int | None
    """What resident memory grew by while it was loaded; None where it was not."""
    tokenizer_load_s: float | None
    """What the first request waited for it; None where none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Python's collections of reference cycles inside the engine; in the latencies."""

    collections: int
    total_s: float
    longest_s: float
    """In one segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What measuring cost, none of it inside the figures above."""

    client_cpu_s: float | None
    client_peak_bytes: int | None
    segment_median_s: float | None
    """What closing one segment cost the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessSummary:
    """What the 1 kHz sampler read, and how well it kept its pace."""

    n: int
    gap_p50_s: float | None
    """Between two readings of one engine start; None below two readings."""
    gap_p99_s: float | None
    gap_max_s: float | None
    max_bytes: int | None
    """The most that it read, of the engine's process tree."""
    policy: str | None
    """How the kernel scheduled it."""
    cpu_s: float | None
    """Its own CPU time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A time that was measured ``n`` times."""

    n: int
    median_s: float
    low_s: float
    high_s: float
    """Of a few, the smallest and the largest; of steps, the 95 % bounds of their median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloCost:
    """What one request of a class added when it ran alone in a fresh process (from a profile)."""

    class_name: str
    input_tokens: int
    output_tokens: int
    n: int
    median_bytes: float
    min_bytes: float
    max_bytes: float
    kv_bytes: int
    """The formula's KV bytes for its tokens, to hold against the measurement."""
    place: str
    ttft: Timed | None = None
    """Time to the first token, in fresh processes, after the warm-up."""
    tpot: Timed | None = None
    """Time per further token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the profile's ladder, in the order it ran."""

    wave: str
    requests: int
    tokens_per_request: int
    idle_bytes: int
    peak_bytes: int
    kv_bytes: int
    e2e_s: float | None
    place: str
    completed: int | None = None
    """Of its requests."""
    output_tokens_per_s: float | None = None
    """From its first send to its last end, prompts included; None unless all requests completed."""
    decode_step: Timed | None = None
    """Steps in which all its requests decoded and nothing else ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What a profile's run says of its variant, beside memory and time."""

    settings: Mapping[str, object]
    """As they were applied, every default filled in, in plain JSON values."""
    stack_step: int | None
    """From 1, where it is a step of the stack."""
    weights_bytes: int | None
    """Parameters as stored."""
    kv_bytes_per_token: int | None
    idle_bytes: float | None
    """Median over engine starts, in the place where the model is."""
    idle_low_bytes: float | None
    idle_high_bytes: float | None
    """The smallest and the largest of them: how far fresh processes of one variant differ."""
    idle_n: int
    drift_bound_bytes: int
    """A peak may be too low by this much."""
    longest_tokens: int | None = None
    """``--longest``: no prompt was longer."""


NOT_THE_TRACE = "not_the_trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One recording, summarised."""

    path: str
    kind: str
    run_id: str
    deployment_name: str
    variant: str
    idle_bytes: int | None
    """Host resident bytes with nothing in flight."""
    peak_bytes: int | None
    """Host: the largest of all segments' exact peaks and of all samples."""
    gpu_idle_bytes: int | None
    gpu_peak_bytes: int | None
    load_peak_bytes: int | None
    shared_bytes: int
    """Mapped weights that replicas on one node hold once."""
    classes: tuple[ClassSummary, ...]
    attribution: Attribution | None
    gpu_attribution: Attribution | None
    solo: tuple[SoloCost, ...]
    rungs: tuple[Rung, ...]
    fidelity: Fidelity | None
    overhead: Overhead
    completed_per_s: float | None
    """Completed requests over the time from the first send to the last end."""
    output_tokens_per_s: float | None
    duration_s: float
    findings: tuple[Finding, ...]
    witness: WitnessSummary | None = None
    """None where no 1 kHz sampler ran."""
    truths: RunTruths | None = None
    """The same memory by five definitions; None where no real engine ran."""
    kv_slope: KvSlope | None = None
    """None where too little KV was given back, or the pool is resident from the start."""
    quality: Quality | None = None
    """None where it was not measured."""
    on_demand: OnDemand | None = None
    """None where the engine has no adapters and no tokenizer."""
    garbage: Garbage | None = None
    """None where it was not counted."""
    quality_figures: QualityFigures | None = None
    """How sure they are."""
    variant_facts: VariantFacts | None = None
    """None for a replay."""
    admission: RunAdmission | None = None
    """None where no engine served."""

    @property
    def is_paced(self) -> bool:
        """Whether answers were held to a reference's pace, which latencies then are."""
        fit = self.fidelity.against_reference if self.fidelity is not None else None
        return fit is not None and fit.is_paced

    @property
    def not_the_trace(self) -> Finding | None:
        """That what was in flight was too far from the reference for any figure to be the trace's."""
        return next((one for one in self.findings if one.code == NOT_THE_TRACE), None)
