"""What is read from a good model.yaml."""

import json
from pathlib import Path

import pytest
from written_model import SCRIPTED, load

from memplan.specs import BUILTIN_CLASSES


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    deployment = load(tmp_path, SCRIPTED)
    assert deployment.settings.max_requests == 16
    assert deployment.settings.kv_stored == "bf16"
    assert deployment.settings.env == {}
    assert deployment.settings.malloc_env == {"MALLOC_ARENA_MAX": "1"}
    assert (deployment.settings.allocator, deployment.settings.trim) == ("system", "never")
    assert deployment.settings.recycle_after_requests is None
    assert deployment.classes == BUILTIN_CLASSES
    assert deployment.script is not None
    assert deployment.script.weights_bytes == 200 * 2**20
    assert deployment.script.decode_s_per_step == 0.02
    assert deployment.self_test is None


def test_fields_carry_bytes_and_seconds(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        "memplan: 1\nname: small\nengine: ballast\n"
        "classes: [{name: all, budget: {cpu: 64MiB, gpu: 64MB}, slo: {ttft: 2s, tpot: 200ms}}]\n"
        "self_test: {spike: 150MB, hold: 3ms, count: 20, every: 250ms}\n",
    )
    (spec,) = deployment.classes
    assert (spec.budget.cpu_bytes, spec.budget.gpu_bytes) == (67_108_864, 64_000_000)
    assert (spec.slo.ttft_s, spec.slo.tpot_s, spec.slo.e2e_s) == (2.0, 0.2, None)
    resolved = deployment.resolved()
    assert resolved["self_test"] == {
        "spike_bytes": 150_000_000,
        "hold_s": 0.003,
        "count": 20,
        "every_s": 0.25,
        "made_by": "thread",
        "seed": None,
    }


@pytest.mark.parametrize(
    ("settings", "env"),
    [
        ("{}", {"MALLOC_ARENA_MAX": "1"}),
        ("{env: {OTHER: x}}", {"MALLOC_ARENA_MAX": "1"}),
        ("{malloc_arenas: null}", {}),
        ("{malloc_arenas: 3}", {"MALLOC_ARENA_MAX": "3"}),
        ("{allocator: tcmalloc}", {}),
        ('{env: {MALLOC_ARENA_MAX: "2"}}', {}),
        ('{env: {GLIBC_TUNABLES: "glibc.malloc.arena_max=2"}}', {}),
        (
            "{malloc_mmap_threshold: 256KiB, malloc_trim_threshold: 1MiB}",
            {
                "MALLOC_ARENA_MAX": "1",
                "MALLOC_MMAP_THRESHOLD_": "262144",
                "MALLOC_TRIM_THRESHOLD_": "1048576",
            },
        ),
    ],
)
def test_the_keys_of_malloc_become_its_variables(
    tmp_path: Path, settings: str, env: dict[str, str]
) -> None:
    text = f"memplan: 1\nname: small\nengine: ballast\nsettings: {settings}\n"
    deployment = load(tmp_path, text)
    assert deployment.settings.malloc_env == env
    resolved = json.loads(json.dumps(deployment.resolved()))["settings"]
    arenas = env.get("MALLOC_ARENA_MAX")
    assert resolved["malloc_arenas"] == (None if arenas is None else int(arenas)), (
        "a recording holds what was applied"
    )


@pytest.mark.parametrize(
    ("written", "read"), [("never", "never"), ("after_release", "after_release"), ("250ms", 0.25)]
)
def test_trimming_is_a_word_or_seconds(tmp_path: Path, written: str, read: str | float) -> None:
    text = f"memplan: 1\nname: small\nengine: ballast\nsettings: {{trim: {written}}}\n"
    assert load(tmp_path, text).resolved()["settings"]["trim"] == read  # type: ignore[index]


def test_resolved_says_everything_in_plain_values(tmp_path: Path) -> None:
    resolved = load(
        tmp_path,
        SCRIPTED + 'classes: [{name: a, when: {input_tokens: "512..4095", operation: chat}}]\n',
    ).resolved()
    (spec,) = json.loads(json.dumps(resolved["classes"]))
    assert spec == {
        "name": "a",
        "rule": "input_tokens 512..4095, operation chat",
        "when": {
            "input_tokens": "512..4095",
            "output_tokens": None,
            "operation": ["chat"],
            "labels": {},
        },
        "typical": {"input_tokens": 2303, "output_tokens": 64},
        "budget": {"cpu_bytes": None, "gpu_bytes": None, "in_flight_bytes": None},
        "slo": {"ttft_s": None, "tpot_s": None, "e2e_s": None},
        "adapter": None,
    }


def test_variants_replace_only_what_they_name(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        SCRIPTED + "settings: {threads: 2, max_requests: 8}\n"
        "variants: [{name: int8, weights: int8}, {name: free, threads: null},"
        " {name: fp32, weights: fp32}]\n",
    )
    base, int8, free, fp32 = deployment.variants_resolved()
    assert [d.variant for d in (base, int8, free, fp32)] == ["base", "int8", "free", "fp32"]
    assert base.settings == deployment.settings
    assert (int8.settings.weights, int8.settings.threads, int8.settings.max_requests) == (
        "int8", 2, 8,
    )  # fmt: skip
    assert (free.settings.weights, free.settings.threads) == ("bf16", None)
    assert fp32.resolved()["settings"]["kv"] == "fp32"  # type: ignore[index]


def test_int8_weights_may_keep_fp32_kv(tmp_path: Path) -> None:
    deployment = load(tmp_path, SCRIPTED + "settings: {weights: int8, kv: fp32}\n")
    assert deployment.settings.kv_stored == "fp32"
