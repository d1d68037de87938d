"""The hinge: what a run writes and anything may read.

The measuring wing makes these values, the planning wing reads them, and neither imports the other.
All times are seconds on one monotonic clock whose zero is the start of the run; all memory is bytes.
Unknown is None; 0 means measured zero. Fields are only ever added, with a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SCHEMA = "memplan.recording/2"
GATEWAY_SCHEMA = "memplan.gateway/1"
CUDA_SNAPSHOT = "cuda_snapshot.pickle"
"""The one file of a run folder that the engine writes, beside its log: what lived on the device at its
peak, if it was asked to."""

Outcome = Literal["completed", "failed", "rejected", "cancelled", "unfinished", "not_sent"]
SegmentKind = Literal["start", "load", "warmup", "idle", "step", "release"]
"""release: between a step and the next, while finished requests' memory is given back."""
EndReason = Literal["finished", "interrupted", "engine_died"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A doubtful measurement, as a value that travels to every report."""

    code: str
    text: str
    """What was seen, and what it no longer proves."""
    hint: str
    """The next thing to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it will be sent: after classification, scaling and dilation."""

    request_id: str
    wave: str
    """Requests of a wave are sent only when the wave before has ended; a trace is one wave."""
    arrival_s: float
    """Intended send time after the start of its wave."""
    class_name: str
    input_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
    """Chained prefix blocks: equal ids mean equal leading tokens; meaningful by equality only."""
    prefix_block_tokens: int | None = None
    session_id: str | None = None
    operation: str = "chat"
    labels: Mapping[str, str] = field(default_factory=dict)
    trace_input_tokens: int | None = None
    """Lengths as the trace had them, before scaling; None for synthetic requests."""
    trace_output_tokens: int | None = None
    service_prefill_s: float | None = None
    service_e2e_s: float | None = None
    """What the reference takes for it from its arrival on, dilated as arrivals are; None without one."""
    cancel_after_s: float | None = None
    """When its user gives up, after its intended send time, dilated as arrivals are; None: never."""
    retry_of: str | None = None
    """The first of several that ask for the same; the trace lists it, or a policy asked again."""
    attempt: int = 1
    follows: str | None = None
    """Sent only when that request of its wave has ended, ``think_s`` later; None: at its arrival."""
    think_s: float = 0.0
    pace_tick_s: float | None = None
    """Its tokens come no sooner than the reference's, in ticks of this length; None: as fast as the
    engine can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What became of one request."""

    request_id: str
    outcome: Outcome
    reason: str | None = None
    """For failed and rejected: a short word such as exceeds_context, engine_died."""
    intended_s: float | None = None
    sent_s: float | None = None
    admitted_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    input_tokens_run: int = 0
    """Counted by the engine, never re-tokenised text."""
    output_tokens_run: int = 0
    output_digest: str | None = None
    """SHA-256 of the output token ids (first 16 hex digits), to compare runs without keeping text."""
    waited_s: Mapping[str, float] = field(default_factory=dict)
    """Time in the engine's queue by what was in the way, such as ``kv_pool`` or ``memory_budget``;
    ``step``: it came while a step ran, and entered at the next."""
    preemptions: int = 0
    """How often it had to make way after it was admitted."""
    shared_tokens: int = 0
    """Prompt tokens whose KV was there already, from another request."""
    pulled_back_bytes: int = 0
    """KV that came back from the offload tier for it, in ``pull_back_s``."""
    pull_back_s: float = 0.0
    """Of steps in which it had to be pulled back: others in the same step waited as long."""
    confidence: float | None = None
    """Geometric mean of the probabilities that the model gave to the tokens of its answer; None where
    nobody asked (``settings.confidence``) or the engine does not say."""
    is_shortened: bool = False
    """The queue was full: it was answered with fewer tokens than it asked for."""
    adapter: str | None = None
    """The LoRA adapter that it ran with."""
    adapter_load_s: float = 0.0
    """In front of its steps, while its adapter was loaded: others in the same step waited as long."""
    tokenizer_load_s: float = 0.0
    """It was the first request, and the tokenizer was loaded for it."""


PathOutcome = Literal["completed", "cached", "failed", "rejected", "cancelled", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One pool that a request was handed to."""

    pool: str
    sent_s: float
    end_s: float | None
    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRecord:
    """What the user of one request saw of the gateway, and which way the request went.

    Times count from the start of the run; the engines' own records hold the rest.
    """

    request_id: str
    class_name: str
    route: str | None
    """None: no route matched."""
    outcome: PathOutcome
    """cached: answered with what an equal prompt was answered before."""
    reason: str | None = None
    """For failed and rejected: that of the last attempt, or ``no_route``, ``no_room``."""
    intended_s: float
    """When it arrived at the gateway."""
    attempts: tuple[Attempt, ...] = ()
    """In their order; the last one answered, where one did."""
    first_token_s: float | None = None
    end_s: float | None = None
    waited_s: float = 0.0
    """At the gateway, for room in a pool; time in which it was put off does not count."""
    deferred_s: float = 0.0
    """For how long it was put off."""
    is_under_pressure: bool = False
    """The node was short of memory when its way was last decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayHeader:
    """What is in front of the engines of a run, and what was sent to it."""

    schema: str
    started_at: str
    deployment_name: str
    pools: tuple[str, ...]
    """Each a run folder of its own beside this file, once something was started for it."""
    gateway: Mapping[str, object]
    """Pools, routes and pressure as model.yaml has them, every default filled in."""
    workload: WorkloadFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """One request's part of one segment."""

    request_id: str
    kv_used_bytes: int
    """Bytes of KV cache holding its tokens when the segment closed. A block that several requests
    share counts for each by its share, as PSS does for pages."""
    kv_reserved_bytes: int
    """Bytes of KV cache that the engine set aside for it, used or not; shared blocks as above."""
    tokens: int
    """Tokens scheduled for it in this segment (prompt tokens read plus tokens decoded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Part of a segment that lasted longer than the longest interval without a reading."""

    end_s: float
    peak_bytes: int
    """Exact peak of host resident bytes inside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One interval of an engine's life, with the exact peak inside it.

    Segments of one engine start are contiguous. ``peak`` holds high-water marks that were reset
    when the segment opened; ``gauges`` holds plain readings when it closed.
    """

    engine_start: int
    """0 for the first engine process of the run, 1 for the next."""
    kind: SegmentKind
    start_s: float
    end_s: float
    peak: Mapping[str, int]
    gauges: Mapping[str, int]
    in_flight: tuple[InFlight, ...] = ()
    prefill_tokens: int = 0
    decode_tokens: int = 0
    close_s: float = 0.0
    """What closing this segment cost the engine: from just before ``end_s`` on, so in the time of the
    next one."""
    waiting: int = 0
    """Requests queued in the engine, not admitted, when the segment closed."""
    slices: tuple[Slice, ...] = ()
    """Empty for a short segment; otherwise contiguous, from ``start_s`` to ``end_s``, and the largest
    of their peaks is the segment's."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """Bytes of live host tensors at the exact instant of their peak in this segment, by the part of
    the model that made them; empty where they are not counted."""
    peak_module: str | None = None
    """The module that was running at that instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of the outside probes. Sampled: it can miss a peak, a segment cannot."""

    t_s: float
    values: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Readings of resident bytes by a process that does nothing else, about one a millisecond.

    It can miss a peak, as every sampler can; it is there to catch a segment that says less.
    """

    t_s: Sequence[float]
    """Ascending."""
    rss_bytes: Sequence[int]
    """Of the engine's process tree, one for each of ``t_s``."""
    period_s: float | None = None
    """The pace that it was to keep."""
    policy: Literal["real-time", "nice", "ordinary"] | None = None
    """How the kernel scheduled it."""
    cpu_s: float | None = None
    """Its own CPU time, until its last block was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedSpike:
    """An allocation of known size that a self-test made inside the engine process."""

    spike_bytes: int
    began_s: float
    """When its pages began to become resident."""
    resident_s: float
    """When all of it was resident."""
    gone_s: float
    """When giving it back began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How a variant's answers compare with those of the same model in fp32, weights and KV alike.

    The text is scored token by token, each given all before it, through the variant's own KV pool; the
    answers are continued greedily.
    """

    text: str
    """Where the text came from."""
    text_sha256: str
    reference: str
    """What it was compared with, in words."""
    tokens: int
    """Scored positions."""
    perplexity: float
    reference_perplexity: float
    top1_same: int
    """Positions at which the most likely next token is the reference's."""
    kl_mean: float
    """Of the reference's distribution from the variant's, in nats, mean over positions."""
    kl_p99: float
    answers: int
    """Prompts that were continued."""
    answer_tokens: int
    """Tokens of each answer."""
    same_answers: int
    """Answers that are the reference's, token by token."""
    same_tokens: int
    """Tokens before the first that differs, over all answers."""
    kl_by_position: tuple[float, ...] = ()
    """What ``kl_mean`` is the mean of, in the order of the text: neighbours are not independent."""
    lost_by_position: tuple[float, ...] = ()
    """By how many nats the token that follows is less likely than for the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine said of itself when it was ready; written once per engine start."""

    engine: str
    version: str
    engine_start: int
    ready_s: float
    pids: tuple[int, ...]
    device: str
    """``cpu`` or ``cuda:N``."""
    device_name: str | None = None
    vocab_tokens: int
    context_tokens: int
    max_requests: int
    kv_kind: Literal["growing", "reserved"]
    """growing: blocks are resident only once written; reserved: the pool is resident from the start."""
    kv_bytes_per_token: int
    kv_pool_tokens: int
    kv_block_tokens: int
    weights_bytes: int
    """Parameter bytes as stored by this variant."""
    weights_mapped_bytes: int
    """The part of it that is a file mapping, which replicas on one node share."""
    start: Mapping[str, int]
    """Gauges once the runtime was imported and before the model was loaded."""
    loaded: Mapping[str, int]
    """Gauges once the weights were loaded."""
    load_peak: Mapping[str, int]
    idle: Mapping[str, int]
    """Gauges after the warm-up, with nothing in flight: what a class is charged on top of."""
    load_s: float
    settings: Mapping[str, str] = field(default_factory=dict)
    """Everything else that moves bytes: dtype, threads, allocator environment, load mode."""
    predicted: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the engine itself said it would need, by part, before it needed them: its dry run."""
    recycled_s: float | None = None
    """Seconds without an engine before this one was ready, where it took the place of one that was
    stopped on purpose after so many requests (``settings.recycle_after_requests``)."""
    recycled_after: Literal["requests", "bytes"] | None = None
    """Which limit that one had reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The machine that a run was measured on."""

    hostname: str
    kernel: str
    cpu_model: str
    cpu_count: int
    memory_bytes: int
    swap_bytes: int
    python: str
    libc: str
    transparent_hugepages: str
    gpus: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFacts:
    """A part of a trace that was replayed as a wave of its own."""

    wave: str
    text: str
    """Why this one: ``around the p99 of KV``."""
    trace_start_s: float
    """After the trace's first arrival; what was sent before it, as a warm-up, is not judged."""
    trace_end_s: float
    start_s: float
    """The same, after the start of the wave, dilated."""
    end_s: float
    dilation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFacts:
    """Where the requests came from and what was done to them."""

    source: str
    format: str
    sha256: str | None
    rows_read: int
    rows_kept: int
    dropped: Mapping[str, int]
    span_s: float
    """From the first arrival to the last one kept, before dilation."""
    length_scale: float = 1.0
    dilation: float = 1.0
    class_rules: Mapping[str, str] = field(default_factory=dict)
    """Class name → the rule that names it, as text."""
    is_closed_loop: bool = False
    """Turns of a session were sent when the one before was answered."""
    retries: str | None = None
    """The policy by which what failed or was rejected was asked again, in words; None: it was not."""
    reference: str | None = None
    """Whose service times the states in flight are held against, in words; None: nobody's."""
    windows: tuple[WindowFacts, ...] = ()
    """What is held against it; empty without a reference."""
    longest_tokens: int | None = None
    """A profile was told to send no longer prompt (``--longest``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What is needed to believe a run in two years; written before anything is measured."""

    schema: str
    kind: Literal["replay", "profile"]
    run_id: str
    started_at: str
    """UTC, ISO 8601."""
    memplan_version: str
    command: tuple[str, ...]
    deployment_name: str
    variant: str
    deployment: Mapping[str, object]
    """model.yaml as it was resolved for this variant, every default filled in."""
    model_digest: str | None
    workload: WorkloadFacts
    machine: MachineFacts
    sample_period_s: float
    drift_bound_bytes: int
    """The kernel may report a high-water mark too low by at most this much (per-CPU counters)."""
    repeats: int = 1
    """How often the whole trace was replayed, each time on a fresh engine: waves ``replay 1`` …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """The last thing written; a run without it was cut off."""

    reason: EndReason
    ended_s: float
    client_cpu_s: float
    client_peak_bytes: int
    samples: int
    wall_s: float | None = None
    """The same duration by the wall clock: it differs where that was set, or the machine slept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRecording:
    """A gateway's folder, read; its pools are run folders in it."""

    path: str
    header: GatewayHeader
    requests: tuple[Request, ...]
    paths: tuple[PathRecord, ...]
    """One for every scheduled request, in the order of the schedule."""
    is_whole: bool
    """False: the run was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run folder, read."""

    path: str
    header: RunHeader
    engines: tuple[EngineFacts, ...]
    requests: tuple[Request, ...]
    """In the order of the schedule."""
    outcomes: Mapping[str, RequestRecord]
    """By request id; every scheduled request has one."""
    segments: tuple[Segment, ...]
    samples: tuple[Sample, ...]
    planted: tuple[PlantedSpike, ...]
    findings: tuple[Finding, ...]
    """Those of the run itself, and those made while reading it."""
    end: RunEnd | None
    witness: Witness | None = None
    quality: Quality | None = None
    """None where it was not measured."""
