"""What memplan's side knows of an engine start and the engine does not: its charges, its cold files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from memplan.cgroups import Group, GroupMemory
from memplan.page_cache import cached_bytes
from memplan.procfs import proportional_bytes
from memplan.records import EngineFacts

OF_SERVING = "of serving: set back when the engine was ready"
OF_LIFE = "of the engine's whole life: this kernel cannot set it back"
NOT_KEPT = "not kept by this kernel"


def weight_files_state(files: tuple[Path, ...]) -> Mapping[str, int]:
    """Bytes of the weight files, and of them in the page cache; to be read before the engine starts.

    Without ``engine.weight_files_cached`` where the kernel does not say; empty without files.
    """
    if not files:
        return {}
    state = {"engine.weight_files": sum(path.stat().st_size for path in files)}
    cached = cached_bytes(files)
    return state if cached is None else {**state, "engine.weight_files_cached": cached}


def with_weight_files(facts: EngineFacts, state: Mapping[str, int]) -> EngineFacts:
    return replace(facts, start={**facts.start, **state})


def with_proportional(facts: EngineFacts) -> EngineFacts:
    """Of an engine that is ready and idle; left out where the kernel does not say, or where the engine
    has processes beside those that it names."""
    if facts.idle.get("host.processes", 1) > len(facts.pids):
        return facts
    with contextlib.suppress(ProcessLookupError):
        parts = [proportional_bytes(pid) for pid in facts.pids]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts):
            return replace(facts, idle={**facts.idle, "host.pss": sum(known)})
    return facts


def with_charges(facts: EngineFacts, group: Group) -> EngineFacts:
    """Of an engine that is ready and idle: the charged load peak and what is charged at rest.

    Ends the mark of loading: from here on the group's peak is that of serving.
    """
    charged: dict[str, int] = {}
    with contextlib.suppress(OSError):  # the engine has just died, and poll will say so
        memory = GroupMemory(group.place)
        charged = {**memory.read_charge(), **memory.read_detail()}
        memory.close()
    load_peak_bytes = charged.pop("cgroup.peak", None)
    was_reset = group.end_loading()
    if load_peak_bytes is None:
        return replace(
            facts,
            idle={**facts.idle, **charged},
            settings={**facts.settings, "charged_peak": NOT_KEPT},
        )
    return replace(
        facts,
        idle={**facts.idle, **charged},
        load_peak={**facts.load_peak, "cgroup.peak": load_peak_bytes},
        settings={**facts.settings, "charged_peak": OF_SERVING if was_reset else OF_LIFE},
    )
