"""A capacity and costs of round numbers."""

from __future__ import annotations

from memplan.plan.capacity import Capacity, ClassLoad
from memplan.plan.nodes import parse_nodes
from memplan.units import GIB

COLUMNS = (
    "provider,instance,kind,region,vcpu,mem_gib_nominal,mem_gib_measured_or_allocatable,mem_note,"
    "gpu,gpu_count,gpu_mem_mib_each,usd_h_ondemand,usd_h_1y,usd_h_3y,usd_h_spot,source_price,"
    "source_shape,date"
)
(NODE,) = parse_nodes(
    f"{COLUMNS}\ngcp,n2,cpu,us,64,100,,,,0,,10.0,8.0,,4.0,price list,shape list,2026-07-30\n",
    "nodes.csv",
)
CAPACITY = Capacity(
    deployment="d",
    variant="base",
    node=NODE,
    replicas=4,
    limited_by="memory",
    private_bytes=20 * GIB,
    shared_bytes=GIB,
    usable_bytes=90 * GIB,
    overflow=0.0,
    overflow_upper=0.01,
    method="by hand",
    evidence="measured",
    classes=(
        ClassLoad(
            name="short",
            requests_per_s=4,
            input_tokens_per_s=400,
            cached_tokens_per_s=0,
            output_tokens_per_s=40,
            resident_mean_bytes=GIB,
        ),
        ClassLoad(
            name="long",
            requests_per_s=1,
            input_tokens_per_s=600,
            cached_tokens_per_s=100,
            output_tokens_per_s=10,
            resident_mean_bytes=3 * GIB,
        ),
    ),
)
"""A node serves 20 requests/s."""
