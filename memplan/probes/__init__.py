"""The probe seam: something outside the engine that reads how much memory it holds right now.

Probes sample; they can miss a peak and never reset one. Exact peaks come with the engine's segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from memplan.records import EngineFacts

if TYPE_CHECKING:
    from memplan.specs import Deployment


class Probe(Protocol):
    def attach(self, facts: EngineFacts) -> None:
        """Follows this engine from now on."""
        ...

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        """Gauges by name: bytes, but for the few counters that docs/how-it-measures.md lists.

        ``is_quiet`` says that nothing is in flight: only then is read what stalls the engine. Empty
        when there is nothing to read any more; never raises.
        """
        ...


def open_probes(deployment: Deployment) -> tuple[Probe, ...]:
    """The probes that fit a deployment, not yet attached."""
    if deployment.engine == "scripted":
        from memplan.probes.scripted import ScriptedProbe

        assert deployment.script is not None
        held = deployment.script.weights_bytes + deployment.script.runtime_bytes
        return (ScriptedProbe([{"host.rss": held, "host.anon": held}]),)
    from memplan.probes.cgroup import CgroupProbe
    from memplan.probes.host import HostProbe
    from memplan.probes.nvml import NvmlProbe

    memory = deployment.server.memory if deployment.server else None
    cgroup = CgroupProbe(memory.cgroup if memory else None)
    if memory is None or memory.prometheus is None:
        return (HostProbe(), cgroup, NvmlProbe())
    from memplan.probes.prometheus import PrometheusProbe

    return (HostProbe(), cgroup, NvmlProbe(), PrometheusProbe(memory.prometheus))
