"""The KV pool as a segment's gauges tell of it: which blocks have pages, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping

_WITH_PAGES = ("engine.kv_blocks", "engine.kv_kept", "engine.kv_leaving")


def pool_bytes(gauges: Mapping[str, int]) -> int:
    """Blocks that running requests hold, those kept for who may come, and those that hold nothing any
    more and were not given back yet."""
    return sum(gauges.get(name, 0) for name in _WITH_PAGES)


def kv_parts_of(
    kv_bytes: int, gauges: Mapping[str, int], *, is_reserved: bool = False
) -> Mapping[str, int]:
    """What ``kv_bytes`` of the pool consist of; empty where blocks are neither shared nor kept.

    What is shared or kept is counted in whole blocks, which are full; the rest is of one request each.
    ``is_reserved``: all of the pool has pages, used or not.
    """
    if "engine.kv_kept" not in gauges:
        return {}
    counted = {
        "of several requests": gauges.get("engine.kv_shared", 0),
        "kept, of no request": gauges["engine.kv_kept"],
        "on its way back": gauges.get("engine.kv_leaving", 0),
        "unused": max(0, kv_bytes - pool_bytes(gauges)) if is_reserved else 0,
    }
    parts: dict[str, int] = {}
    rest = kv_bytes
    for name, size in counted.items():
        parts[name] = min(size, rest)
        rest -= parts[name]
    found = {"of one request": rest, **parts}
    return {name: size for name, size in found.items() if size}
