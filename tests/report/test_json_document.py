import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from example_run import profile_summary, replay_recording, replay_summary
from example_truths import run_truths

from memplan.report.explain_section import explained
from memplan.report.json_document import explain_json, profile_document, replay_document
from memplan.stats.summary import KvSlope, WitnessSummary

SUMMARY = replace(replay_summary(replay_recording()), truths=run_truths())
EXPLAINED = explain_json(replay_recording(), explained(replay_recording()))
QUANTILE_KEYS = {
    f"{name}{bound}"
    for name in ("p50", "p95", "p99")
    for bound in ("", "_low", "_high", "_replays_low", "_replays_high")
}
BASIS_KEYS = {
    "n", "method", "replays", "excursions", "block_s", "p50_interval", "p95_interval",
    "p99_interval",
}  # fmt: skip
TIME_KEYS = {"peak", *BASIS_KEYS, *QUANTILE_KEYS}
BYTES_KEYS = {"peak_bytes", *BASIS_KEYS, *(f"{key}_bytes" for key in QUANTILE_KEYS)}


def keys_of(value: Any, path: str = "") -> set[str]:
    """Every key with its path; lists count by their first entry."""
    if isinstance(value, list):
        return keys_of(value[0], f"{path}[]") if value else set()
    if not isinstance(value, dict):
        return set()
    here = {f"{path}.{key}" for key in value}
    return here.union(*(keys_of(inner, f"{path}.{key}") for key, inner in value.items()))


def test_a_replay_has_exactly_these_keys() -> None:
    document = replay_document(SUMMARY)
    assert document["schema"] == "memplan.replay/1"
    assert set(document) == {
        "schema", "run", "run_id", "deployment", "variant", "classes", "process", "throughput",
        "fidelity", "overhead", "on_demand", "gc", "kv_slope", "witness", "findings",
        "admission",
        "quality",
    }  # fmt: skip
    one = document["classes"][0]
    assert set(one) == {
        "name", "rule", "requests", "completed", "failed", "rejected", "cancelled", "unfinished",
        "not_sent", "reasons", "tokens", "memory", "latency", "admission",
    }  # fmt: skip
    assert set(one["memory"]) == {"cpu", "gpu"}
    assert set(one["memory"]["cpu"]) == {
        "co_resident", "co_resident_by_request", "attributed",
    }  # fmt: skip
    assert set(one["memory"]["cpu"]["attributed"]) == BYTES_KEYS
    assert set(one["latency"]) == {"ttft_s", "tpot_s", "e2e_s"}
    assert set(one["latency"]["ttft_s"]) == TIME_KEYS
    assert set(document["process"]) == {
        "idle_bytes", "peak_bytes", "load_peak_bytes", "shared_bytes", "gpu_idle_bytes",
        "gpu_peak_bytes", "attribution", "attribution_of", "gpu_attribution", "gpu_attribution_of",
        "charged_peak_bytes", "charged_load_peak_bytes", "truths",
    }  # fmt: skip
    assert set(document["process"]["truths"]) == {
        "idle", "peak", "after", "charged_since", "no_group", "weight_files_bytes",
        "weight_files_cached_bytes",
    }  # fmt: skip
    assert set(document["process"]["truths"]["idle"]) == {
        "resident_bytes", "proportional_bytes", "charged_bytes", "working_set_bytes",
        "demand_alone_bytes", "demand_shared_bytes", "demand_libraries_bytes",
        "demand_private_bytes", "charged_less_demand_bytes", "other_kernel_bytes",
        "file_balance_bytes",
    }  # fmt: skip
    assert set(document["process"]["attribution"]) == {
        "weights_bytes", "kv_bytes", "activations_bytes", "runtime_bytes",
        "allocator_slack_bytes", "page_cache_bytes", "unexplained_bytes",
    }  # fmt: skip
    total = document["process"]["attribution_of"]["total_bytes"]
    assert sum(document["process"]["attribution"].values()) == total
    assert set(document["fidelity"]) == {
        "schedule_lag_s", "peak_in_flight", "dilation", "length_scale", "recyclings",
        "recycling_s", "recycled_after", "against_reference",
    }  # fmt: skip
    assert set(document["overhead"]) == {"client_cpu_s", "client_peak_bytes", "segment_median_s"}
    assert set(document["findings"][0]) == {"code", "text", "hint"}


