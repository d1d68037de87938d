"""What a run tells of parts that were loaded on demand, and of collecting garbage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import completed, engine, recording, request, segment

from memplan.records import Recording, RequestRecord
from memplan.report.on_demand_facts import on_demand_facts
from memplan.report.on_demand_json import garbage_json, on_demand_json
from memplan.stats.host_parts import host_parts_of
from memplan.stats.on_demand import garbage_of, on_demand_of
from memplan.stats.summarise import summarise
from memplan.units import MIB


def ended(name: str, **changed: Any) -> RequestRecord:
    return replace(completed(request(name)), **changed)


def run_of(*records: RequestRecord, gauges: list[dict[str, int]], **idle: int) -> Recording:
    facts = engine()
    return recording(
        engines=(replace(facts, idle={**facts.idle, **idle}),),
        requests=tuple(request(one.request_id) for one in records),
        outcomes={one.request_id: one for one in records},
        segments=tuple(
            segment(gauges={"host.rss": 1, **one}, start_s=n / 10, end_s=n / 10 + 0.1)
            for n, one in enumerate(gauges)
        ),
    )


MIXED = run_of(
    ended("a", adapter="sql", adapter_load_s=0.25, tokenizer_load_s=0.5),
    ended("b", adapter="sql", adapter_load_s=0.125),
    ended("c", adapter="sql"),
    ended("d", adapter="chat", adapter_load_s=0.0625),
    ended("e"),
    ended("f", adapter="gone", outcome="rejected", reason="unknown_adapter"),
    gauges=[
        {"engine.adapters": 0, "engine.gc_us": 0, "engine.gc_runs": 0},
        {"engine.adapters": 3 * MIB, "engine.tokenizer": 20 * MIB, "engine.gc_us": 3000,
         "engine.gc_runs": 2},
        {"engine.adapters": 2 * MIB, "engine.tokenizer": 20 * MIB, "engine.gc_us": 1000,
         "engine.gc_runs": 1},
    ],
)  # fmt: skip


def test_each_adapter_says_who_waited_and_how_long() -> None:
    found = on_demand_of(MIXED)
    assert on_demand_json(found) == {
        "adapters": [
            {"name": "chat", "requests": 1, "waited": 1, "longest_load_s": 0.0625},
            {"name": "sql", "requests": 3, "waited": 2, "longest_load_s": 0.25},
        ],
        "adapters_peak_bytes": 3 * MIB,
        "tokenizer_bytes": 20 * MIB,
        "tokenizer_load_s": 0.5,
    }


def test_collections_are_added_up_over_segments() -> None:
    assert garbage_json(garbage_of(MIXED)) == {
        "collections": 3, "total_s": 0.004, "longest_s": 0.003,
    }  # fmt: skip


def test_an_engine_without_them_says_nothing() -> None:
    plain = recording()
    assert (on_demand_of(plain), garbage_of(plain)) == (None, None)
    assert (on_demand_json(None), garbage_json(None)) == (None, None)
    assert on_demand_facts(summarise(plain)) == ()


def test_a_tokenizer_of_the_start_kept_nobody_waiting() -> None:
    found = on_demand_of(run_of(ended("a"), gauges=[{}], **{"engine.tokenizer": 9 * MIB}))
    assert found is not None
    assert (found.tokenizer_bytes, found.tokenizer_load_s) == (9 * MIB, None)
    assert found.adapters_peak_bytes is None


def test_the_report_says_it_in_words() -> None:
    found = {fact.name: fact.text for fact in on_demand_facts(summarise(MIXED))}
    assert found == {
        "adapters": "3.00 MiB resident at most, inside the figures above",
        "adapter chat": "1 request, 1 waited for it to be loaded, 62.5 ms at most",
        "adapter sql": "3 requests, 2 waited for it to be loaded, 250 ms at most",
        "tokenizer": "resident memory grew by 20.0 MiB; the first request waited 500 ms for it",
        "garbage collection": "3 times, 4.0 ms in all, 3.0 ms at most in one segment",
    }


def test_resident_adapters_and_kept_buffers_are_parts_of_the_runtime() -> None:
    composed = {
        "engine.kv_resident": 0, "host.heap_used": MIB, "engine.adapters": 3 * MIB,
        "engine.buffers": 2 * MIB,
    }  # fmt: skip
    closed = segment(gauges={"host.rss": 1})
    parts = host_parts_of(closed, engine(), composed=composed).runtime_parts
    assert (parts["adapters"], parts["kept buffers"]) == (3 * MIB, 2 * MIB)
    on_gpu = host_parts_of(closed, engine(device="cuda:0"), composed=composed).runtime_parts
    assert "adapters" not in on_gpu
