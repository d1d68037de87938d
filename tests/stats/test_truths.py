"""Each truth by hand: what is in it, what is not, and what stays unknown."""

from dataclasses import replace

from builders import IDLE_BYTES, engine, recording, segment

from memplan.records import EngineFacts, Recording, Sample, Segment
from memplan.stats.truths import RunTruths, truths_at, truths_of
from memplan.units import MIB

AT_REST = {
    "host.rss": 500 * MIB,
    "host.file": 300 * MIB,
    "host.shmem": 10 * MIB,
    "host.page_tables": 2 * MIB,
    "host.swap": 5 * MIB,
    "host.pss": 350 * MIB,
    "cgroup.current": 400 * MIB,
    "cgroup.inactive_file": 150 * MIB,
    "cgroup.file": 215 * MIB,
    "cgroup.shmem": 15 * MIB,
    "cgroup.kernel": 3 * MIB,
}
PEAK_BYTES = IDLE_BYTES + 3 * MIB


def real(**changes: object) -> EngineFacts:
    facts: dict[str, object] = {
        "engine": "torch",
        "idle": {**AT_REST, "engine.weight_files_resident": 256 * MIB},
        "settings": {"cgroup": "v1, of the engine alone", "charged_peak": "of serving"},
    }
    return engine(**{**facts, **changes})


def of(run: Recording) -> RunTruths:
    found = truths_of(run, run.segments)
    assert found is not None
    return found


def served(*samples: Sample, **changes: object) -> Recording:
    gauges = {"host.rss": PEAK_BYTES, "host.file": 30 * MIB, "host.page_tables": MIB}
    made = recording(
        engines=(real(),), segments=(segment(gauges=gauges, end_s=1.0),), samples=samples
    )
    return replace(made, **changes)


def test_at_rest_every_truth_is_what_its_definition_says() -> None:
    found = truths_at(AT_REST, real())
    assert found.resident_bytes == 500 * MIB
    assert found.proportional_bytes == 350 * MIB
    assert found.charged_bytes == 400 * MIB
    assert found.working_set_bytes == 250 * MIB
    # resident, 2 of page tables, 5 swapped out, 5 of tmpfs that nothing maps
    assert found.demand_alone_bytes == 512 * MIB
    assert found.demand_shared_bytes == 256 * MIB
    assert found.demand_libraries_bytes == 44 * MIB
    assert found.charged_less_demand_bytes == -112 * MIB
    assert found.other_kernel_bytes == MIB
    assert found.file_balance_bytes == -100 * MIB


def test_further_replicas_bring_their_private_part_only() -> None:
    found = truths_at(AT_REST, real())
    assert found.demand_private_bytes == 212 * MIB
    assert found.demand_of_replicas(1) == found.demand_alone_bytes
    assert found.demand_of_replicas(3) == (3 * 212 + 256 + 44) * MIB


def test_weights_read_into_memory_are_private() -> None:
    read = real(idle={**AT_REST, "engine.weight_files_resident": 0})
    found = truths_at(AT_REST, read)
    assert (found.demand_shared_bytes, found.demand_libraries_bytes) == (0, 300 * MIB)


def test_weight_pages_evicted_since_idle_are_not_shared_any_more() -> None:
    found = truths_at({**AT_REST, "host.file": 200 * MIB}, real())
    assert (found.demand_shared_bytes, found.demand_libraries_bytes) == (200 * MIB, 0)


def test_unknown_stays_unknown() -> None:
    found = truths_at({"host.rss": 500 * MIB}, real())
    assert found.resident_bytes == 500 * MIB
    assert found.proportional_bytes is found.charged_bytes is found.working_set_bytes is None
    assert found.demand_alone_bytes is found.demand_of_replicas(2) is None
    assert found.charged_less_demand_bytes is found.file_balance_bytes is None


def test_the_peak_is_of_the_segment_the_mark_and_the_largest_working_set() -> None:
    found = of(
        served(
            Sample(t_s=0.2, values={"cgroup.peak": 90 * MIB, "cgroup.current": 90 * MIB}),
            Sample(
                t_s=0.4,
                values={
                    "cgroup.peak": 95 * MIB,
                    "cgroup.current": 80 * MIB,
                    "cgroup.inactive_file": 30 * MIB,
                    "cgroup.shmem": 4 * MIB,
                },
            ),
            Sample(t_s=0.6, values={"cgroup.current": 60 * MIB, "cgroup.inactive_file": 5 * MIB}),
        )
    ).peak
    assert found is not None
    assert found.resident_bytes == PEAK_BYTES
    assert found.proportional_bytes is None
    assert found.charged_bytes == 95 * MIB
    assert found.working_set_bytes == 55 * MIB
    assert found.demand_alone_bytes == PEAK_BYTES + MIB
    assert (found.demand_shared_bytes, found.demand_libraries_bytes) == (30 * MIB, 0)


def test_after_the_last_request_is_the_last_quiet_sample() -> None:
    quiet = Sample(t_s=0.5, values=AT_REST)
    later = Sample(t_s=0.9, values={"host.rss": 900 * MIB})
    found = of(served(quiet, later))
    assert found.after == truths_at(AT_REST, real())
    assert of(served(later)).after is None


def test_each_engine_start_has_its_own_mark_and_the_worst_one_is_shown() -> None:
    def at(t_s: float, peak_mib: int) -> Sample:
        return Sample(t_s=t_s, values={"cgroup.peak": peak_mib * MIB})

    second = real(engine_start=1, ready_s=2.0, load_peak={"host.hwm": MIB, "cgroup.peak": 70 * MIB})
    run = served(
        at(0.5, 300),
        at(2.5, 200),
        engines=(real(load_peak={"cgroup.peak": 60 * MIB}), second),
        segments=(
            segment(end_s=0.5),
            segment(engine_start=1, end_s=3.0, peak={"host.hwm": 400 * MIB}),
        ),
    )
    found = of(run)
    assert found.peak is not None
    assert found.peak.resident_bytes == 400 * MIB
    assert found.peak.charged_bytes == 200 * MIB
    assert found.charged_peak_bytes == 300 * MIB
    assert found.charged_load_peak_bytes == 70 * MIB


def test_a_run_without_a_group_says_why() -> None:
    alone = real(settings={"cgroup": "none: no permission"}, idle={"host.rss": IDLE_BYTES})
    found = of(served(engines=(alone,)))
    assert found.no_group == "no permission"
    assert found.charged_peak_bytes is found.charged_since is None
    assert of(served(engines=(real(settings={}),))).no_group == "the run says nothing of one"


def test_the_scripted_engine_has_no_truths() -> None:
    assert truths_of(recording(), recording().segments) is None
    none: tuple[EngineFacts, ...] = ()
    assert truths_of(recording(engines=none), ()) is None


def test_an_engine_that_never_served_has_no_peak() -> None:
    nothing: tuple[Segment, ...] = ()
    found = of(served(segments=nothing))
    assert found.peak is None
    assert found.idle.resident_bytes == 500 * MIB
