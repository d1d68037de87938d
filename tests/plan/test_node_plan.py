"""What limits replicas on a node, device memory included; no GPU was there, only its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import NODE

from memplan.plan.density import ReplicaNeed
from memplan.plan.node_memory import path_of
from memplan.plan.nodes import NodeSpec
from memplan.plan.plan import Asked, NodePlan, node_plan
from memplan.stats.summarise import summarise
from memplan.units import GIB, MIB
from tests import builders

HOST = replace(NODE, vcpu=1000, memory_nominal_bytes=100 * GIB)
GPUS = replace(
    HOST, kind="gpu", gpu="L4", gpu_count=8, gpu_memory_bytes_each=24 * GIB, instance="g6"
)


def planned(node: NodeSpec, *, gpu_peak_bytes: int | None, private_bytes: int) -> NodePlan | None:
    recording = builders.recording(
        segments=tuple(
            builders.segment(
                start_s=0.25 * at,
                end_s=0.25 * (at + 1),
                peak={"host.hwm": private_bytes},
                gauges={"host.rss": private_bytes - MIB},
                in_flight=(builders.flight(),),
                prefill_tokens=10,
            )
            for at in range(400)
        )
    )
    return node_plan(
        summarise(recording),
        recording,
        node,
        path=path_of(recording, 0),
        files=0,
        need=ReplicaNeed(
            private_peak_bytes=private_bytes,
            shared_bytes=0,
            threads=None,
            gpu_peak_bytes=gpu_peak_bytes,
        ),
        model=None,
        asked=Asked(overflow=1e-4, headroom_ratio=0.1),
    )


def test_device_memory_limits_each_gpu_for_itself() -> None:
    # 21.6 GiB of each GPU are usable: two of 10 GiB, on eight GPUs; the host would hold 90.
    made = planned(GPUS, gpu_peak_bytes=10 * GIB, private_bytes=GIB)
    assert made is not None
    assert (made.capacity.replicas, made.capacity.limited_by) == (16, "gpu_memory")
    assert made.by_gpu == 16
    assert made.by_path == 90
    assert (made.overflow.share, made.next_overflow) == (0, 1), "a 17th is over all the time"
    assert "device memory is counted by the peak of each replica" in made.capacity.method


def test_host_memory_can_limit_a_node_with_gpus() -> None:
    made = planned(GPUS, gpu_peak_bytes=10 * GIB, private_bytes=20 * GIB)
    assert made is not None
    assert (made.capacity.replicas, made.capacity.limited_by) == (4, "memory")
    assert made.by_gpu == 16


def test_a_gpu_too_small_for_one_replica_holds_none() -> None:
    made = planned(GPUS, gpu_peak_bytes=22 * GIB, private_bytes=GIB)
    assert made is not None
    assert (made.capacity.replicas, made.capacity.limited_by) == (0, "gpu_memory")


@pytest.mark.parametrize(
    ("node", "gpu_peak_bytes"),
    [
        (HOST, 10 * GIB),
        (GPUS, None),
        (replace(GPUS, gpu_memory_bytes_each=None), 10 * GIB),
        (replace(GPUS, gpu_count=None), 10 * GIB),
    ],
    ids=["no GPU", "a GPU for nothing", "memory unknown", "count unknown"],
)
def test_what_does_not_match_or_is_unknown_is_no_plan(
    node: NodeSpec, gpu_peak_bytes: int | None
) -> None:
    assert planned(node, gpu_peak_bytes=gpu_peak_bytes, private_bytes=GIB) is None


def test_without_gpus_nothing_is_said_of_them() -> None:
    made = planned(HOST, gpu_peak_bytes=None, private_bytes=GIB)
    assert made is not None
    assert made.by_gpu is None
    assert "device" not in made.capacity.method