def test_a_profile_has_exactly_these_keys() -> None:
    document = profile_document([profile_summary(), profile_summary("kv-int8", scale=0.5)])
    assert set(document) == {"schema", "variants", "comparison"}
    assert document["schema"] == "memplan.profile/1"
    assert [one["variant"] for one in document["variants"]] == ["base", "kv-int8"]
    first = document["variants"][0]
    assert set(first) == {
        "run", "run_id", "deployment", "variant", "process", "solo", "rungs", "overhead", "witness",
        "findings", "quality",
    }  # fmt: skip
    assert set(first["solo"][0]) == {
        "class", "place", "input_tokens", "output_tokens", "n", "median_bytes", "min_bytes",
        "max_bytes", "kv_formula_bytes", "ttft_s", "tpot_s",
    }  # fmt: skip
    assert set(first["solo"][0]["ttft_s"]) == {"n", "median_s", "low_s", "high_s"}
    assert set(first["rungs"][0]) == {
        "wave", "place", "requests", "tokens_per_request", "idle_bytes", "peak_bytes",
        "kv_formula_bytes", "e2e_s", "completed", "output_tokens_per_s", "decode_step_s",
    }  # fmt: skip
    assert first["rungs"][0]["decode_step_s"] is None
    assert first["rungs"][-1]["decode_step_s"]["n"] == 9


def test_the_comparison_of_variants_has_exactly_these_keys() -> None:
    assert profile_document([profile_summary()])["comparison"] is None
    runs = [profile_summary(), profile_summary("stack-1-kv", scale=0.5, step=1)]
    compared = json.loads(json.dumps(profile_document(runs)["comparison"], allow_nan=False))
    assert set(compared) == {"variants", "stack", "first"}
    assert set(compared["variants"][1]) == {
        "run_id", "variant", "changes", "place", "idle_bytes", "peak_bytes", "load_peak_bytes",
        "weights_bytes", "kv_bytes_per_token", "requests_at_once", "longest_tokens",
        "decode_step_s", "decode_requests", "first_token_s", "first_token_tokens", "batch_s",
        "output_tokens_per_s", "has_own_numbers", "perplexity_ratio", "top1_ratio",
        "quality_tokens", "is_quality_own", "saved_bytes", "slower_ratio", "slower_in", "cost",
        "verdict", "is_beaten",
    }  # fmt: skip
    assert set(compared["variants"][1]["peak_bytes"]) == {"value", "low", "high", "n"}
    assert compared["variants"][1]["verdict"] == "quality_unknown"
    assert set(compared["stack"][1]) == {
        "step", "run_id", "variant", "idle_bytes", "peak_bytes", "idle_change_bytes",
        "peak_change_bytes",
    }  # fmt: skip
    assert set(compared["first"]) == {
        "variant", "run_id", "saves_more_with_unknown_quality", "text", "tolerances",
    }  # fmt: skip
    assert compared["first"]["saves_more_with_unknown_quality"] == "stack-1-kv"


def test_figures_are_raw_bytes_and_seconds() -> None:
    document = json.loads(json.dumps(replay_document(SUMMARY), allow_nan=False))
    short = document["classes"][0]
    assert short["memory"]["cpu"]["attributed"]["p95_bytes"] == (
        SUMMARY.classes[0].cpu.attributed.p95.value
    )
    assert short["latency"]["e2e_s"]["p50_low"] == SUMMARY.classes[0].e2e_s.p50.low
    assert document["process"]["peak_bytes"] == SUMMARY.peak_bytes


