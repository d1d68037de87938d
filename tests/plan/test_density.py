from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.plan.density import ReplicaNeed, density_of, need_of
from memplan.plan.nodes import NodeSpec
from memplan.stats.summary import Overhead, RunSummary
from memplan.units import GIB

NODE = NodeSpec(
    provider="aws",
    instance="r8g.24xlarge",
    kind="cpu",
    region="us-east-1",
    vcpu=96,
    memory_nominal_bytes=100 * GIB,
    memory_measured_bytes=None,
    memory_note=None,
    gpu=None,
    gpu_count=0,
    gpu_memory_bytes_each=None,
    usd_per_h_on_demand=5.0,
    usd_per_h_1y=None,
    usd_per_h_3y=None,
    usd_per_h_spot=None,
    price_source="prices",
    shape_source="shapes",
    date="2026-07-20",
)
GPU_NODE = replace(
    NODE, kind="gpu", gpu="l4", gpu_count=2, gpu_memory_bytes_each=20 * GIB, vcpu=1000
)
NEED = ReplicaNeed(private_peak_bytes=2 * GIB, shared_bytes=GIB, threads=None, gpu_peak_bytes=None)
SUMMARY = RunSummary(
    path="runs/a",
    kind="replay",
    run_id="a",
    deployment_name="d",
    variant="base",
    idle_bytes=GIB,
    peak_bytes=3 * GIB,
    gpu_idle_bytes=None,
    gpu_peak_bytes=None,
    load_peak_bytes=4 * GIB,
    shared_bytes=GIB,
    classes=(),
    attribution=None,
    gpu_attribution=None,
    solo=(),
    rungs=(),
    fidelity=None,
    overhead=Overhead(client_cpu_s=None, client_peak_bytes=None, segment_median_s=None),
    completed_per_s=None,
    output_tokens_per_s=None,
    duration_s=1.0,
    findings=(),
)


def test_shared_weights_are_held_once_and_the_headroom_is_kept_free() -> None:
    density = density_of(NEED, NODE, headroom_ratio=0.10)
    assert density is not None
    assert density.usable_bytes == 90 * GIB
    assert density.replicas == 44
    assert density.used_bytes == 89 * GIB
    assert density.limited_by == "memory"
    assert density.is_nominal


def test_threads_limit_before_memory_does_where_they_are_known() -> None:
    density = density_of(replace(NEED, threads=4), NODE)
    assert density is not None
    assert (density.replicas, density.limited_by) == (24, "vcpu")


def test_a_replica_lives_on_one_gpu_and_leftovers_of_two_hold_no_third() -> None:
    density = density_of(replace(NEED, gpu_peak_bytes=7 * GIB), GPU_NODE)
    assert density is not None
    assert (density.replicas, density.limited_by) == (4, "gpu_memory")


def test_what_does_not_fit_is_zero_replicas_and_no_error() -> None:
    weights = density_of(replace(NEED, shared_bytes=200 * GIB), NODE)
    on_cpu = density_of(replace(NEED, gpu_peak_bytes=GIB), NODE)
    assert weights is not None
    assert on_cpu is not None
    assert (weights.replicas, weights.limited_by, weights.used_bytes) == (0, "memory", 0)
    assert (on_cpu.replicas, on_cpu.limited_by) == (0, "gpu_memory")


@pytest.mark.parametrize("blank", [{"gpu_count": None}, {"gpu_memory_bytes_each": None}])
def test_gpu_memory_that_the_catalog_does_not_hold_is_not_guessed(
    blank: dict[str, None],
) -> None:
    node = replace(GPU_NODE, **blank)
    assert density_of(replace(NEED, gpu_peak_bytes=GIB), node) is None
    assert density_of(NEED, node) is not None


@pytest.mark.parametrize(
    ("need", "named"),
    [
        (replace(NEED, private_peak_bytes=0), "private peak in bytes: got 0"),
        (replace(NEED, threads=0), "threads: got 0"),
        (replace(NEED, gpu_peak_bytes=-1), "GPU peak in bytes: got -1"),
    ],
)
def test_a_need_that_cannot_be_is_refused(need: ReplicaNeed, named: str) -> None:
    with pytest.raises(InputError, match=named):
        density_of(need, NODE)


@pytest.mark.parametrize("headroom_ratio", [-0.1, 1.0])
def test_a_headroom_outside_the_node_is_refused(headroom_ratio: float) -> None:
    with pytest.raises(InputError, match="headroom: got"):
        density_of(NEED, NODE, headroom_ratio=headroom_ratio)


def test_a_replica_needs_its_largest_peak_less_what_replicas_share() -> None:
    need = need_of(SUMMARY, threads=2)
    assert need == ReplicaNeed(
        private_peak_bytes=3 * GIB, shared_bytes=GIB, threads=2, gpu_peak_bytes=None
    )


def test_a_run_without_a_peak_gives_no_need() -> None:
    assert need_of(replace(SUMMARY, peak_bytes=None), threads=2) is None


needs = st.builds(
    ReplicaNeed,
    private_peak_bytes=st.integers(1, 2**42),
    shared_bytes=st.integers(0, 2**42),
    threads=st.none() | st.integers(1, 256),
    gpu_peak_bytes=st.none() | st.integers(1, 2**38),
)
nodes = st.builds(
    replace,
    st.sampled_from((NODE, GPU_NODE)),
    memory_nominal_bytes=st.integers(1, 2**43),
    memory_measured_bytes=st.none() | st.integers(1, 2**43),
    vcpu=st.integers(1, 512),
)


@given(need=needs, node=nodes, headroom_ratio=st.floats(0, 0.99))
def test_replicas_are_never_negative_and_never_use_more_than_is_usable(
    need: ReplicaNeed, node: NodeSpec, headroom_ratio: float
) -> None:
    density = density_of(need, node, headroom_ratio=headroom_ratio)
    assert density is not None
    assert density.replicas >= 0
    assert 0 <= density.used_bytes <= density.usable_bytes <= node.memory_bytes


@given(need=needs, node=nodes, more_bytes=st.integers(0, 2**42))
def test_more_memory_never_holds_fewer(need: ReplicaNeed, node: NodeSpec, more_bytes: int) -> None:
    larger = replace(node, memory_measured_bytes=node.memory_bytes + more_bytes)
    before, after = density_of(need, node), density_of(need, larger)
    assert before is not None
    assert after is not None
    assert before.replicas <= after.replicas


@given(need=needs, node=nodes, more_bytes=st.integers(0, 2**42))
def test_a_larger_replica_never_fits_more_often(
    need: ReplicaNeed, node: NodeSpec, more_bytes: int
) -> None:
    larger = replace(need, private_peak_bytes=need.private_peak_bytes + more_bytes)
    before, after = density_of(need, node), density_of(larger, node)
    assert before is not None
    assert after is not None
    assert after.replicas <= before.replicas


@given(need=needs, node=nodes)
def test_one_more_replica_would_not_fit(need: ReplicaNeed, node: NodeSpec) -> None:
    density = density_of(need, node)
    assert density is not None
    one_more = density.replicas + 1
    stops = {
        "memory": need.shared_bytes + one_more * need.private_peak_bytes > density.usable_bytes,
        "vcpu": one_more * (need.threads or 0) > node.vcpu,
        "gpu_memory": need.gpu_peak_bytes is not None,
    }
    assert stops[density.limited_by]