def test_a_withheld_percentile_is_null_and_a_finding_says_why() -> None:
    document = replay_document(SUMMARY)
    long = next(one for one in document["classes"] if one["name"] == "long")
    assert long["memory"]["cpu"]["attributed"]["p99_bytes"] is None
    assert "p99_withheld" in {one["code"] for one in document["findings"]}


def test_the_self_test_of_kv_says_its_bounds_and_how_often() -> None:
    found = KvSlope(slope=1.01, low=0.98, high=1.03, n=48)
    document = replay_document(replace(SUMMARY, kv_slope=found))
    assert document["kv_slope"] == {"slope": 1.01, "low": 0.98, "high": 1.03, "n": 48}


def test_the_witness_is_told_with_its_gaps_and_is_null_where_there_was_none() -> None:
    witness = WitnessSummary(
        n=5, gap_p50_s=0.001, gap_p99_s=0.002, gap_max_s=0.5, max_bytes=7, policy="nice", cpu_s=0.25
    )
    assert replay_document(replace(SUMMARY, witness=witness))["witness"] == asdict(witness)
    assert replay_document(replace(SUMMARY, witness=None))["witness"] is None


def test_what_was_not_measured_is_null_and_not_zero() -> None:
    document = replay_document(replace(SUMMARY, attribution=None, fidelity=None, idle_bytes=None))
    assert document["process"]["attribution"] is None
    assert document["process"]["idle_bytes"] is None
    assert document["process"]["truths"]["peak"]["proportional_bytes"] is None
    assert document["fidelity"] is None
    assert document["kv_slope"] is None
    assert document["classes"][0]["memory"]["gpu"] is None


def test_a_measured_gpu_has_the_same_shape_as_the_host() -> None:
    one = SUMMARY.classes[0]
    document = replay_document(replace(SUMMARY, classes=(replace(one, gpu=one.cpu),)))
    memory = document["classes"][0]["memory"]
    assert memory["gpu"] == memory["cpu"]


def test_an_explanation_has_exactly_these_keys() -> None:
    assert set(EXPLAINED) == {
        "schema", "run", "run_id", "deployment", "variant", "place", "classes", "never_in_flight",
    }  # fmt: skip
    assert EXPLAINED["schema"] == "memplan.explain/1"
    one = EXPLAINED["classes"][0]
    assert set(one) == {
        "name", "segment", "attribution", "attribution_of", "in_flight", "suggestions",
    }  # fmt: skip
    assert set(one["segment"]) == {
        "engine_start", "kind", "start_s", "end_s", "prefill_tokens", "decode_tokens", "waiting",
        "transient_bytes",
    }  # fmt: skip
    assert sum(one["attribution"].values()) == one["attribution_of"]["total_bytes"]
    assert set(one["in_flight"][0]) == {
        "request_id", "class", "input_tokens", "output_tokens", "kv_used_bytes",
        "kv_reserved_bytes", "transient_bytes", "owned_bytes",
    }  # fmt: skip
    assert set(one["suggestions"][0]) == {"code", "change", "effect", "saves_bytes", "is_measured"}
    assert json.loads(json.dumps(EXPLAINED)) == EXPLAINED


def test_every_key_is_explained_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json-document.md").read_text("utf-8")
    explained = set(re.findall(r"[a-z][a-z0-9_]*", " ".join(re.findall(r"`([^`]+)`", page))))
    paths = keys_of(replay_document(SUMMARY)) | keys_of(profile_document([profile_summary()]))
    paths |= keys_of(EXPLAINED)
    # Reasons are the run's own words; low and high bounds are explained once, as a pattern.
    names = {path.rsplit(".", 1)[1] for path in paths if ".reasons." not in path}
    names = {
        re.sub(r"^(p\d\d|peak)(_replays)?(_low|_high)?(_bytes)?$", r"\1", name) for name in names
    }
    assert names - explained == set()
